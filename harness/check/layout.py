"""What lies where in the machine's physical address space, as far as a probe has to care (QEMU's `pc` machine).

RAM is one block from 0, seen through the shared map, with the window 0xa0000-0xfffff cut out: there the processor
sees video memory and ROM, not what the map holds (QEMU `hw/pci-host/i440fx.c`, PAM registers). From 0xfe000000
to 4 GiB lie the interrupt controllers, the HPET and the ROM. Between the end of RAM and there nothing answers:
loads give 0 without a fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.check.verdict import Mask

HOLE_FIRST: Final = 0xA0
HOLE_END: Final = 0x100
DEVICES_FIRST: Final = 0xFE000
DEVICES_END: Final = 0x100000
RAM_BELOW_4G: Final = 0xE0000
"""A `pc` machine puts at most 3.5 GiB below 4 GiB; what is above is not where the map has it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """frames: how many 4 KiB frames the RAM map has. Raises ValueError above 3.5 GiB."""

    frames: int

    def __post_init__(self) -> None:
        if self.frames > RAM_BELOW_4G:
            raise ValueError(f"{self.frames} frames of RAM: the checker knows the layout up to 3.5 GiB only")

    def mapped(self, gfn: npt.NDArray[np.int64]) -> Mask:
        """Whether the RAM map has this frame (the window included); gfn -1 is nowhere."""
        return (gfn >= 0) & (gfn < self.frames)

    def in_hole(self, gfn: npt.NDArray[np.int64]) -> Mask:
        return (gfn >= HOLE_FIRST) & (gfn < HOLE_END)

    def ram(self, gfn: npt.NDArray[np.int64]) -> Mask:
        """Whether the processor sees there what the map holds."""
        return self.mapped(gfn) & ~self.in_hole(gfn)

    def quiet(self, gfn: npt.NDArray[np.int64]) -> Mask:
        """Whether a load there is harmless: RAM, ROM, or memory where nothing answers, but no device."""
        return (gfn >= 0) & ((gfn < DEVICES_FIRST) | (gfn >= DEVICES_END))

    def is_ram(self, gfn: int) -> bool:
        return 0 <= gfn < self.frames and not HOLE_FIRST <= gfn < HOLE_END
