"""A small processor for the tests: its own page walk, written once more, with QEMU's habits and a real TLB.

It shares nothing with the walkers under test but the numbers of the bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.engine import Bytes
from harness.x86.control import ControlState

LEVELS = {  # mode: (shifts from the root down, index bits of each, entry bytes, shifts that may be large)
    "nopae": ((22, 12), (10, 10), 4, (22,)),
    "pae": ((30, 21, 12), (2, 9, 9), 8, (21,)),
    "long4": ((39, 30, 21, 12), (9, 9, 9, 9), 8, (30, 21)),
    "long5": ((48, 39, 30, 21, 12), (9, 9, 9, 9, 9), 8, (30, 21)),
}
WIDTH = {"nopae": 32, "pae": 32, "long4": 48, "long5": 57, "unpaged": 32}


@dataclass
class Fault(Exception):
    """A #PF code, or -1 for #GP."""

    code: int


class ModelMmu:
    """Translates for `control` over `ram`, sets A and D there. `tlb` keeps translations until flushed."""

    def __init__(self, ram: Bytes, control: ControlState) -> None:
        self.ram = ram
        self.control = control
        self.tlb: dict[tuple[int, int], int] = {}
        self.sets_accessed = True
        self.sets_dirty = True

    def _load(self, address: int, size: int) -> int:
        return int.from_bytes(self.ram[address : address + size].tobytes(), "little")

    def _mark(self, address: int, bits: int) -> None:
        if not self.sets_accessed:
            bits &= ~0x20
        if not self.sets_dirty:
            bits &= ~0x40
        if address < len(self.ram):
            self.ram[address] |= np.uint8(bits)

    def translate(self, va: int, op: int) -> int:
        """The physical address; raises Fault. Fills the TLB as it goes."""
        known = self.tlb.get((va >> 12, op))
        if known is not None:
            return known << 12 | va & 0xFFF
        gpa = self._walk(va, op)
        self.tlb[va >> 12, op] = gpa >> 12
        return gpa

    def _walk(self, va: int, op: int) -> int:
        c = self.control
        mode = c.mode.name
        if mode == "unpaged":
            return va
        user, write, fetch = op & 4, op & 3 == 1, op & 3 == 2
        base_code = (2 if write else 0) | (4 if user else 0)
        if fetch and (c.efer >> 11 & 1 or c.cr4 >> 20 & 1):  # QEMU looks at NXE whatever the mode
            base_code |= 16
        if c.mode.canonical:
            high = va >> (WIDTH[mode] - 1)
            if high not in (0, (1 << (65 - WIDTH[mode])) - 1):
                raise Fault(-1)
        shifts, widths, size, large_at = LEVELS[mode]
        base = c.cr3 & (0xFFFFFFE0 if mode == "pae" else 0xFFFFF000 if mode == "nopae" else 0xFFFFFFFFFF000)
        w, u, x = 2, 4, True
        nxe = bool(c.efer >> 11 & 1)
        for shift, width in zip(shifts, widths, strict=True):
            where = base + (va >> shift & (1 << width) - 1) * size
            entry = self._load(where, size)
            if not entry & 1:
                raise Fault(base_code)
            top = mode == "pae" and shift == 30
            large = shift in large_at and bool(entry & 0x80) and bool(mode != "nopae" or c.cr4 & 0x10)
            leaf = large or shift == 12
            if size == 8:
                bad = entry & 0x000F_FF00_0000_0000
                if not nxe or top:
                    bad |= entry & 1 << 63
                if mode == "pae":
                    bad |= entry & 0x7FF << 52
                if large:
                    bad |= entry & (1 << shift) - 1 & ~0x1FFF
                elif entry & 0x80 and shift > 30:
                    bad |= 0x80
            else:
                bad = entry & 1 << 21 if large else 0
            if bad:
                raise Fault(base_code | 8)  # P=0: QEMU 7.2
            if not top:
                w, u, x = w & entry, u & entry, x and not (size == 8 and nxe and entry >> 63)
            if leaf:
                self._check(entry, op, base_code, bool(w), bool(u), x)
                self._mark(where, 0x60 if write else 0x20)
                mask = (1 << shift) - 1
                frame = entry & 0xFFFFFFFFFF000 & ~mask
                if large and mode == "nopae":
                    frame |= (entry >> 13 & 0xFF) << 32
                return frame | va & mask
            self._mark(where, 0x20)
            base = entry & 0xFFFFFFFFFF000
        raise AssertionError

    def _check(self, entry: int, op: int, code: int, w: bool, u: bool, x: bool) -> None:
        c = self.control
        user, write, fetch = bool(op & 4), op & 3 == 1, op & 3 == 2
        wp = bool(c.cr0 >> 16 & 1)
        if user and not u:
            raise Fault(code | 1)
        allowed = not (fetch and not x) and not (write and not w and (user or wp))
        if not user and u:
            allowed = allowed and not c.cr4 >> (20 if fetch else 21) & 1
        if c.mode.canonical and c.cr4 >> 22 & 1 and u and not fetch:
            key = c.pkru >> (entry >> 59 & 15) * 2 & 3
            if key & 1 or (key & 2 and write and (user or wp)):
                raise Fault(code | 1 | 32)
        if not allowed:
            raise Fault(code | 1)
