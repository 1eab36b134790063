"""Everything that the guest's current tables map, as runs of equal rights, equal page size and contiguous frames.

One numpy pass per level. Tables are hostile input: one entry that points to its own table maps 2^36 pages, and
512 of them more than there are atoms to count them with. So each level visits a bounded number of tables, shared
out fairly between the entries of the root and drawn by the seed; `Ranges.capped` says that it happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.check.layout import Layout
from harness.engine import Bytes, Words
from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.modes import PHYS_BITS_DEFAULT, Level, PagingMode, reserved_bits
from harness.x86.walk import EXECUTABLE, USER, WRITABLE

Ints = npt.NDArray[np.int64]
Rights = npt.NDArray[np.uint8]

TABLES_PER_LEVEL: Final = 512
ODD_MAX: Final = 64


@dataclass(slots=True)
class Ranges:
    """Mapped runs, sorted by address.

    first: uint64 (n,), canonical address of the first page. pages: int64 (n,), length in 4 KiB pages. gfn: of the
    first page. rights: WRITABLE | USER | EXECUTABLE over all levels. page_size: bytes, of the guest's pages.
    tables: gfns (unique, sorted) of the guest tables that were visited. odd: addresses behind entries that are
    present but cannot be followed (reserved bits, tables outside RAM). leaves: how many leaf entries there are.
    """

    first: Words
    pages: Ints
    gfn: Ints
    rights: Rights
    page_size: Ints
    tables: Ints
    odd: Words
    leaves: int
    capped: bool

    def __len__(self) -> int:
        return len(self.first)

    @property
    def last(self) -> Words:
        """Address of each run's last 4 KiB page."""
        return self.first + ((self.pages - 1).astype(np.uint64) << np.uint64(bits.PAGE_SHIFT))


@dataclass(slots=True)
class _Front:
    """The tables of one level that are still to be visited: address translated so far, base address, rights."""

    va: Words
    base: Words
    rights: Rights

    def take(self, at: npt.NDArray[np.intp]) -> _Front:
        return _Front(self.va[at], self.base[at], self.rights[at])


@dataclass(slots=True)
class _Leaves:
    va: list[Words]
    frame: list[Words]
    rights: list[Rights]
    size: list[Ints]


def find_ranges(
    control: ControlState,
    ram: Bytes,
    layout: Layout,
    rng: np.random.Generator,
    phys_bits: int = PHYS_BITS_DEFAULT,
    tables_per_level: int = TABLES_PER_LEVEL,
) -> Ranges:
    """The ranges that `control`'s tables map, read from `ram` (uint8, gfn = frame of the buffer)."""
    mode = control.mode
    if not mode.levels:
        return _unpaged(layout)
    everything = WRITABLE | USER | EXECUTABLE
    front = _Front(
        np.zeros(1, np.uint64),
        np.asarray([control.root_gpa], np.uint64),
        np.asarray([everything], np.uint8),
    )
    leaves = _Leaves([], [], [], [])
    tables: list[Words] = []
    odd: list[Words] = []
    capped = False
    words: npt.NDArray[np.uint32] | Words
    words = ram.view(np.uint32) if mode.entry_bytes == 4 else ram.view(np.uint64)
    for level in mode.levels:
        inside = layout.mapped((front.base >> np.uint64(bits.PAGE_SHIFT)).astype(np.int64))
        if not inside.all():
            odd.append(front.va[~inside])
            front = front.take(np.flatnonzero(inside))
        if len(front.va) > tables_per_level:
            front = front.take(_fair_share(mode, front.va, tables_per_level, rng))
            capped = True
        tables.append(np.unique(front.base >> np.uint64(bits.PAGE_SHIFT)))
        front, bad = _visit(control, level, words, front, leaves, phys_bits)
        odd.append(bad)
    strange = np.concatenate(odd)
    if len(strange) > ODD_MAX:
        strange = strange[np.sort(rng.choice(len(strange), ODD_MAX, replace=False))]
    return _merge(mode, leaves, np.unique(np.concatenate(tables)).astype(np.int64), strange, capped)


