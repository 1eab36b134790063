"""Memory in live mode: the engine works on machine frames, the checker looks at guest-physical memory.

The processor walks the shadow there, so the A and D bits of the guest's own tables are the engine's to set: it writes
them through to RAM. While a checkpoint is at work they are recorded as well, so that what it set and what RAM holds
afterwards can both be held against the guest walk.
"""

from __future__ import annotations

import numpy as np

from harness.check.memory import Ints
from harness.engine import Bytes, PlainMemory, Words
from harness.machine.guest_view import GuestView


class LoggedMemory(PlainMemory):
    """`harness.engine.MachineMemory` over all RAM of the machine, which records the bits that are set in it.

    recording: whether it does. recorded: index of the 8-byte word in machine memory -> bits.
    """

    def __init__(self, buffer: Bytes) -> None:
        """Raises ValueError for a buffer that is not a whole number of frames."""
        super().__init__(buffer)
        self.recording = False
        self.recorded: dict[int, int] = {}

    def or64(self, address: int, bits: int) -> None:
        self._q[address >> 3] |= bits  # not by super(): it happens at most exits
        if self.recording:
            word = address >> 3
            self.recorded[word] = self.recorded.get(word, 0) | bits

    def or32(self, address: int, bits: int) -> None:
        self._d[address >> 2] |= bits
        if self.recording:
            word = address >> 3
            self.recorded[word] = self.recorded.get(word, 0) | bits << (8 * (address & 4))


class GuestMemory:
    """`harness.check.memory.CheckedMemory` for the guest of `view`, whose engine has `memory`, over the same RAM."""

    def __init__(self, memory: LoggedMemory, view: GuestView) -> None:
        self._memory = memory
        self._view = view

    @property
    def ram(self) -> Bytes:
        return self._view.bytes

    @property
    def words(self) -> Words:
        return self._view.words

    @property
    def frames(self) -> int:
        return self._view.frames

    @property
    def p2m(self) -> Ints | None:
        return self._view.p2m

    @property
    def m2p(self) -> Ints | None:
        return self._view.m2p

    def begin(self) -> None:
        self._memory.recorded.clear()
        self._memory.recording = True

    def clear(self) -> None:
        self._memory.recording = False
        self._memory.recorded.clear()

    def overlaid(self) -> tuple[Ints, Words]:
        """(word indices in guest-physical memory, bits) that were recorded, by the p2m as of now."""
        word, gfn, bits = self._recorded()
        own = gfn >= 0
        return gfn[own] << 9 | word[own] & 511, bits[own]

    def strays(self) -> list[int]:
        word, gfn, _ = self._recorded()
        return [int(one) << 3 for one in word[gfn < 0]]

    def _recorded(self) -> tuple[Ints, Ints, Words]:
        recorded = self._memory.recorded
        word = np.fromiter(recorded, np.int64, len(recorded))
        return word, self._view.m2p[word >> 9], np.fromiter(recorded.values(), np.uint64, len(recorded))
