"""Which MSRs of a guest in live mode are not the processor's own, and the map that tells the processor so.

Source: AMD APM vol. 2, 15.11 (MSR intercepts); vol. 2, 15.30 (SVM's MSRs).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from harness.x86.bits import MSR_EFER

MSR_VM_CR: Final = 0xC001_0114
MSR_IGNNE: Final = 0xC001_0115
MSR_SMM_CTL: Final = 0xC001_0116
MSR_VM_HSAVE_PA: Final = 0xC001_0117
MSR_SVM_KEY: Final = 0xC001_0118

MAP_BYTES: Final = 0x2000
# First MSR of each range of 8192 that the map covers, in the order of its 2 KiB quarters; the last one is reserved.
RANGES: Final = (0x0000_0000, 0xC000_0000, 0xC001_0000)
RANGE_LENGTH: Final = 0x2000

READ: Final = 1
WRITE: Final = 2


@dataclass(frozen=True, slots=True)
class InterceptedMsr:
    """accesses: READ, WRITE or both. kept: a write is remembered and read back; otherwise it is lost and reads give 0,
    as with an MSR that QEMU's processor does not have (7.2: no #GP for any number)."""

    number: int
    name: str
    accesses: int
    kept: bool
    why: str


INTERCEPTED: Final = (
    InterceptedMsr(MSR_EFER, "EFER", READ | WRITE, True, "the guest's is not the one that the processor runs with"),
    InterceptedMsr(MSR_VM_CR, "VM_CR", READ | WRITE, False, "SVM is not offered"),
    InterceptedMsr(MSR_IGNNE, "IGNNE", READ | WRITE, False, "SVM's"),
    InterceptedMsr(MSR_SMM_CTL, "SMM_CTL", READ | WRITE, False, "SVM's"),
    # QEMU keeps this one with or without SVM; the monitor's own host save area must survive it.
    InterceptedMsr(MSR_VM_HSAVE_PA, "VM_HSAVE_PA", READ | WRITE, True, "the monitor's host save area"),
    InterceptedMsr(MSR_SVM_KEY, "SVM_KEY", READ | WRITE, False, "SVM's"),
)


def map_position(number: int) -> tuple[int, int] | None:
    """(byte, bit) of the READ bit of MSR `number` in the map; WRITE is the bit after it. None: not in the map, such an
    access is always intercepted."""
    for quarter, first in enumerate(RANGES):
        if first <= number < first + RANGE_LENGTH:
            at = quarter * RANGE_LENGTH + number - first
            return at >> 2, (at & 3) * 2
    return None


def msr_permission_map(intercepted: Iterable[InterceptedMsr] = INTERCEPTED) -> bytes:
    """The 8 KiB map with which exactly `intercepted` (and every MSR outside the map) leaves the guest.

    Raises ValueError for an MSR that the map does not cover.
    """
    out = bytearray(MAP_BYTES)
    for msr in intercepted:
        position = map_position(msr.number)
        if position is None:
            raise ValueError(f"MSR {msr.number:#x} ({msr.name}) is in none of the map's ranges")
        byte, bit = position
        out[byte] |= msr.accesses << bit
    return bytes(out)


class HiddenMsrs:
    """The guest's view of the intercepted MSRs but EFER, which is part of its `ControlState`."""

    def __init__(self) -> None:
        self._values = {msr.number: 0 for msr in INTERCEPTED if msr.kept and msr.number != MSR_EFER}

    def read(self, number: int) -> int:
        """What RDMSR gives; 0 for every MSR that is not kept, those outside the map included."""
        return self._values.get(number, 0)

    def write(self, number: int, value: int) -> None:
        if number in self._values:
            self._values[number] = value & (1 << 64) - 1
