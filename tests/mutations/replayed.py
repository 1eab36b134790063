"""Mutations of XI that a replay of a recorded run shows."""

from __future__ import annotations

from typing import Any, Final

from harness.xi.engine import XiEngine
from tests.mutations.live_engine import LeftWritable
from tests.mutations.mutation import Mutation, Way, caught
from tests.mutations.rights import LOST_FRAME_BIT
from tests.mutations.sync import NoInvlpg, StaleSnapshot
from tests.xi.broken import DropsOne


def _replayed(name: str, breaks: str, by: str, engine: type[XiEngine], **more: Any) -> Mutation:
    return Mutation(name, breaks, caught(*by.split()), "basic", "long4", engine, **{"way": Way.REPLAY, **more})


REPLAYED: Final = (
    _replayed("replayed-invlpg-skipped", "INVLPG synchronises nothing", "replay:answers replay:walks", NoInvlpg),
    _replayed("replayed-frame-bit-lost", "a page's lowest frame bit is lost", "replay:audits", LOST_FRAME_BIT),
    _replayed("replayed-drops-one", "a frame is never in the dirty log", "replay:dirty-log", DropsOne),
    _replayed("replayed-stale-snapshot", "a snapshot misses an entry", "replay:unexplained", StaleSnapshot),
    _replayed(
        "repeated-left-writable", "a table in sync is not write-protected", "replay:pool", LeftWritable, way=Way.REPEAT
    ),
)
