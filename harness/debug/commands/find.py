"""`find`: every address at which a frame is mapped, in every address space that the engine knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from harness.debug.commands.arguments import address, gfn_of, split
from harness.debug.commands.command import Command
from harness.debug.commands.runs import guest_runs
from harness.debug.commands.text import MARK, columns, page_size, plural, rights_text
from harness.debug.commands.views import guest_path, mfn_of
from harness.debug.scene import Scene
from harness.engine_views import Explains
from harness.x86.bits import PAGE_SHIFT
from harness.x86.walk import MAPPED, WRITABLE

_HEADINGS: Final = ("address", "cr3", "guest", "now", "page", "SPTI[index]", "")


def _find(scene: Scene, arguments: Sequence[str]) -> str:
    words = split(arguments, ("gfn", "mfn", "pa"), most=1)
    offset = 0
    if words.plain:
        words = split((f"pa={words.plain[0]}",), ("pa",))
    if "pa" in words.named:
        offset = address(scene, words.named["pa"]) & 0xFFF
    gfn = gfn_of(scene, words)
    if isinstance(scene.engine, Explains):
        told = scene.engine.describe_mappings(gfn)
        rows = [_row(scene, gfn, offset, one) for one in told["mappings"]]
        known = {one["va"] for one in told["mappings"] if one["cr3"] == scene.state.cr3 & scene.state.mode.root_mask}
        more = bool(told["more"])
    else:
        rows, known = _plain(scene, gfn, offset)
        more = False
    lines = [f"{_title(scene, gfn, offset)}: {plural(len(rows), 'mapping')} in the shadow"]
    unseen = _unseen(scene, gfn, offset, known)
    if rows or unseen:
        lines += columns(_HEADINGS, [*rows, *unseen])
    if more:
        lines.append("  and more: a guest that maps a table into itself has frames at very many addresses")
    return "\n".join(lines)


def _title(scene: Scene, gfn: int, offset: int) -> str:
    mfn = mfn_of(scene, gfn)
    where = f"machine {mfn << PAGE_SHIFT | offset:#x}" if mfn >= 0 else "without a machine frame"
    return f"gfn {gfn:#x}, guest-physical {gfn << PAGE_SHIFT | offset:#x}, {where}"


def _row(scene: Scene, gfn: int, offset: int, one: dict[str, Any]) -> tuple[str, ...]:
    va = one["va"]
    return (
        f"{va + offset:#018x}",
        "unpaged" if one["mode"] == "unpaged" else f"{one['cr3']:#x}",
        _letters(one["guest"]),
        _letters(one["hardware"]) if one["hardware"] else "-",
        page_size(one["page_size"]),
        f"{one['spti']}[{one['index']}]",
        _against_guest(scene, gfn, one),
    )


def _against_guest(scene: Scene, gfn: int, one: dict[str, Any]) -> str:
    """A mark where the guest's own tables say something else by now, below that root."""
    if one["mode"] != scene.state.mode.name:
        return ""
    path = guest_path(scene, one["va"], replace(scene.state, cr3=one["cr3"]))
    if path.outcome != MAPPED:
        return f"{MARK} not mapped by the guest's tables"
    if path.gfn != gfn:
        return f"{MARK} gfn {path.gfn:#x} in the guest's tables"
    own = rights_text(path.rights if scene.state.wp else path.rights | WRITABLE)
    return "" if own == _letters(one["guest"]) else f"{MARK} {own} in the guest's tables"


def _plain(scene: Scene, gfn: int, offset: int) -> tuple[list[tuple[str, ...]], set[int]]:
    """By what every engine tells: addresses and rights, and no word of the root."""
    engine = scene.engine
    writable, executable = (engine.addresses_of(gfn, **{right: True}) for right in ("writable", "executable"))
    known = engine.addresses_of(gfn)
    rows: list[tuple[str, ...]] = [
        (
            f"{va + offset:#018x}",
            "?",
            f"r{'w' if va in writable else '-'}{'x' if va in executable else '-'}",
            "?",
            "?",
            "?",
            "",
        )
        for va in sorted(known)
    ]
    return rows, set(known)


def _unseen(scene: Scene, gfn: int, offset: int, known: set[int]) -> list[tuple[str, ...]]:
    """Where the guest's current tables map the frame, and the shadow does not yet."""
    runs = guest_runs(scene)
    rows: list[tuple[str, ...]] = []
    for at in np.flatnonzero((runs.gfn <= gfn) & (gfn < runs.gfn + runs.pages)).tolist():
        va = (int(runs.first[at]) + gfn - int(runs.gfn[at])) << PAGE_SHIFT
        if va not in known:
            rights = rights_text(int(runs.rights[at]))
            cr3 = scene.state.cr3 & scene.state.mode.root_mask
            rows.append((f"{va + offset:#018x}", f"{cr3:#x}", rights, "-", "", "-", "not in the shadow yet"))
    return rows


def _letters(rights: str) -> str:
    """``rwxu`` with what is missing, as `rights_text` has it."""
    return f"r{'w' if 'w' in rights else '-'}{'x' if 'x' in rights else '-'} {'u' if 'u' in rights else 's'}"


_HELP: Final = f"""\
PA: a guest-physical address. Exact, from the engine's backlinks: every SPTE that leads to the frame, followed up to
every root. cr3: which of the guest's address spaces. guest: the guest's rights over all levels, as the SPTEs keep them;
now: what the processor may do before any fault, - where the walk ends early (an SPTE without P, the guest's A being 0).
{MARK} stands where the guest's tables below that root say something else by now: it has changed them and not flushed,
or the shadow is wrong. What the current tables map and no SPTE leads to comes last: a fault or a flush brings it in."""

COMMANDS: Final = (
    Command("find", "PA|gfn=N|mfn=N", "every address at which a frame is mapped, in every root", _HELP, _find),
)
