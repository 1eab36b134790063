"""Tags: what proves *which* frame a probe reached.

Every frame has a slot of 16 bytes that names it (`harness.machine.mailbox.tag_slot`): code that a fetch executes, a
word that a load reads, a word that a store overwrites. Most frames were given theirs before reset. Where a guest
has used the place, a slot is planted for the time of the checkpoint, and everything is put back exactly: data
through the RAM map, code bytes through `CheckTarget.plant`, because QEMU (7.2) keeps translated code of bytes that
change behind its back.

A slot in a page table takes entries that are not present, and leaves them not present: its dwords are even.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.check.layout import Layout
from harness.check.verdict import Frames, Mask
from harness.engine import Bytes
from harness.machine.mailbox import TAG_OFFSET, code_tag, load_tag, tag_slot

Ints = npt.NDArray[np.int64]
Dwords = npt.NDArray[np.uint32]
Plant = Callable[[list[tuple[int, bytes]]], None]

LOAD_AT: Final = 8  # bytes into the slot
STORE_AT: Final = 12
SLOT_PART: Final = np.asarray([LOAD_AT, STORE_AT, 0, 0], np.int64)  # by access & 3: where in the slot it aims
NO_SLOT: Final = -1
CODE_PLANTS: Final = 16
"""Frames per checkpoint that get code planted: each costs two writes through the gdbstub, some 100 us each."""

_LOAD_BASE: Final = load_tag(0)
_CODE_BASE: Final = code_tag(0)
_PLACES: Final = 1020  # dwords of a frame that are not in its slot


@dataclass(frozen=True, slots=True)
class FrameKinds:
    """What may be done to a frame while the guest serves probes.

    tables: guest tables, only entries that are not present may change. kept: only zero bytes may change (the
    guest's image). closed: nothing may change (what the probe server itself uses).
    """

    tables: frozenset[int]
    kept: frozenset[int]
    closed: frozenset[int]
    entry_bytes: int


@dataclass(slots=True)
class Slots:
    """Per page: offset of the slot of its frame, NO_SLOT without; and whether code is or may be there."""

    offset: Ints
    executable: Mask


def decode_load(values: Dwords, frames: int) -> Frames:
    """The gfn that each loaded value names, -1 where it is no frame's tag."""
    return _decode(values, _LOAD_BASE, frames)


def decode_code(values: Dwords, frames: int) -> Frames:
    """The gfn that each fetch's EAX names, -1 where it is no frame's tag."""
    return _decode(values, _CODE_BASE, frames)


def _decode(values: Dwords, base: int, frames: int) -> Frames:
    gfn = (values.astype(np.int64) - base) >> 1
    good = (values & np.uint32(1) == 0) & (gfn >= 0) & (gfn < frames)
    return np.where(good, gfn, -1)


class TagBoard:
    """The tags of one checkpoint: choose slots, plant, verify, restore. Use once."""

    def __init__(self, ram: Bytes, layout: Layout, plant: Plant, kinds: FrameKinds) -> None:
        self.layout = layout
        self.kinds = kinds
        self.dwords: Dwords = ram.view(np.uint32)
        self._bytes = ram
        self._plant = plant
        self._chosen: dict[int, int] = {}  # gfn whose tag is not intact -> slot offset or NO_SLOT
        self._code_frames: set[int] = set()
        self._planted: set[tuple[int, int]] = set()  # (gfn, offset) that need planting
        self._saved: list[tuple[Ints, Dwords]] = []
        self._saved_code: list[tuple[int, bytes]] = []

    def slots(self, gfns: Frames) -> Slots:
        """Chooses a slot for the frame behind each page (gfn -1 where there is none)."""
        offset = np.full(len(gfns), NO_SLOT, np.int64)
        executable = np.zeros(len(gfns), np.bool_)
        ram = self.layout.ram(gfns)
        intact = self._intact(gfns, ram)
        closed = np.isin(gfns, np.fromiter(self.kinds.closed, np.int64, len(self.kinds.closed)))
        good = intact & ~closed
        offset[good] = TAG_OFFSET
        executable[good] = True
        for at in np.flatnonzero(ram & ~intact & ~closed).tolist():
            gfn = int(gfns[at])
            chosen = self._chosen.get(gfn)
            if chosen is None:
                chosen = self._chosen[gfn] = self._find(gfn)
                if chosen != NO_SLOT:
                    self._planted.add((gfn, chosen))
                    if len(self._code_frames) < CODE_PLANTS:
                        self._code_frames.add(gfn)
            offset[at] = chosen
            executable[at] = chosen != NO_SLOT and gfn in self._code_frames
        return Slots(offset, executable)

    def also(self, gfn: int, offset: int) -> bool:
        """Makes `offset` a slot of `gfn` too (the other frame that a stale address may lead to), if it can be one."""
        if offset == NO_SLOT or gfn in self.kinds.closed or not self.layout.is_ram(gfn):
            return False
        if (gfn, offset) in self._planted:
            return True
        one = np.asarray([gfn], np.int64)
        if offset == TAG_OFFSET and bool(self._intact(one, np.ones(1, np.bool_))[0]):
            return True
        if not self._usable(gfn)[offset // 16]:
            return False
        self._planted.add((gfn, offset))
        return True

    def _intact(self, gfns: Frames, ram: Mask) -> Mask:
        at = (np.where(ram, gfns, 0) << 10) + TAG_OFFSET // 4
        code = ((gfns << 1) | _CODE_BASE) & 0xFFFF_FFFF
        first = (0xB8 | code << 8) & 0xFFFF_FFFF
        second = (code >> 24) | 0x9080_CD00
        load = ((gfns << 1) | _LOAD_BASE) & 0xFFFF_FFFF
        d = self.dwords
        same: Mask = ram & (d[at] == first) & (d[at + 1] == second) & (d[at + 2] == load)
        return same

    def _usable(self, gfn: int) -> Mask:
        """Which of the 256 16-byte places of a frame may hold a slot."""
        page = self.dwords[gfn << 10 : (gfn + 1) << 10]
        if gfn in self.kinds.tables:
            entries = page if self.kinds.entry_bytes == 4 else page[::2]
            taken: Mask = np.any((entries & np.uint32(1)).reshape(256, -1), axis=1)
            return ~taken
        if gfn in self.kinds.kept:
            used: Mask = np.any(page.reshape(256, 4), axis=1)
            return ~used
        return np.ones(256, np.bool_)

    def _find(self, gfn: int) -> int:
        """The offset of a new slot: zero bytes where there are any, the usual offset before any other."""
        usable = self._usable(gfn)
        zero = usable & ~self.dwords[gfn << 10 : (gfn + 1) << 10].reshape(256, 4).any(axis=1)
        for places in (zero, usable):
            if places[TAG_OFFSET // 16]:
                return TAG_OFFSET
            if places.any():
                return int(places.argmax()) * 16
        return NO_SLOT

    def store_places(self, gfns: Frames, offsets: Ints) -> Ints:
        """A dword for each store of its own: byte offsets in the frames `gfns`, NO_SLOT where none is left.

        `offsets` are the frames' slots. The first store to a frame takes the slot's own word.
        """
        places = np.where(offsets == NO_SLOT, NO_SLOT, offsets + STORE_AT)
        order = np.argsort(gfns, kind="stable")
        ordered = gfns[order]
        new = np.flatnonzero(np.concatenate((np.ones(1, np.bool_), ordered[1:] != ordered[:-1])))
        turn = np.empty(len(gfns), np.int64)
        turn[order] = np.arange(len(gfns)) - np.repeat(new, np.diff(np.append(new, len(gfns))))
        later = np.flatnonzero((turn > 0) & (places != NO_SLOT))
        places[later] = (places[later] + 4 * turn[later]) & 0xFFF
        places[later[turn[later] > _PLACES]] = NO_SLOT
        narrow = self.kinds.tables | self.kinds.kept
        for at in later.tolist():
            if int(gfns[at]) in narrow:
                places[at] = self._narrow_place(int(gfns[at]), int(offsets[at]), int(turn[at]))
        slots = np.asarray([gfn << 10 | (offset >> 2) + i for gfn, offset in self._planted for i in range(4)], np.int64)
        taken = (turn > 0) & np.isin(gfns << 10 | places >> 2, slots)
        places[taken] = NO_SLOT
        return places

    def _narrow_place(self, gfn: int, offset: int, turn: int) -> int:
        """The `turn`-th (from 1) dword of a table or image frame, outside its slot, that may change."""
        page = self.dwords[gfn << 10 : (gfn + 1) << 10]
        if gfn in self.kinds.tables and self.kinds.entry_bytes == 8:
            free = np.repeat(page[::2] & np.uint32(1) == 0, 2)
        elif gfn in self.kinds.tables:
            free = page & np.uint32(1) == 0
        else:
            free = page == 0
        free[offset >> 2 : (offset >> 2) + 4] = False
        places = np.flatnonzero(free)
        return int(places[turn - 1]) * 4 if turn <= len(places) else NO_SLOT

    def plant(self, code_wanted: set[int], places: Ints) -> None:
        """Plants what is missing: load tags, code in the frames `code_wanted`; and saves the dwords `places`.

        places: indices into RAM as dwords, where stores may land.
        """
        if self._planted:
            pairs = np.asarray(sorted(self._planted), np.int64)
            tags = (pairs[:, 0] << 10) + ((pairs[:, 1] + LOAD_AT) >> 2)
            self._save(tags)
            self.dwords[tags] = ((pairs[:, 0] << 1) | _LOAD_BASE).astype(np.uint32)
        self._save(np.unique(places))
        code = [pair for pair in sorted(self._planted) if pair[0] in code_wanted]
        if code:
            self._saved_code = [
                (at, self._bytes[at : at + 8].tobytes()) for at in ((gfn << 12) + offset for gfn, offset in code)
            ]
            self._plant([((gfn << 12) + offset, tag_slot(gfn)[:8]) for gfn, offset in code])

    @property
    def planted(self) -> set[int]:
        """gfns that get a tag for the time of the checkpoint."""
        return {gfn for gfn, _ in self._planted}

    def _save(self, at: Ints) -> None:
        self._saved.append((at, self.dwords[at]))

    def where(self, token: int, offset: int) -> int:
        """The frame that holds `token` at byte `offset`, -1 when none does: where a stray store went."""
        found = np.flatnonzero(self.dwords[offset >> 2 :: 1024] == np.uint32(token))
        return int(found[0]) if len(found) else -1

    def restore(self) -> None:
        """Puts back every byte that was planted or stored over."""
        if self._saved_code:
            self._plant(self._saved_code)
            self._saved_code = []
        for at, held in reversed(self._saved):
            self.dwords[at] = held
        self._saved = []
