"""What lies where in the guest's physical address space, as far as a probe has to care (QEMU's `pc` machine).

RAM is one block from 0, seen through the shared map, with the window 0xa0000-0xfffff cut out: there the processor
sees video memory and ROM, not what the map holds (QEMU `hw/pci-host/i440fx.c`, PAM registers). From 0xfe000000
to 4 GiB lie the interrupt controllers, the HPET and the ROM. Between the end of RAM and there nothing answers:
loads give 0 without a fault. In live mode what is no memory of the guest's has no machine frame, nor may some of its
RAM have one for a while.
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


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """frames: how many 4 KiB frames the RAM map has. p2m: int64 (frames,), the mfn of each as of now, -1 where there
    is none; None where every frame has its own. Raises ValueError above 3.5 GiB."""

    frames: int
    p2m: npt.NDArray[np.int64] | None = None

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
        ram = self.mapped(gfn) & ~self.in_hole(gfn)
        return ram if self.p2m is None else ram & (self.p2m[np.where(ram, gfn, 0)] >= 0)

    def quiet(self, gfn: npt.NDArray[np.int64]) -> Mask:
        """Whether a load there is harmless: RAM, ROM, or memory where nothing answers, but no device."""
        return (gfn >= 0) & ((gfn < DEVICES_FIRST) | (gfn >= DEVICES_END))

    def is_ram(self, gfn: int) -> bool:
        if not 0 <= gfn < self.frames or HOLE_FIRST <= gfn < HOLE_END:
            return False
        return self.p2m is None or bool(self.p2m[gfn] >= 0)
