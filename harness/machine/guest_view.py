"""A guest's memory as one array in guest-physical order, although its frames lie scattered over the machine.

A range of virtual addresses as long as the guest's memory is reserved, and the frames of the RAM file are mapped into
it one by one, in the order of the p2m. Who reads the view then needs no p2m: it is the same memory, not a copy.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.machine.errors import MachineError
from harness.machine.ram import Bytes, RamMap

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

PAGE: Final = 4096
NO_FRAME: Final = -1
_MAP_FIXED: Final = 0x10  # <sys/mman.h>; Python 3.11's mmap has no names for these two
_MAP_NORESERVE: Final = 0x4000
_READ_WRITE: Final = mmap.PROT_READ | mmap.PROT_WRITE
_FILE: Final = mmap.MAP_SHARED | _MAP_FIXED
_NOTHING: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_FAILED: Final = ctypes.c_void_p(-1).value
_MAX_MAP_COUNT: Final = Path("/proc/sys/vm/max_map_count")
_OWN_MAPS: Final = Path("/proc/self/maps")
_SPARE_MAPS: Final = 1024
"""Mappings that are left to the rest of the process, and to the pieces that `remap` makes of longer runs."""

_MMAP: Final = ctypes.CDLL(None, use_errno=True).mmap
_MMAP.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_MMAP.restype = ctypes.c_void_p


class GuestView:
    """Guest-physical memory of the machine whose RAM is `ram`, live in both directions.

    bytes: uint8 (frames * 4096). words: uint64 (frames, 512). A frame without an mfn reads as zeros, and what is
    written there reaches nobody. p2m: int64 (frames,), mfn of each gfn, -1 without. m2p: int64 (machine frames,), gfn
    of each mfn, -1 where it is not the guest's. Both follow `remap`, neither is to be written. to_mfn: `p2m` for single
    looks.

    As with the RAM map itself: writing *code* here leaves QEMU's translated blocks stale (7.2).
    The arrays may be kept for ever: the memory is unmapped when the last of them is gone.
    """

    def __init__(self, ram: RamMap, p2m: Ints) -> None:
        """`ram`'s descriptor must be open. Raises ValueError for a p2m that names a frame outside RAM, or one twice;
        MachineError when the kernel does not allow as many mappings as it takes (`vm.max_map_count`)."""
        self._ram = ram
        self.p2m: Ints = np.array(p2m, np.int64)
        self.to_mfn = self.p2m.data.cast("B").cast("q")
        self.m2p = _inverse(self.p2m, ram.size // PAGE)
        starts = _runs(self.p2m)
        _check_limit(len(starts))
        # The reservation owns the addresses: whatever is mapped over it goes when it goes, and every array holds it.
        reserved = mmap.mmap(-1, len(self.p2m) * PAGE, _NOTHING, _READ_WRITE)
        self.bytes: Bytes = np.frombuffer(reserved, np.uint8)
        self.words: Words = self.bytes.view(np.uint64).reshape(-1, PAGE // 8)
        self._base = self.bytes.ctypes.data
        ends = np.append(starts[1:], len(self.p2m))
        for first, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if self.to_mfn[first] >= 0:
                self._map(first, self.to_mfn[first], end - first)

    @property
    def frames(self) -> int:
        """How many guest frames there are, backed or not."""
        return len(self.p2m)

    def remap(self, gfn: int, mfn: int) -> None:
        """From now on `gfn` is the machine frame `mfn` (-1: none, it reads as zeros). Contents are not moved.

        Raises ValueError when `gfn` is not the guest's, or `mfn` is outside RAM or another gfn's; MachineError as the
        constructor does.
        """
        if not 0 <= gfn < len(self.p2m):
            raise ValueError(f"gfn {gfn:#x} is outside the guest's {len(self.p2m):#x} frames")
        if not NO_FRAME <= mfn < len(self.m2p):
            raise ValueError(f"mfn {mfn:#x} is outside the machine's {len(self.m2p):#x} frames")
        if mfn >= 0 and self.m2p[mfn] not in (NO_FRAME, gfn):
            raise ValueError(f"mfn {mfn:#x} belongs to gfn {int(self.m2p[mfn]):#x}")
        self._map(gfn, mfn, 1)
        old = self.to_mfn[gfn]
        if old >= 0:
            self.m2p[old] = NO_FRAME
        self.to_mfn[gfn] = mfn
        if mfn >= 0:
            self.m2p[mfn] = gfn

    def _map(self, gfn: int, mfn: int, count: int) -> None:
        if not len(self.bytes):
            raise MachineError("the view of the guest's memory is closed")
        at = self._base + gfn * PAGE
        if mfn >= 0:
            got = _MMAP(at, count * PAGE, _READ_WRITE, _FILE, self._ram.descriptor, mfn * PAGE)
        else:
            got = _MMAP(at, count * PAGE, _READ_WRITE, _NOTHING | _MAP_FIXED, -1, 0)
        if got == _FAILED:
            code = ctypes.get_errno()
            raise _too_many(None) if code == errno.ENOMEM else MachineError(f"mmap of guest RAM: {os.strerror(code)}")

    def close(self) -> None:
        """Lets go of the memory: `bytes` and `words` are empty afterwards. May be called twice.

        Arrays made from them stay valid: the mapping ends with the last of them.
        """
        self.bytes = np.zeros(0, np.uint8)
        self.words = np.zeros((0, PAGE // 8), np.uint64)


def _inverse(p2m: Ints, machine_frames: int) -> Ints:
    gfns = np.flatnonzero(p2m != NO_FRAME)
    mfns = p2m[gfns]
    if len(mfns) and (int(mfns.min()) < 0 or int(mfns.max()) >= machine_frames):
        raise ValueError(f"the p2m names a frame outside the machine's {machine_frames:#x}")
    m2p = np.full(machine_frames, NO_FRAME, np.int64)
    m2p[mfns] = gfns
    if np.count_nonzero(m2p != NO_FRAME) != len(mfns):
        raise ValueError("the p2m gives one machine frame to two guest frames")
    return m2p


def _runs(p2m: Ints) -> Ints:
    """The gfns at which a run of consecutive machine frames (or of none) begins."""
    step = np.diff(p2m)
    none = p2m == NO_FRAME
    joined = np.where(none[:-1], none[1:], (step == 1) & ~none[1:])
    return np.flatnonzero(np.concatenate((np.ones(min(len(p2m), 1), np.bool_), ~joined)))


def _check_limit(wanted: int) -> None:
    try:
        limit = int(_MAX_MAP_COUNT.read_text())
        used = _mappings()
        if used + wanted + _SPARE_MAPS > limit:
            gc.collect()  # views of guests that are over stay mapped until their reference cycles are found
            used = _mappings()
    except (OSError, ValueError):  # no /proc: mmap itself will say it
        return
    if used + wanted + _SPARE_MAPS > limit:
        raise _too_many(f"{wanted} pieces beside the {used} mappings that are there, limit {limit}")


def _mappings() -> int:
    """How many memory mappings this process has."""
    return _OWN_MAPS.read_bytes().count(b"\n")


def _too_many(detail: str | None) -> MachineError:
    what = "the kernel does not allow as many memory mappings as a scattered guest of this size takes"
    remedy = "raise vm.max_map_count, or give the guest less memory"
    return MachineError(f"{what}{f' ({detail})' if detail else ''}: {remedy}")
