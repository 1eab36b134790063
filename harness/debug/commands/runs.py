"""Runs of mapped pages: what the guest's tables map, what the shadow maps, and where the two differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.check.memory import Ints
from harness.check.ranges import Rights, find_ranges
from harness.debug.commands.views import NOT_THE_GUESTS, gfns_of, layout, shadow
from harness.debug.scene import Scene
from harness.engine import Words
from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.walk import ALLOWED, EXECUTABLE, MAPPED, USER, WRITABLE, fault_codes

TABLES_PER_LEVEL: Final = 4096
_ALL: Final = WRITABLE | USER | EXECUTABLE
_PAGES: Final = 1 << 52  # virtual pages; the upper half of the addresses has the upper half of the numbers


@dataclass(slots=True)
class Runs:
    """Runs, sorted by address, that do not overlap. first: int64 (n,), page number (address >> 12) of the first page.
    pages: int64, length. gfn: int64, of the first page; NOT_THE_GUESTS where the shadow leads to a frame of the host's.
    rights: uint8, WRITABLE | USER | EXECUTABLE over all levels. sizes: int64, the sizes in bytes of the pages that a
    run is made of, or-ed. capped: tables were left out, there being too many.
    """

    first: Ints
    pages: Ints
    gfn: Ints
    rights: Rights
    sizes: Ints
    capped: bool = False

    def __len__(self) -> int:
        return len(self.first)

    def take(self, at: Ints) -> Runs:
        return Runs(self.first[at], self.pages[at], self.gfn[at], self.rights[at], self.sizes[at], self.capped)


def guest_runs(scene: Scene) -> Runs:
    """What the guest's current tables map."""
    found = find_ranges(
        scene.state, scene.ram, layout(scene), np.random.default_rng(0), tables_per_level=TABLES_PER_LEVEL
    )
    first = (found.first >> np.uint64(bits.PAGE_SHIFT)).astype(np.int64)
    return _merged(Runs(first, found.pages, found.gfn, found.rights, found.page_size, found.capped))


def shadow_runs(scene: Scene) -> Runs:
    """What the hardware may reach by the shadow as it stands: entries with P=1, from the root down."""
    view = shadow(scene)
    mode, flat = view.root.mode, view.words.reshape(-1)
    origin = view.base << bits.PAGE_SHIFT
    va, table = np.zeros(1, np.uint64), np.asarray([view.root.root], np.uint64)
    rights = np.asarray([_ALL], np.uint8)
    parts: list[tuple[Words, Words, Rights, int]] = []
    capped = False
    for level in mode.levels:
        start = (table - np.uint64(origin)) >> np.uint64(3)  # wraps far out of the pool when below it
        inside = start <= np.uint64(len(flat) - level.entries)
        capped = capped or int(inside.sum()) > TABLES_PER_LEVEL
        kept = np.flatnonzero(inside)[:TABLES_PER_LEVEL]
        words = flat[start[kept].astype(np.int64)[:, None] + np.arange(level.entries)]
        at, index = np.nonzero(words & np.uint64(bits.PTE_P))
        entry = words[at, index]
        va = va[kept][at] | (index.astype(np.uint64) << np.uint64(level.shift))
        rights = rights[kept][at]
        if level.has_rights:
            rights = rights & _rights_of(entry)
        leaf = np.full(len(entry), level.number == 1)
        if level.may_map_large:
            leaf |= entry & np.uint64(bits.PTE_PS) != 0
        target = entry & np.uint64(bits.PTE_ADDR)
        parts.append((va[leaf], target[leaf] & np.uint64(-level.span % (1 << 64)), rights[leaf], level.span))
        va, table, rights = va[~leaf], target[~leaf], rights[~leaf]
    return _from_leaves(scene, mode.va_bits if mode.canonical else 0, parts, capped)


def _rights_of(entry: Words) -> Rights:
    own = np.zeros(len(entry), np.uint8)
    own[entry & np.uint64(bits.PTE_RW) != 0] |= WRITABLE
    own[entry & np.uint64(bits.PTE_US) != 0] |= USER
    own[entry & np.uint64(bits.PTE_NX) == 0] |= EXECUTABLE
    return own


def _from_leaves(scene: Scene, va_bits: int, parts: list[tuple[Words, Words, Rights, int]], capped: bool) -> Runs:
    """va_bits: where addresses are sign-extended from; 0 where they are not. parts: (address, machine address, rights,
    size in bytes) of the leaves of each level."""
    va = np.concatenate([part[0] for part in parts])
    if va_bits:
        va = ((va << np.uint64(64 - va_bits)).view(np.int64) >> (64 - va_bits)).view(np.uint64)
    mfn = (np.concatenate([part[1] for part in parts]) >> np.uint64(bits.PAGE_SHIFT)).astype(np.int64)
    size = np.concatenate([np.full(len(part[0]), part[3], np.int64) for part in parts])
    first = (va >> np.uint64(bits.PAGE_SHIFT)).astype(np.int64)
    rights = np.concatenate([part[2] for part in parts])
    order = np.argsort(first, kind="stable")
    runs = Runs(first, size >> bits.PAGE_SHIFT, gfns_of(scene, mfn), rights, size, capped)
    return _merged(runs.take(order))


