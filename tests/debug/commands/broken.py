"""Engines and scenes that are not as they should be, for the commands that must tell."""

from __future__ import annotations

from typing import Any

from harness.debug.commands.table import run_command
from harness.debug.scene import Scene
from tests.debug.commands.scene import Scripted

_OF_EVERY_ENGINE = frozenset(
    ("name", "audit", "stats", "describe_gfn", "describe_walk", "root", "pool", "addresses_of")
)


class Silent:
    """An engine that offers what every engine does, and does not tell of its insides."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        if name in _OF_EVERY_ENGINE:
            return getattr(self._engine, name)
        raise AttributeError(name)


def silent(guest: Scripted) -> Scene:
    """The guest's scene with such an engine."""
    scene = guest.scene()
    scene.engine = Silent(guest.domain.engine)
    return scene


def word_of(guest: Scripted, va: int, level: int = 1) -> int:
    """The pool's word that holds the SPTE of `va` at `level`."""
    (step,) = (step for step in guest.domain.engine.describe_walk(va) if step["level"] == level)
    return int(guest.domain.engine.sptis[step["spti"]].base + step["index"])


def marked(guest: Scripted, line: str) -> list[str]:
    """What a command marks as disagreeing, without the mark."""
    output = run_command(guest.scene(), line)
    return [row.partition("<-- ")[2] for row in output.split("\n") if "<--" in row]
