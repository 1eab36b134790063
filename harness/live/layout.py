"""What lies where in a machine that runs its guest in live mode.

The machine has more RAM than its guest: below the guest's frames lie the boot information, the monitor's area and the
shadow pool. Which machine frame each guest frame is, is drawn by the seed, so that whoever takes one for the other is
found out at the first access.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from harness.check.layout import HOLE_END, HOLE_FIRST, RAM_BELOW_4G
from harness.machine.guest_view import NO_FRAME, Ints

FRAMES_PER_MIB: Final = 256
BLOCK: Final = 512
"""Frames of 2 MiB: what a large page of the shadow maps."""
MONITOR_AREA: Final = 1 << 20  # machine address
MONITOR_BYTES: Final = 1 << 20
POOL_BASE: Final = (MONITOR_AREA + MONITOR_BYTES) >> 12
SPARE_DEFAULT: Final = 64
SCATTERED_BLOCKS: Final = 32
"""At most so many of the guest's blocks are taken apart: each of their frames is a mapping of its own in the
`harness.machine.guest_view.GuestView`, and the kernel allows 65530."""
_SEED: Final = 0x703D  # this use of the run's seed


@dataclass(frozen=True, slots=True, eq=False)
class LiveLayout:
    """guest_frames: the guest's 4 KiB frames. pool_frames from pool_base_mfn on: the shadow pool. monitor_area: machine
    address of the monitor's area, monitor_bytes long. first_mfn: where the guest's and the spare frames begin, 2 MiB
    aligned; they reach to the machine's end. spare: int64, free mfns, sorted. machine_mib: RAM of the machine. p2m:
    int64 (guest_frames,), gfn -> mfn, -1 in the hole below 1 MiB.
    """

    guest_frames: int
    pool_frames: int
    pool_base_mfn: int
    monitor_area: int
    monitor_bytes: int
    first_mfn: int
    spare: Ints
    machine_mib: int
    p2m: Ints

    @classmethod
    def plan(cls, guest_mib: int, pool_frames: int, seed: int, spare_frames: int = SPARE_DEFAULT) -> LiveLayout:
        """A layout for a guest with `guest_mib` MiB of RAM, the same for the same arguments.

        About half of the guest's 2 MiB blocks (more of a guest above 128 MiB) stay whole and aligned, so that the
        shadow may map them by large pages; the frames of the others are shuffled. No gfn is its own mfn. At least
        `spare_frames` frames are left over. Raises ValueError for sizes that cannot be, or a machine beyond 3.5 GiB.
        """
        for what, size, least in (
            ("a guest with", guest_mib, 1),
            ("a pool of frames:", pool_frames, 4),
            ("spare frames:", spare_frames, 0),
        ):
            if size < least:
                raise ValueError(f"live mode: {what} {size} is less than {least}")
        guest_frames = guest_mib * FRAMES_PER_MIB
        first = _up(POOL_BASE + pool_frames)
        rng = np.random.default_rng((_SEED, seed))
        blocks = guest_frames // BLOCK  # the whole ones; block 0 has the hole in it
        scattered = min(-(-blocks // 2), SCATTERED_BLOCKS)
        whole = np.sort(rng.permutation(np.arange(1, blocks))[: max(blocks - scattered, 0)])
        loose = np.ones(guest_frames, np.bool_)
        loose[HOLE_FIRST:HOLE_END] = False
        loose[whole[:, None] * BLOCK + np.arange(BLOCK)] = False
        single = np.flatnonzero(loose)
        machine_blocks = len(whole) + _up(len(single) + spare_frames) // BLOCK
        end = first + machine_blocks * BLOCK
        if end > RAM_BELOW_4G:
            raise ValueError(
                f"live mode: a guest with {guest_mib} MiB and a pool of {pool_frames * 4} KiB take a machine with "
                f"{end // FRAMES_PER_MIB} MiB; a PC has at most {RAM_BELOW_4G // FRAMES_PER_MIB} MiB below 4 GiB"
            )
        p2m = np.full(guest_frames, NO_FRAME, np.int64)
        places = _deranged(first // BLOCK + rng.permutation(machine_blocks), whole)
        p2m[whole[:, None] * BLOCK + np.arange(BLOCK)] = places[: len(whole), None] * BLOCK + np.arange(BLOCK)
        pieces = (places[len(whole) :, None] * BLOCK + np.arange(BLOCK)).ravel()
        pieces = _deranged(rng.permutation(pieces), single)
        p2m[single] = pieces[: len(single)]
        spare = np.sort(pieces[len(single) :])
        return cls(
            guest_frames=guest_frames,
            pool_frames=pool_frames,
            pool_base_mfn=POOL_BASE,
            monitor_area=MONITOR_AREA,
            monitor_bytes=MONITOR_BYTES,
            first_mfn=first,
            spare=spare,
            machine_mib=end // FRAMES_PER_MIB,
            p2m=p2m,
        )

    @property
    def machine_frames(self) -> int:
        return self.machine_mib * FRAMES_PER_MIB

    @property
    def guest_bytes(self) -> int:
        return self.guest_frames << 12


def _up(frames: int) -> int:
    return -(-frames // BLOCK) * BLOCK


def _deranged(values: Ints, keys: Ints) -> Ints:
    """`values` (unique) with as few swaps as it takes for no values[i] to equal keys[i] (unique; it may be shorter)."""
    fixed = np.flatnonzero(values[: len(keys)] == keys)
    if len(fixed) == 1 and len(values) > 1:
        # With any other: what it gets is not its own key, and what it gives away is nobody else's.
        fixed = np.append(fixed, (fixed + 1) % len(values))
    values[fixed] = np.roll(values[fixed], 1)
    return values