def _merged(runs: Runs) -> Runs:
    """`runs` with neighbours joined that have equal rights and contiguous frames, whatever the sizes of their pages."""
    if not len(runs):
        return runs
    ends, follows = runs.first[:-1] + runs.pages[:-1], runs.gfn[:-1] + runs.pages[:-1]
    hosts = runs.gfn == NOT_THE_GUESTS
    contiguous = np.where(hosts[:-1] | hosts[1:], hosts[:-1] & hosts[1:], follows == runs.gfn[1:])
    joined = (ends == runs.first[1:]) & contiguous & (runs.rights[:-1] == runs.rights[1:])
    joined &= runs.first[1:] != _PAGES >> 1
    starts = np.flatnonzero(np.concatenate((np.ones(1, np.bool_), ~joined)))
    return Runs(
        runs.first[starts],
        np.add.reduceat(runs.pages, starts),
        runs.gfn[starts],
        runs.rights[starts],
        np.bitwise_or.reduceat(runs.sizes, starts),
        runs.capped,
    )


DIFFERENCE: Final = np.dtype(
    [
        ("first", np.int64),
        ("pages", np.int64),
        ("guest_maps", np.bool_),
        ("guest_gfn", np.int64),
        ("guest_rights", np.uint8),
        ("shadow_maps", np.bool_),
        ("shadow_gfn", np.int64),
        ("shadow_rights", np.uint8),
        ("wrong", np.bool_),
    ]
)
"""A run where guest and shadow are not alike; first and pages as in `Runs`, of each side whether it maps the run, and
where to. wrong: the shadow allows an access that the guest's tables do not, or leads elsewhere."""


def differences(scene: Scene, guest: Runs, shade: Runs) -> tuple[npt.NDArray[np.void], int]:
    """Compares page by page: runs of the dtype DIFFERENCE, sorted by address, and how many mapped pages are alike."""
    edges = np.unique(np.concatenate((guest.first, guest.first + guest.pages, shade.first, shade.first + shade.pages)))
    rows = np.zeros(max(len(edges) - 1, 0), DIFFERENCE)
    rows["first"], rows["pages"] = edges[:-1], np.diff(edges)
    _look_up(rows, "guest", guest)
    _look_up(rows, "shadow", shade)
    elsewhere = rows["guest_gfn"] != rows["shadow_gfn"]
    more = _allows_more(scene.state, scene.engine.root.control)[rows["guest_rights"], rows["shadow_rights"]]
    rows["wrong"] = rows["shadow_maps"] & (~rows["guest_maps"] | elsewhere | more)
    alike = ~elsewhere & (rows["guest_maps"] == rows["shadow_maps"]) & (rows["guest_rights"] == rows["shadow_rights"])
    same = int(rows["pages"][alike & rows["guest_maps"]].sum())
    return _joined(rows[~alike]), same


def _look_up(rows: npt.NDArray[np.void], side: str, runs: Runs) -> None:
    """Fills in the columns of `side`, by the run in which each row lies."""
    rows[f"{side}_gfn"] = NOT_THE_GUESTS
    if not len(runs):
        return
    at = np.maximum(np.searchsorted(runs.first, rows["first"], side="right") - 1, 0)
    into = rows["first"] - runs.first[at]
    inside = (into >= 0) & (into < runs.pages[at])
    rows[f"{side}_maps"] = inside
    rows[f"{side}_gfn"][inside] = np.where(runs.gfn[at] < 0, runs.gfn[at], runs.gfn[at] + into)[inside]
    rows[f"{side}_rights"][inside] = runs.rights[at][inside]


def _allows_more(guest: ControlState, hardware: ControlState) -> npt.NDArray[np.bool_]:
    """[guest's rights, shadow's rights] -> whether the shadow allows an access that the guest's tables do not."""
    allowed = [
        np.asarray([[code == ALLOWED for code in fault_codes(MAPPED, rights, state)] for rights in range(_ALL + 1)])
        for state in (guest, hardware)
    ]
    more: npt.NDArray[np.bool_] = (~allowed[0][:, None] & allowed[1][None, :]).any(axis=2)
    return more


def _joined(rows: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """`rows` with neighbours joined that go on in the same way."""
    if not len(rows):
        return rows
    before, after = rows[:-1], rows[1:]
    joined = before["first"] + before["pages"] == after["first"]
    for name in ("guest_maps", "guest_rights", "shadow_maps", "shadow_rights", "wrong"):
        joined &= before[name] == after[name]
    for name in ("guest_gfn", "shadow_gfn"):
        joined &= after[name] == np.where(before[name] < 0, before[name], before[name] + before["pages"])
    starts = np.flatnonzero(np.concatenate((np.ones(1, np.bool_), ~joined)))
    out: npt.NDArray[np.void] = rows[starts].copy()
    out["pages"] = np.add.reduceat(rows["pages"], starts)
    return out
