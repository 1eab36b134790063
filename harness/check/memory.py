"""Guest RAM as the checker needs it, and, for observe mode, as the engine sees it.

The engine sets A and D in guest tables when it fills the shadow; in observe mode the processor does the same by
itself when the probe runs. Were both to write RAM nobody could tell who was right. So the engine's bits go to an
overlay that it reads back as if they were in memory, and `harness.check.accessed_dirty` compares the two. (In live
mode nobody but the engine sets them: `harness.check.live_memory`.)
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from harness.engine import Bytes, Words

Ints = npt.NDArray[np.int64]


class CheckedMemory(Protocol):
    """What the checker needs of a guest's memory and of what the engine did to it, all in guest-physical terms."""

    @property
    def ram(self) -> Bytes:
        """Guest-physical memory as it is, live: uint8, whole frames."""

    @property
    def words(self) -> Words:
        """The same, shape (frames, 512)."""

    @property
    def frames(self) -> int:
        """How many 4 KiB frames the guest has."""

    @property
    def p2m(self) -> Ints | None:
        """mfn of each gfn as of now, -1 where there is none; None: itself."""

    @property
    def m2p(self) -> Ints | None:
        """gfn of each mfn as of now, -1 where it is not the guest's; None: itself."""

    def begin(self) -> None:
        """A checkpoint's walks begin: from here on the bits that the engine sets are needed."""

    def overlaid(self) -> tuple[Ints, Words]:
        """(word indices, bits) that the engine has set in the guest's memory."""

    def strays(self) -> list[int]:
        """Machine addresses outside the guest's memory where the engine has set bits, which it never may."""

    def clear(self) -> None:
        """The checkpoint is over: the bits that the engine set are forgotten."""


class OverlayMemory:
    """`harness.engine.MachineMemory` over guest RAM (uint8, whole frames), which is never written.

    Raises ValueError for a buffer that is not a whole number of frames; reads past the end raise IndexError.
    """

    def __init__(self, ram: Bytes) -> None:
        if ram.nbytes % 4096:
            raise ValueError(f"memory of {ram.nbytes} bytes is not a whole number of 4 KiB frames")
        self.ram = ram
        self._words: Words = ram.view(np.uint64).reshape(-1, 512)
        raw = ram.data.cast("B")
        self._q = raw.cast("Q")
        self._d = raw.cast("I")
        self._bits: dict[int, int] = {}  # word index -> bits set on top of RAM
        self._by_frame: dict[int, list[int]] = {}  # mfn -> word indices with bits

    @property
    def frames(self) -> int:
        return len(self._words)

    def read64(self, address: int) -> int:
        word = address >> 3
        value = self._q[word]
        return value | self._bits.get(word, 0) if self._bits else value

    def read32(self, address: int) -> int:
        value = self._d[address >> 2]
        if self._bits:
            value |= self._bits.get(address >> 3, 0) >> (8 * (address & 4)) & 0xFFFF_FFFF
        return value

    def or64(self, address: int, bits: int) -> None:
        word = address >> 3
        held = self._bits.get(word)
        if held is None:
            if not 0 <= word < len(self._q):
                raise IndexError(f"or64 at {address:#x}: memory ends at {8 * len(self._q):#x}")
            self._by_frame.setdefault(word >> 9, []).append(word)
            held = 0
        self._bits[word] = held | bits

    def or32(self, address: int, bits: int) -> None:
        self.or64(address & ~7, bits << (8 * (address & 4)))

    def page(self, mfn: int) -> Words:
        if mfn not in self._by_frame:
            plain: Words = self._words[mfn]
            return plain
        page: Words = self._words[mfn].copy()
        for word in self._by_frame[mfn]:
            page[word & 511] |= self._bits[word]
        return page

    # What the checker does with it.
    @property
    def touched(self) -> list[int]:
        """mfns that have bits in the overlay."""
        return list(self._by_frame)

    @property
    def words(self) -> Words:
        """RAM itself, without the overlay, shape (frames, 512)."""
        return self._words

    @property
    def p2m(self) -> Ints | None:
        return None

    @property
    def m2p(self) -> Ints | None:
        return None

    def begin(self) -> None:
        """Nothing to do: the overlay is always there."""

    def strays(self) -> list[int]:
        """Nothing: `or64` refuses an address outside."""
        return []

    def overlaid(self) -> tuple[Ints, Words]:
        """(word indices, bits) of the whole overlay."""
        count = len(self._bits)
        return np.fromiter(self._bits, np.int64, count), np.fromiter(self._bits.values(), np.uint64, count)

    def clear(self) -> None:
        """Forgets the overlay: from here on the engine sees what the processor wrote."""
        self._bits.clear()
        self._by_frame.clear()
