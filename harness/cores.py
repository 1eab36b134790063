"""How many runs go at a time, and on which cores.

An observed run keeps one core busy: QEMU and Python wait for each other. A run in live mode keeps two busy, since each
side spins until the other hands over, so it gets a pair of cores.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

DEFAULT_JOBS: Final = 2  # at a time, if nobody says otherwise
CORES_PER_LIVE_RUN: Final = 2


@dataclass(frozen=True, slots=True)
class Shares:
    """workers: runs at a time. cores: for each of them the cores that it is held to, or nothing where all may use all.
    warning: one line for the user, or empty."""

    workers: int
    cores: tuple[frozenset[int], ...] = ()
    warning: str = ""


def share_cores(jobs: int, monitored: bool, wanted: int | None, cores: Collection[int]) -> Shares:
    """What `jobs` runs get of `cores` (the numbers of those that this process may use).

    monitored: they run in live mode (or both). wanted: how many the user wants at a time; obeyed, with a warning when
    they are more than the cores can carry.
    """
    if not monitored:
        return Shares(wanted or min(DEFAULT_JOBS, len(cores)))
    room = max(1, len(cores) // CORES_PER_LIVE_RUN)
    workers = wanted or min(DEFAULT_JOBS, room)
    busy = min(workers, jobs)
    warning = ""
    if len(cores) < CORES_PER_LIVE_RUN:
        warning = "there is one core: in live mode the guest and the engine take turns on it, which works but is slow"
    elif busy > room:
        warning = (
            f"--jobs {workers}: a live run keeps {CORES_PER_LIVE_RUN} cores busy and there are {len(cores)}, so more "
            f"than {room} at a time slow each other down"
        )
    if room == 1 or busy == 1:
        return Shares(workers, (), warning)
    order = sorted(cores)
    pairs = [frozenset(order[2 * k : 2 * k + 2]) for k in range(room)]
    return Shares(workers, tuple(pairs[number % room] for number in range(workers)), warning)
