"""What is in a guest's RAM before its first instruction: its image, the boot information, tagged frames."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.machine.errors import BadImage
from harness.machine.image import Image
from harness.machine.mailbox import BOOT_INFO, BOOT_MAGIC, TAG_BYTES, TAG_OFFSET, code_tag, load_tag, tag_slot
from harness.machine.ram import RamMap
from harness.x86.bits import PAGE_SHIFT, PAGE_SIZE

# Video memory, option ROMs and the BIOS's copy below 1 MiB: PC addresses where RAM does not answer.
HOLE: Final = range(0xA0000 >> PAGE_SHIFT, 0x100000 >> PAGE_SHIFT)


def identity_p2m(frames: int) -> npt.NDArray[np.int64]:
    """gfn -> mfn of a PC with `frames` frames of RAM in observe mode: itself, -1 in the hole below 1 MiB."""
    p2m = np.arange(frames, dtype=np.int64)
    p2m[HOLE.start : HOLE.stop] = -1
    return p2m


def place(image: Image, seed: int) -> Callable[[RamMap], None]:
    """What fills RAM for `image`. The function raises BadImage if the image does not fit."""

    def fill(ram: RamMap) -> None:
        taken = np.zeros(ram.size >> PAGE_SHIFT, dtype=bool)
        taken[HOLE.start : HOLE.stop] = True
        for segment in image.segments:
            end = segment.paddr + segment.size
            if end > ram.size:
                raise BadImage(f"{image.path}: needs RAM up to {end:#x}, the machine has {ram.size:#x}")
            taken[segment.paddr >> PAGE_SHIFT : -(-end // PAGE_SIZE)] = True
        write_tags(ram, np.flatnonzero(~taken))
        for segment in image.segments:
            ram.write(segment.paddr, segment.data)
        ram.write(BOOT_INFO, struct.pack("<4I", BOOT_MAGIC, image.entry, ram.size, seed & 0xFFFFFFFF))

    return fill


def write_tags(ram: RamMap, gfns: npt.NDArray[np.int64]) -> None:
    """Tags the frames `gfns` (see `xi_abi.h`), all at once. Only before the guest runs: the tags hold code."""
    words = gfns.astype("<u4") << np.uint32(1)  # tags of frame n are the tags of frame 0 plus 2n
    slots = np.zeros((len(gfns), TAG_BYTES), dtype=np.uint8)
    slots[:] = np.frombuffer(tag_slot(0), dtype=np.uint8)
    slots[:, 1:5] = _dwords(words | np.uint32(code_tag(0)))
    slots[:, 8:12] = _dwords(words | np.uint32(load_tag(0)))
    frames = ram.bytes.reshape(-1, PAGE_SIZE)
    frames[gfns, TAG_OFFSET : TAG_OFFSET + TAG_BYTES] = slots


def _dwords(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    return values.view(np.uint8).reshape(-1, 4)
