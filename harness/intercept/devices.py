"""The guest-physical address space where the guest has no RAM, on QEMU's `pc` machine.

The machine of live mode is the guest's with more RAM: what answers at an address where neither has RAM answers at the
same machine address. Above the guest's RAM the machine has frames that the guest must not see. Sources: QEMU (7.2)
hw/i386/pc.c, hw/i386/x86.c (firmware), hw/pci-host/i440fx.c (PAM, SMRAM), hw/intc/apic_common.c, hw/timer/hpet.c;
the contents were read in a guest that runs without a harness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from harness.check.layout import DEVICES_END, DEVICES_FIRST, HOLE_END, HOLE_FIRST
from harness.x86.bits import PAGE_SHIFT


class MachineBus(Protocol):
    """Accesses at machine addresses, each of one size (1, 2, 4 or 8 bytes), as the processor makes them."""

    def read_device(self, address: int, size: int) -> int: ...
    def write_device(self, address: int, size: int, value: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Region:
    """Addresses first .. end-1. reached: the machine's own at the same address; else nothing answers there: loads give
    0, stores are lost."""

    name: str
    first: int
    end: int
    reached: bool


# Without a display adapter nothing covers 0xa0000-0xbffff: QEMU has RAM there, which keeps what is stored.
_WINDOW: Final = (
    Region("video memory, RAM without a display adapter", HOLE_FIRST << PAGE_SHIFT, 0xC0000, True),
    Region("option ROMs: zeros, stores are lost", 0xC0000, 0xE0000, True),
    Region("firmware ROM below 1 MiB", 0xE0000, HOLE_END << PAGE_SHIFT, True),
)
_TOP: Final = (
    Region("PCI, not in use", DEVICES_FIRST << PAGE_SHIFT, 0xFEC0_0000, True),
    Region("I/O APIC", 0xFEC0_0000, 0xFEC0_1000, True),
    Region("not in use", 0xFEC0_1000, 0xFED0_0000, True),
    Region("HPET", 0xFED0_0000, 0xFED0_0400, True),
    Region("not in use", 0xFED0_0400, 0xFEE0_0000, True),
    Region("local APIC and message-signalled interrupts", 0xFEE0_0000, 0xFEF0_0000, True),
    Region("not in use, then firmware ROM up to 4 GiB", 0xFEF0_0000, DEVICES_END << PAGE_SHIFT, True),
)


def regions(ram_frames: int) -> tuple[Region, ...]:
    """Everything but RAM of a guest with `ram_frames` frames, in order and without gaps but for its RAM."""
    above = Region("past the end of RAM", ram_frames << PAGE_SHIFT, _TOP[0].first, False)
    return (*_WINDOW, above, *_TOP, Region("above 4 GiB", _TOP[-1].end, 1 << 52, False))


class Devices:
    """What the guest reaches where it has no RAM. ram_frames: of the guest."""

    def __init__(self, bus: MachineBus, ram_frames: int) -> None:
        self._bus = bus
        self._regions = regions(ram_frames)

    def region(self, gpa: int) -> Region:
        """Raises ValueError for an address in the guest's RAM."""
        for region in self._regions:
            if region.first <= gpa < region.end:
                return region
        raise ValueError(f"guest-physical {gpa:#x} is RAM of the guest")

    def read(self, gpa: int, size: int) -> int:
        """A load of `size` bytes. Raises ValueError for an address in the guest's RAM."""
        return self._bus.read_device(gpa, size) if self.region(gpa).reached else 0

    def write(self, gpa: int, size: int, value: int) -> None:
        """A store of `size` bytes. Raises ValueError for an address in the guest's RAM."""
        if self.region(gpa).reached:
            self._bus.write_device(gpa, size, value)
