"""`ranges`: what is mapped, by the guest's tables or by the shadow, and where the two differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from harness.check.memory import Ints
from harness.check.ranges import Rights
from harness.debug.commands.arguments import Misused, address, span, split
from harness.debug.commands.command import Command
from harness.debug.commands.runs import Runs, differences, guest_runs, shadow_runs
from harness.debug.commands.text import MARK, columns, page_size, plural, rights_text
from harness.debug.scene import Scene
from harness.x86.bits import PAGE_SHIFT
from harness.x86.walk import EXECUTABLE, USER, WRITABLE

SHOWN: Final = 500
_SIDES: Final = ("guest", "shadow", "both")
# The word -> the right, and whether it must be there.
_FILTERS: Final = {
    "w": (WRITABLE, True),
    "ro": (WRITABLE, False),
    "x": (EXECUTABLE, True),
    "nx": (EXECUTABLE, False),
    "u": (USER, True),
    "s": (USER, False),
}
_PAGES: Final = 1 << 52


@dataclass(frozen=True, slots=True)
class Filter:
    """Which runs are wanted. must, must_not: rights. begin, end: page numbers; runs are clipped to them. has: a page
    that must be in the run."""

    must: int
    must_not: int
    begin: int = 0
    end: int = _PAGES
    has: int | None = None

    def chosen(self, first: Ints, pages: Ints, rights: Rights) -> Ints:
        """Which runs (indices) have the wanted rights, and the page."""
        good = (rights & self.must == self.must) & (rights & self.must_not == 0)
        if self.has is not None:
            good &= (first <= self.has) & (self.has < first + pages)
        return np.flatnonzero(good)

    def clip(self, runs: Runs) -> Runs:
        """`runs` as far as they lie in the wanted addresses."""
        cut = np.maximum(self.begin - runs.first, 0)
        pages = np.minimum(runs.first + runs.pages, self.end) - runs.first - cut
        gfn = np.where(runs.gfn < 0, runs.gfn, runs.gfn + cut)
        clipped = Runs(runs.first + cut, pages, gfn, runs.rights, runs.sizes, runs.capped)
        return clipped.take(np.flatnonzero(pages > 0))


def _ranges(scene: Scene, arguments: Sequence[str]) -> str:
    words = split(arguments, ("has", "range"), most=len(_FILTERS) + 1)
    sides = [word for word in words.plain if word in _SIDES]
    filters = [word for word in words.plain if word not in _SIDES]
    if len(sides) > 1:
        raise Misused(f"only one of {', '.join(_SIDES)}")
    wanted = _filter(scene, filters, words.named)
    side = sides[0] if sides else "guest"
    if side == "both":
        return _both(scene, wanted)
    runs = wanted.clip(guest_runs(scene) if side == "guest" else shadow_runs(scene))
    runs = runs.take(wanted.chosen(runs.first, runs.pages, runs.rights))
    return _one(scene, side, runs)


def _filter(scene: Scene, filters: Sequence[str], named: dict[str, str]) -> Filter:
    must = must_not = 0
    for word in filters:
        if word not in _FILTERS:
            raise Misused(f"{word!r} is none of {' '.join((*_SIDES, *_FILTERS))}")
        right, there = _FILTERS[word]
        must, must_not = (must | right, must_not) if there else (must, must_not | right)
    if must & must_not:
        raise Misused(f"nothing can be {' and '.join(filters)}")
    if {"has", "range"} <= named.keys():
        raise Misused("has= or range=, not both")
    if "range" in named:
        begin, end = span(scene, named["range"])
        return Filter(must, must_not, begin >> PAGE_SHIFT, -(-end >> PAGE_SHIFT))
    if "has" in named:
        return Filter(must, must_not, has=address(scene, named["has"]) >> PAGE_SHIFT)
    return Filter(must, must_not)


def _one(scene: Scene, side: str, runs: Runs) -> str:
    rows = []
    shown = runs.take(np.arange(min(len(runs), SHOWN)))
    parts = (shown.first, shown.pages, shown.gfn, shown.rights, shown.sizes)
    for first, pages, gfn, rights, sizes in zip(*(part.tolist() for part in parts), strict=True):
        mark = f"{MARK} no frame of the guest's" if side == "shadow" and gfn < 0 else ""
        rows.append((*_place(first, pages), rights_text(rights), _gfns(gfn, pages), page_size(sizes), mark))
    title = f"{_title(scene, side)}: {plural(len(runs), 'run')}, {plural(int(runs.pages.sum()), 'page')}"
    if not rows:
        return title
    table = columns(("first", "last", "size", "rights", "gfn", "in pages of", ""), rows, right="size")
    return "\n".join((title, *table, *_left_out(len(runs), runs.capped)))


def _both(scene: Scene, wanted: Filter) -> str:
    guest, shade = wanted.clip(guest_runs(scene)), wanted.clip(shadow_runs(scene))
    found, same = differences(scene, guest, shade)
    rights = np.where(found["guest_maps"], found["guest_rights"], found["shadow_rights"])
    found = found[wanted.chosen(found["first"], found["pages"], rights)]
    found = found[np.argsort(~found["wrong"], kind="stable")]
    wrong = int(found["wrong"].sum())
    lines = [
        f"{_title(scene, 'guest')}, against the shadow: {plural(same, 'page')} alike",
        f"  {plural(wrong, 'run')} where the shadow allows what the guest's tables do not, "
        f"{len(found) - wrong} where it has less (faults bring the rest)",
    ]
    if len(found):
        rows = [_difference(row) for row in found[:SHOWN]]
        lines += columns(("first", "last", "size", "guest", "gfn", "shadow", "gfn", ""), rows, right="size")
    late = [gfn for gfn, synced in scene.engine.guest_tables().items() if not synced]
    if wrong and late:
        told = " ".join(f"{gfn:#x}" for gfn in sorted(late)[:8]) + (" ..." if len(late) > 8 else "")
        lines.append(f"  out of sync, so that the shadow may differ until the guest flushes: tables at gfn {told}")
    return "\n".join((*lines, *_left_out(len(found), guest.capped or shade.capped)))


def _difference(row: np.void) -> tuple[str, ...]:
    pages = int(row["pages"])
    cells = list(_place(int(row["first"]), pages))
    for side in ("guest", "shadow"):
        there = bool(row[f"{side}_maps"])
        gfn = int(row[f"{side}_gfn"])
        cells += [rights_text(int(row[f"{side}_rights"])), _gfns(gfn, pages)] if there else ["-", ""]
    return (*cells, MARK if row["wrong"] else "")


def _title(scene: Scene, side: str) -> str:
    if side == "guest":
        return f"guest's tables, cr3 {scene.state.cr3:#x}, {scene.state.mode.name}"
    root = scene.engine.root
    return f"shadow, root at machine address {root.root:#x}, {root.mode.name}"


def _place(first: int, pages: int) -> tuple[str, str, str]:
    """First and last byte of a run, and its size."""
    begin, end = first << PAGE_SHIFT, (first + pages << PAGE_SHIFT) - 1
    kib = pages * 4
    for unit, name in ((1 << 30, "TiB"), (1 << 20, "GiB"), (1 << 10, "MiB")):
        if kib % unit == 0:
            return f"{begin:#018x}", f"{end:#018x}", f"{kib // unit} {name}"
    return f"{begin:#018x}", f"{end:#018x}", f"{kib} KiB"


def _gfns(gfn: int, pages: int) -> str:
    if gfn < 0:
        return "?"
    return f"{gfn:#x}" if pages == 1 else f"{gfn:#x}..{gfn + pages - 1:#x}"


def _left_out(count: int, capped: bool) -> list[str]:
    lines = [f"  ... and {count - SHOWN} more: range=A:B shows a part"] if count > SHOWN else []
    if capped:
        lines.append("  there are more tables than are looked at, so runs are missing; `walk` looks at any address")
    return lines


_HELP: Final = f"""\
guest (the default): what the guest's current tables map. shadow: what the processor may reach by the shadow as it
stands. Neighbouring pages are one run while their rights are the same and their frames go on, whatever the size of the
pages. rights: r, w, x; u: ring 3 may too, s: it may not. Rights are those over all levels.
both: only where guest and shadow differ; first, marked with {MARK}, where the shadow allows what the guest's tables do
not, or leads elsewhere. That is an error unless the guest has changed a table and not flushed yet.
Filters: w or ro, x or nx, u or s; has=ADDR: the run around an address; range=A:B: addresses from A up to B."""

COMMANDS: Final = (
    Command(
        "ranges",
        "[guest|shadow|both] [w|ro] [x|nx] [u|s] [has=VA] [range=A:B]",
        "what is mapped, in runs; with `both` where guest and shadow differ",
        _HELP,
        _ranges,
    ),
)
