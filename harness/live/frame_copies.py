"""An oracle for the dirty log: which frames of a guest do hold something else than they did?"""

from __future__ import annotations

from typing import Final

import numpy as np

from harness.intercept.domain import Domain
from harness.machine.guest_view import Ints, Words

CHUNK: Final = 256  # frames compared at a time: what fits into a processor's cache
MOST_FRAMES: Final = 1 << 14  # of a guest's are watched: a copy of 64 MiB is kept


def unequal_frames(one: Words, other: Words) -> Ints:
    """The frames, by index, in which two arrays of shape (frames, 512) differ."""
    found = []
    for first in range(0, len(one), CHUNK):
        ours, theirs = one[first : first + CHUNK], other[first : first + CHUNK]
        if not np.array_equal(ours, theirs):
            found.append(np.flatnonzero((ours != theirs).any(axis=1)) + first)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


class FrameCopies:
    """Copies of a guest's frames, to be compared with what they hold later. All of them, or of a large guest the lowest
    ones, where image and tables lie: gfns below `frames`.

    A frame that was taken away holds what it will be given back with.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self.frames = min(domain.frames, MOST_FRAMES)
        self._copies = np.empty((self.frames, domain.view.words.shape[1]), np.uint64)

    def take(self) -> None:
        """Copies all frames as they are."""
        self._copies[:] = self._domain.view.words[: self.frames]
        for gfn, content in self._domain.away.items():
            if gfn < self.frames:
                self._copies[gfn] = np.frombuffer(content, np.uint64)

    def changed(self) -> Ints:
        """The frames that differ from their copies. The copies are up to date afterwards."""
        now, domain = self._domain.view.words, self._domain
        gfns = unequal_frames(now[: self.frames], self._copies)
        gfns = gfns[domain.view.p2m[gfns] >= 0]  # a frame that is away reads as zeros
        self._copies[gfns] = now[gfns]
        for gfn, content in domain.away.items():
            if gfn < self.frames:
                held = np.frombuffer(content, np.uint64)
                if not np.array_equal(held, self._copies[gfn]):
                    self._copies[gfn] = held
                    gfns = np.append(gfns, gfn)
        return np.sort(gfns)
