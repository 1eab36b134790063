"""The entries of guest tables by number, as a fault reads them: four or more of them each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from harness.engine import MachineMemory, reads_plainly

WIDE: Final = 3  # log2 of the bytes of an entry
NARROW: Final = 2


class Entries(Protocol):
    """Machine memory as entries of one size; the number of one is its byte address >> log2 of that."""

    def __getitem__(self, number: int, /) -> int: ...


class _Read:
    """Entries that must be asked for one by one."""

    __slots__ = ("_read", "_shift")

    def __init__(self, read: Callable[[int], int], shift: int) -> None:
        """read: of an entry, by address."""
        self._read = read
        self._shift = shift

    def __getitem__(self, number: int, /) -> int:
        return self._read(number << self._shift)


def entries_in(memory: MachineMemory, shift: int) -> Entries:
    """`memory` as entries of 1 << `shift` bytes (WIDE or NARROW): where it can be, its very buffer."""
    if reads_plainly(memory):
        return memory.bytes.data.cast("B").cast("Q" if shift == WIDE else "I")
    return _Read(memory.read64 if shift == WIDE else memory.read32, shift)
