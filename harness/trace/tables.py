"""The tables of a replay at one moment: the guest's, and those of the shadow."""

from __future__ import annotations

from typing import Any

from harness.debug.scene import Tables
from harness.engine import ShadowEngine, Words
from harness.trace.exact import Replay
from harness.x86.bits import PAGE_SHIFT, PTE_ADDR, PTE_PS
from harness.x86.modes import PagingMode


def tables_of(replay: Replay) -> Tables:
    """Copies of all guest tables that the engine shadows, as it read them last; and of its shadow tables: those that it
    tells of (`describe_gfn`), and those that the current root leads to."""
    engine, memory = replay.engine, replay.memory
    guest: dict[int, Words] = {}
    role: dict[int, str] = {}
    for gfn in engine.guest_tables():
        mfn = memory.mfn(gfn)
        if mfn >= 0:
            guest[gfn] = memory.page(mfn).copy()
        told: list[dict[str, Any]] = engine.describe_gfn(gfn).get("sptis", [])
        role |= {int(table["mfn"]): str(table["role"]) for table in told}
    base, words = engine.pool
    for mfn, level in _reached(engine).items():
        role.setdefault(mfn, f"L{level}")
    shadow = {mfn: words[mfn - base].copy() for mfn in role if 0 <= mfn - base < len(words)}
    return Tables(replay.event, replay.state, guest, shadow, role)


def _reached(engine: ShadowEngine) -> dict[int, int]:
    """Machine frame and level of each shadow table that the root leads to, by entries that are not present yet too."""
    root = engine.root
    mode: PagingMode = root.mode
    base, words = engine.pool
    found: dict[int, int] = {}
    frontier = [root.root >> PAGE_SHIFT]
    for level in mode.levels:
        below: dict[int, None] = {}
        for mfn in frontier:
            if mfn in found or not 0 <= mfn - base < len(words):
                continue
            found[mfn] = level.number
            for entry in words[mfn - base][: level.entries].tolist():
                if entry and level.number > 1 and not (level.may_map_large and entry & PTE_PS):
                    below[(entry & PTE_ADDR) >> PAGE_SHIFT] = None
        frontier = list(below)
    return found
