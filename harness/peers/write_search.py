"""How the `xen302` engine finds the SPTEs that let the guest write a page: not by lists, but by a search.

Of each frame two things are known: how many leaves let it be written, and where the last one that mapped it was. When
the frame is to be write-protected that one is looked at first, then the rest of its table, then every table of level 1
in the domain, one after another, until as many were found as there are. With one mapping a frame, which is the common
case, that is quick; with two it is a search through half the shadow.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from harness.engine import Words
from harness.peers.counters import Counters
from harness.peers.pages import PagePool, ShadowPage
from harness.x86.bits import ENTRIES, PTE_ADDR, PTE_RW
from harness.xi.p2m import P2m

Ints = npt.NDArray[np.int64]
_NOWHERE: Final = -1
_RW: Final = np.uint64(PTE_RW)
_ADDR: Final = np.uint64(PTE_ADDR)
_NOT_RW: Final = ~PTE_RW
_WHERE: Final = np.uint64(PTE_ADDR | PTE_RW)
BYTES_PER_FRAME: Final = 8 + 4
"""Of the back pointer and of the count."""


class WriteSearch:
    """count: int64 by gfn, writable leaves of level 1. back: int64 by gfn, the word of the leaf that was set last, -1
    before the first; that SPTE may be anything by now. searches: through every table; hits: that the back pointer and
    its table answered."""

    def __init__(self, pool: PagePool, p2m: P2m, counters: Counters) -> None:
        self._pool = pool
        self._p2m = p2m
        self._counters = counters
        self.count = np.zeros(p2m.frames, np.int64)
        self.back = np.full(p2m.frames, _NOWHERE, np.int64)
        self._counts = self.count.data.cast("B").cast("q")
        self._backs = self.back.data.cast("B").cast("q")
        self.searches = 0
        self.hits = 0

    # The account.

    def mapped(self, gfn: int, word: int) -> None:
        """The leaf at `word` was set, and maps `gfn`."""
        self._backs[gfn] = word

    def change(self, gfn: int, old: int, new: int) -> None:
        """A leaf of `gfn` was `old` and is `new`; 0 for none."""
        self._counts[gfn] += ((new & PTE_RW) - (old & PTE_RW)) >> 1

    def change_many(self, old: Words, new: Words) -> None:
        """Leaves of level 1 that were `old` are `new`; 0 for none."""
        np.subtract.at(self.count, self._written_by(old), 1)
        np.add.at(self.count, self._written_by(new), 1)

    def _written_by(self, sptes: Words) -> Ints:
        writable = sptes[(sptes & _RW) != 0]
        out: Ints = self._p2m.m2p[((writable & _ADDR) >> np.uint64(12)).view(np.int64)]
        return out

    def forget(self) -> None:
        """No table has anything in it any more."""
        self.count[:] = 0
        self.back[:] = _NOWHERE

    # The search.

    def take(self, word: int) -> int:
        """Takes RW from the leaf at `word`, if it is one. How many lost it: 0 or 1."""
        self._counters.sptes_visited += 1
        spte = self._pool.q[word]
        if not spte & PTE_RW:
            return 0
        self._pool.q[word] = spte & _NOT_RW
        self._counters.sptes_written += 1
        self._counts[self._p2m.to_gfn[(spte & PTE_ADDR) >> 12]] -= 1
        return 1

    def take_all(self, gfn: int) -> None:
        """Takes RW from every leaf that maps `gfn`."""
        wanted = self._counts[gfn]
        if not wanted:
            return
        match = np.uint64(self._p2m.to_mfn[gfn] << 12 | PTE_RW)
        word = self._backs[gfn]
        if word != _NOWHERE:
            page = self._pool.owner(word)
            if page.role is not None and page.level == 1:
                if self._pool.words[word] & _WHERE == match:
                    wanted -= self.take(word)
                if wanted:
                    wanted -= self._take_in(page, match, wanted)
        if not wanted:
            self.hits += 1
            return
        self.searches += 1
        for page in self._pool.in_use.values():
            if page.level == 1:
                wanted -= self._take_in(page, match, wanted)
                if not wanted:
                    return
        raise AssertionError(f"gfn {gfn:#x} is writable {wanted} times more than there are leaves of it")

    def _take_in(self, page: ShadowPage, match: np.uint64, wanted: int) -> int:
        """Goes through one table, and takes RW from the first `wanted` leaves that `match`. How many there were."""
        found = np.flatnonzero(page.spt & _WHERE == match)[:wanted]
        self._counters.sptes_visited += int(found[-1]) + 1 if len(found) == wanted else ENTRIES
        self._counters.sptes_written += len(found)
        if len(found):
            self._counts[self._p2m.to_gfn[int(match) >> 12]] -= len(found)
            page.spt[found] &= ~_RW
        return len(found)
