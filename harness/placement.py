"""What is in RAM before the first instruction: a guest's image, the boot information, tagged frames.

In live mode the same is laid out in guest-physical terms over the frames that the guest has, and what is not the
guest's is poisoned.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.live.layout import LiveLayout
from harness.machine.errors import BadImage
from harness.machine.image import Image
from harness.machine.mailbox import BOOT_INFO, BOOT_MAGIC, TAG_BYTES, TAG_OFFSET, code_tag, load_tag, tag_slot
from harness.machine.monitor_abi import MONITOR_MAGIC, area_bytes
from harness.machine.ram import POISON, RamMap
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
        write_tags(ram, _free_frames(image, ram.size))
        for segment in image.segments:
            ram.write(segment.paddr, segment.data)
        ram.write(BOOT_INFO, _boot_info(image, ram.size, seed))

    return fill


def place_live(image: Image, layout: LiveLayout, seed: int, vcpus: int = 1) -> Callable[[RamMap], None]:
    """What fills machine memory for `image` in live mode: to the guest it looks as `place` leaves it.

    Machine memory below the guest's frames is the monitor's: its boot information (`firmware/xi_monitor.h`) for `vcpus`
    processors, its area and the pool (zero). All the rest that is not the guest's is POISON. Raises ValueError for more
    vCPUs than the area has room for; the function raises BadImage if the image does not fit, ValueError if `ram` is not
    the machine's of `layout`.
    """
    if vcpus < 1 or area_bytes(vcpus) > layout.monitor_bytes:
        raise ValueError(f"{vcpus} vCPUs do not fit the monitor's area of {layout.monitor_bytes:#x} bytes")

    def fill(ram: RamMap) -> None:
        if ram.size != layout.machine_mib << 20:
            raise ValueError(f"RAM of {ram.size:#x} bytes for a layout of {layout.machine_mib} MiB")
        frames = ram.bytes.reshape(-1, PAGE_SIZE)
        frames[: HOLE.start] = POISON
        frames[layout.pool_base_mfn + layout.pool_frames : layout.first_mfn] = POISON
        frames[layout.spare] = POISON
        monitor = struct.pack("<4I", MONITOR_MAGIC, vcpus, layout.monitor_area, layout.monitor_bytes)
        ram.write(BOOT_INFO, monitor)
        gfns = _free_frames(image, layout.guest_bytes)
        write_tags(ram, gfns, layout.p2m[gfns])
        for segment in image.segments:
            if any(gfn in HOLE for gfn in segment.frames):
                raise BadImage(f"{image.path}: loads at {segment.paddr:#x}, where a PC has no RAM")
            _write_scattered(ram, layout, segment.paddr, segment.data)
        _write_scattered(ram, layout, BOOT_INFO, _boot_info(image, layout.guest_bytes, seed))

    return fill


def _free_frames(image: Image, size: int) -> npt.NDArray[np.int64]:
    """The gfns of a guest with `size` bytes of RAM that `image` leaves free. Raises BadImage if it does not fit."""
    taken = np.zeros(size >> PAGE_SHIFT, dtype=bool)
    taken[HOLE.start : HOLE.stop] = True
    for segment in image.segments:
        end = segment.paddr + segment.size
        if end > size:
            raise BadImage(f"{image.path}: needs RAM up to {end:#x}, the machine has {size:#x}")
        taken[segment.paddr >> PAGE_SHIFT : -(-end // PAGE_SIZE)] = True
    return np.flatnonzero(~taken)


def _boot_info(image: Image, size: int, seed: int) -> bytes:
    return struct.pack("<4I", BOOT_MAGIC, image.entry, size, seed & 0xFFFFFFFF)


def _write_scattered(ram: RamMap, layout: LiveLayout, address: int, data: bytes) -> None:
    """Writes `data` at the guest-physical `address`, frame by frame."""
    at = 0
    while at < len(data):
        gfn, offset = divmod(address + at, PAGE_SIZE)
        room = PAGE_SIZE - offset
        ram.write((int(layout.p2m[gfn]) << PAGE_SHIFT) + offset, data[at : at + room])
        at += room


def write_tags(ram: RamMap, gfns: npt.NDArray[np.int64], mfns: npt.NDArray[np.int64] | None = None) -> None:
    """Tags the frames `gfns` (see `xi_abi.h`), all at once; mfns: the machine frame of each, itself when None.

    Only before the guest runs: the tags hold code.
    """
    words = gfns.astype("<u4") << np.uint32(1)  # tags of frame n are the tags of frame 0 plus 2n
    slots = np.zeros((len(gfns), TAG_BYTES), dtype=np.uint8)
    slots[:] = np.frombuffer(tag_slot(0), dtype=np.uint8)
    slots[:, 1:5] = _dwords(words | np.uint32(code_tag(0)))
    slots[:, 8:12] = _dwords(words | np.uint32(load_tag(0)))
    frames = ram.bytes.reshape(-1, PAGE_SIZE)
    frames[gfns if mfns is None else mfns, TAG_OFFSET : TAG_OFFSET + TAG_BYTES] = slots


def _dwords(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    return values.view(np.uint8).reshape(-1, 4)
