"""Breakpoints at the instructions that change translations, found by scanning executable frames.

QEMU's breakpoints live in the translator: one at a false positive of the scan changes nothing and is never
hit, or hit and stepped over. They match by virtual address in every address space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from harness.machine.gdbstub import breakpoint_packet
from harness.x86.bits import PAGE_SHIFT, PAGE_SIZE
from harness.x86.decode import candidates, decode
from harness.x86.operands import MAX_INSTRUCTION

Bytes = npt.NDArray[np.uint8]


class CodeScanner:
    """Which offsets of which frames may hold such an instruction, and where breakpoints are set for them."""

    def __init__(self, ram: Bytes, msr_writes: bool = True) -> None:
        """msr_writes: look for WRMSR too. Its two bytes are found by accident far more often than the others, so for
        large foreign kernels it is better left out, and a change of EFER noticed at the next stop."""
        self._ram = ram
        self._msr_writes = msr_writes
        self._scanned = np.zeros(len(ram) >> PAGE_SHIFT, dtype=bool)
        self._hits: dict[int, tuple[int, ...]] = {}
        self._hit = np.zeros(len(self._scanned), dtype=bool)  # the keys of _hits, for whole arrays
        self._set: set[int] = set()

    def __len__(self) -> int:
        return len(self._set)

    @property
    def addresses(self) -> frozenset[int]:
        return frozenset(self._set)

    def _scan(self, gfn: int) -> tuple[int, ...]:
        start = gfn << PAGE_SHIFT
        # An instruction may begin at the end of one frame and go on in the next virtual page, whatever frame that
        # is: the opcode bytes seen so far decide, so the last bytes are looked at with a wildcard tail.
        code = self._ram[start : start + PAGE_SIZE].tobytes()
        found = {offset for offset in candidates(code) if self._confirmed(code[offset : offset + MAX_INSTRUCTION])}
        for offset in range(PAGE_SIZE - 3, PAGE_SIZE):
            rest = code[offset + 1 : offset + 2]
            if code[offset] == 0x0F and (not rest or rest in (b"\x22", b"\x01", b"\x38")):
                found.add(offset)
        return tuple(sorted(found))

    def _confirmed(self, code: bytes) -> bool:
        """Whether capstone, too, sees such an instruction there, in 64- or in 32-bit code."""
        kinds = {instruction.kind for width in (64, 32) if (instruction := decode(code, width)) is not None}
        return bool(kinds if self._msr_writes else kinds - {"wrmsr"})

    def forget(self, gfns: Iterable[int] | None = None) -> npt.NDArray[np.int64]:
        """`gfns`, or all, count as not scanned, for code may have changed. Gives those that had been."""
        again = np.flatnonzero(self._scanned)
        if gfns is not None:
            again = np.intersect1d(again, np.fromiter(gfns, np.int64))
        self._scanned[again] = False
        return again

    def executable(self, gfns: npt.NDArray[np.int64], addresses_of: Callable[[int], Iterable[int]]) -> list[bytes]:
        """`gfns` gained an executable mapping: scans the new ones and gives the Z1 packets for every virtual
        address at which a candidate can be executed. `addresses_of`: gfn -> executable page addresses."""
        gfns = gfns[(gfns >= 0) & (gfns < len(self._scanned))]
        new = gfns[~self._scanned[gfns]]
        if len(new):
            for gfn in self._with_opcode(new):
                hits = self._scan(gfn)
                self._hit[gfn] = bool(hits)
                self._hits[gfn] = hits
            self._scanned[new] = True
        packets = []
        for gfn in gfns[self._hit[gfns]].tolist():
            for page in addresses_of(gfn):
                for offset in self._hits[gfn]:
                    address = page + offset
                    if address not in self._set:
                        self._set.add(address)
                        packets.append(breakpoint_packet(address))
        return packets

    def _with_opcode(self, gfns: npt.NDArray[np.int64]) -> list[int]:
        """Those of `gfns` that hold the byte 0F followed by 22, 30, 01 or 38 at all (one vectorised pass)."""
        found: list[int] = []
        for start in range(0, len(gfns), 1024):
            chunk = gfns[start : start + 1024]
            if len(chunk) and chunk[-1] - chunk[0] == len(chunk) - 1:
                first = int(chunk[0]) << PAGE_SHIFT
                pages = self._ram[first : first + (len(chunk) << PAGE_SHIFT)].reshape(-1, PAGE_SIZE)
            else:
                pages = self._ram.reshape(-1, PAGE_SIZE)[chunk]
            escapes = pages == 0x0F
            rows = np.flatnonzero(escapes.any(axis=1))
            for row in rows.tolist():
                after = pages[row][np.flatnonzero(escapes[row][:-1]) + 1]
                tail = bool(escapes[row][-3:].any())
                if tail or np.isin(after, (0x22, 0x30, 0x01, 0x38)).any():
                    found.append(int(chunk[row]))
        return found
