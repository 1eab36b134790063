"""All mutations, and the controls: the same runs with nothing broken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tests.mutations.eager import EAGER
from tests.mutations.interception import INTERCEPTION
from tests.mutations.kvm import KVM
from tests.mutations.live_engine import LIVE_ENGINE
from tests.mutations.live_exits import LIVE_EXITS
from tests.mutations.live_frames import LIVE_FRAMES
from tests.mutations.mutation import Mutation, Way
from tests.mutations.oracles import ORACLES
from tests.mutations.policies import POLICIES
from tests.mutations.replayed import REPLAYED
from tests.mutations.rights import RIGHTS
from tests.mutations.scripts import SCRIPTS
from tests.mutations.sync import SYNC
from tests.mutations.tables import TABLES
from tests.mutations.xen302 import XEN302

XI: Final[tuple[Mutation, ...]] = (
    *(*RIGHTS, *SYNC, *TABLES, *INTERCEPTION, *ORACLES, *SCRIPTS),
    *(*LIVE_ENGINE, *LIVE_EXITS, *LIVE_FRAMES),
    *REPLAYED,
)
PEERS: Final[tuple[Mutation, ...]] = (*KVM, *EAGER, *XEN302)
MUTATIONS: Final[tuple[Mutation, ...]] = (*XI, *POLICIES, *PEERS)


def controls(mutations: Iterable[Mutation]) -> tuple[Mutation, ...]:
    """One for each different run. `pool_base_mfn` belongs to what `pool-given-away` breaks."""
    return tuple({one.where: one.control for one in mutations if "pool_base_mfn" not in one.config}.values())


CONTROLS: Final = controls(MUTATIONS)

# What the tests run: of XI these, of each other engine and policy one for each way; and what takes no machine.
OF_XI: Final = frozenset(
    (
        "stale-snapshot",
        "alias-unwatched",
        "never-dirty",
        "frame-bit-lost, blind, long4",
        "live-left-writable",
        "live-pf-code-wrong",
        "live-own-stores-unlogged",
        "replayed-invlpg-skipped",
    )
)
TESTED: Final = tuple(one for one in MUTATIONS if one.tested or one.name in OF_XI or one.script is not None)
TESTED_CONTROLS: Final = controls(
    one for one in TESTED if one.way is Way.REPLAY or one.script is not None or (one.subject and not one.is_live)
)