def _fair_share(mode: PagingMode, va: Words, count: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """`count` of the tables: each entry of the root gets as many as any other, as far as it has them."""
    group = va >> np.uint64(mode.levels[0].shift)
    order = np.lexsort((rng.random(len(va)), group))
    sizes = np.unique(group, return_counts=True)[1]
    turn = np.arange(len(va)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[np.argsort(turn, kind="stable")[:count]])


def _visit(
    control: ControlState,
    level: Level,
    words: npt.NDArray[np.uint32] | Words,
    front: _Front,
    leaves: _Leaves,
    phys_bits: int,
) -> tuple[_Front, Words]:
    """One level: keeps its leaves, gives the tables of the next level and the addresses of reserved entries."""
    mode = control.mode
    start = (front.base // np.uint64(mode.entry_bytes)).astype(np.int64)
    table = words[start[:, None] + np.arange(level.entries)]
    at, index = np.nonzero(table & table.dtype.type(bits.PTE_P))
    entry = table[at, index].astype(np.uint64)
    va = front.va[at] | (index.astype(np.uint64) << np.uint64(level.shift))
    rights = front.rights[at]
    if level.has_rights:
        own = np.full(len(entry), EXECUTABLE, np.uint8)
        own[entry & np.uint64(bits.PTE_RW) != 0] |= WRITABLE
        own[entry & np.uint64(bits.PTE_US) != 0] |= USER
        if mode.has_nx and control.nxe:
            own[entry & np.uint64(bits.PTE_NX) != 0] &= 0xFF ^ EXECUTABLE
        rights = rights & own
    large = np.zeros(len(entry), np.bool_)
    if level.may_map_large and control.pse:
        large = entry & np.uint64(bits.PTE_PS) != 0
    forbidden = np.where(
        large,
        np.uint64(reserved_bits(mode, level.number, True, control.nxe, phys_bits)),
        np.uint64(reserved_bits(mode, level.number, False, control.nxe, phys_bits)),
    )
    bad = entry & forbidden != 0
    leaf = (large | (level.number == 1)) & ~bad
    frame = entry & np.uint64(mode.address_mask)
    if leaf.any():
        inner = np.uint64(level.span - 1)
        target = frame[leaf] & ~inner
        if mode.pse36:
            high = (entry[leaf] & np.uint64(0x1F_E000)) << np.uint64(19)
            target = np.where(large[leaf], target | high, target)
        leaves.va.append(va[leaf])
        leaves.frame.append(target)
        leaves.rights.append(rights[leaf])
        leaves.size.append(np.full(int(leaf.sum()), level.span, np.int64))
    down = ~leaf & ~bad
    return _Front(va[down], frame[down], rights[down]), va[bad]


def _merge(mode: PagingMode, leaves: _Leaves, tables: Ints, odd: Words, capped: bool) -> Ranges:
    if not leaves.va:
        none = np.zeros(0, np.int64)
        empty = np.zeros(0, np.uint64)
        return Ranges(empty, none, none, none.astype(np.uint8), none, tables, _canonical(mode, odd), 0, capped)
    va, frame = np.concatenate(leaves.va), np.concatenate(leaves.frame)
    rights, size = np.concatenate(leaves.rights), np.concatenate(leaves.size)
    order = np.argsort(va, kind="stable")
    va, frame, rights, size = va[order], frame[order], rights[order], size[order]
    span = size.astype(np.uint64)
    joined = (
        (va[:-1] + span[:-1] == va[1:])
        & (frame[:-1] + span[:-1] == frame[1:])
        & (rights[:-1] == rights[1:])
        & (size[:-1] == size[1:])
    )
    if mode.canonical:  # a run does not reach over the hole of non-canonical addresses
        joined &= va[1:] != np.uint64(1 << (mode.va_bits - 1))
    starts = np.flatnonzero(np.concatenate((np.ones(1, np.bool_), ~joined)))
    total = np.add.reduceat(size, starts) >> bits.PAGE_SHIFT
    return Ranges(
        first=_canonical(mode, va[starts]),
        pages=total,
        gfn=(frame[starts] >> np.uint64(bits.PAGE_SHIFT)).astype(np.int64),
        rights=rights[starts],
        page_size=size[starts],
        tables=tables,
        odd=_canonical(mode, odd),
        leaves=len(va),
        capped=capped,
    )


def _canonical(mode: PagingMode, va: Words) -> Words:
    if not mode.canonical:
        return va
    shift = 64 - mode.va_bits
    return ((va << np.uint64(shift)).view(np.int64) >> shift).view(np.uint64)


def _unpaged(layout: Layout) -> Ranges:
    """CR0.PG=0: RAM at its own address, and a page where nothing answers."""
    return Ranges(
        first=np.zeros(1, np.uint64),
        pages=np.asarray([layout.frames], np.int64),
        gfn=np.zeros(1, np.int64),
        rights=np.asarray([WRITABLE | USER | EXECUTABLE], np.uint8),
        page_size=np.asarray([bits.PAGE_SIZE], np.int64),
        tables=np.zeros(0, np.int64),
        odd=np.zeros(0, np.uint64),
        leaves=0,
        capped=False,
    )
