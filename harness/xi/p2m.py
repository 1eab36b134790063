"""The p2m: which machine frame each guest frame is, and back; and where large pages can stay whole."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class P2m:
    """gfn to mfn and back, for a domain of `frames` guest frames.

    table: int64, mfn of each gfn, -1 where there is none. m2p: int64, gfn of each mfn, -1 where there is none.
    away: the gfns whose frame was taken away, and is expected back; other gfns without a frame are holes.
    """

    def __init__(self, frames: int, table: Ints | None, machine_frames: int, pool: range) -> None:
        """`pool`: machine frames of the shadow pool. Raises ValueError when the table is not one mfn per gfn, names a
        frame outside the machine or in the pool, or names one twice."""
        if table is None:
            table = np.arange(frames, dtype=np.int64)
        if table.shape != (frames,):
            raise ValueError(f"p2m has shape {table.shape}, not ({frames},)")
        self.frames = frames
        self.machine_frames = machine_frames
        self._pool = pool
        self.away: set[int] = set()
        self.table = table.astype(np.int64)
        backed = self.table[self.table >= 0]
        if len(backed) and int(backed.max()) >= machine_frames:
            raise ValueError(f"p2m names machine frame {int(backed.max()):#x}; the machine has {machine_frames:#x}")
        if ((backed >= pool.start) & (backed < pool.stop)).any():
            raise ValueError(f"p2m names a machine frame of the shadow pool ({pool.start:#x}..{pool.stop - 1:#x})")
        self.m2p = np.full(machine_frames, -1, np.int64)
        self.m2p[backed] = np.flatnonzero(self.table >= 0)
        if np.count_nonzero(self.m2p >= 0) != len(backed):
            raise ValueError("p2m gives one machine frame to two guest frames")
        self.to_mfn = self.table.data.cast("B").cast("q")
        self.to_gfn = self.m2p.data.cast("B").cast("q")
        self._whole_2m = bytearray(-(-frames // 512))
        self._whole_1g = bytearray(-(-frames // (512 * 512)))
        for first in range(0, frames, 512):
            self._update_whole(first)

    def backed(self, gfn: int) -> bool:
        """Whether `gfn` has a machine frame."""
        return 0 <= gfn < self.frames and self.to_mfn[gfn] >= 0

    def whole(self, gfn: int, level: int) -> bool:
        """Whether the large page of `level` (2 or 3) at `gfn` is one aligned run of machine frames."""
        if gfn >= self.frames:
            return False
        return bool(self._whole_2m[gfn >> 9] if level == 2 else self._whole_1g[gfn >> 18])

    def check(self, gfn: int, mfn: int) -> None:
        """Raises ValueError when `gfn` is outside the domain, or `mfn` (-1: none) is outside the
        machine, in the pool, or another guest frame's."""
        if not 0 <= gfn < self.frames:
            raise ValueError(f"gfn {gfn:#x} is outside the domain of {self.frames:#x} frames")
        if mfn >= self.machine_frames or mfn < -1 or mfn in self._pool:
            raise ValueError(f"mfn {mfn:#x} cannot be given to a guest")
        if mfn >= 0 and self.to_gfn[mfn] not in (-1, gfn):
            raise ValueError(f"mfn {mfn:#x} belongs to gfn {self.to_gfn[mfn]:#x}")

    def assign(self, gfn: int, mfn: int) -> None:
        """Changes one mapping; `mfn` -1 takes the frame away, a hole stays one. Raises ValueError as `check` does."""
        self.check(gfn, mfn)
        old = self.to_mfn[gfn]
        if old >= 0:
            self.to_gfn[old] = -1
            self.away.add(gfn)
        self.to_mfn[gfn] = mfn
        if mfn >= 0:
            self.to_gfn[mfn] = gfn
            self.away.discard(gfn)
        self._update_whole(gfn & ~511)

    def _update_whole(self, first: int) -> None:
        run = self.table[first : first + 512]
        self._whole_2m[first >> 9] = is_run(run, 512)
        gib = first & ~(512 * 512 - 1)
        parts = self._whole_2m[gib >> 9 : (gib >> 9) + 512]
        self._whole_1g[gib >> 18] = (
            len(parts) == 512 and all(parts) and is_run(self.table[gib : gib + 512 * 512], 512 * 512)
        )


def is_run(mfns: Ints, length: int) -> bool:
    """Whether `mfns` is `length` consecutive machine frames, aligned to their number."""
    if len(mfns) != length or int(mfns[0]) < 0 or int(mfns[0]) % length:
        return False
    return bool((np.diff(mfns) == 1).all())
