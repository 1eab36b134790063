"""Write protection of guest tables, and the dirty log: both take RW from every SPTE of a frame.

The SPTEs are found through the frame's backlinks.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from harness.engine import Bytes
from harness.x86.bits import PTE_D, PTE_PS, PTE_RW
from harness.xi.large import LargePages
from harness.xi.links import Ints
from harness.xi.pool import Spti

_RW: Final = np.uint64(PTE_RW)
_NOT_RW: Final = np.uint64(~PTE_RW & (1 << 64) - 1)


class Protection(LargePages):
    """Keeps guest tables read-only while in sync, and all pages while dirty logging has not logged them."""

    def set_synced(self, spti: Spti) -> None:
        """`spti` agrees with its guest table; from here on the table is write-protected."""
        if spti.synced:
            return
        spti.synced = True
        spti.fresh = False
        if spti.guards:
            self.guard_gfn(spti.gfn)

    def guard_gfn(self, gfn: int) -> None:
        """One more in-sync SPTI stands for `gfn`; the first one makes it read-only."""
        self.guarded[gfn] += 1
        self.guarded_2m[gfn >> 9] += 1
        self.guarded_1g[gfn >> 18] += 1
        if self.guarded[gfn] == 1:
            self.counters.protected += 1
            self.protect_gfn(gfn)
            if self.watching:
                self.aliases.mark(gfn)

    def protect_gfn(self, gfn: int) -> None:
        """Divides the large pages that contain `gfn`, then takes RW from every SPTE that maps it."""
        for level in (3, 2):
            self.divide_around(gfn, level)
        for word in self.links.nodes(gfn):  # a 4 KiB page's slot is its gfn
            self.protect_spte(word)
            self.counters.protected_sptes += 1

    def protect_spte(self, word: int) -> None:
        """Takes RW from one SPTE; its D bit keeps what the guest's entry allows."""
        spte = self.q[word]
        if spte & PTE_RW:
            self.q[word] = spte & ~PTE_RW
            self.counters.sptes_written += 1

    def divide_around(self, gfn: int, level: int) -> None:
        """Divides every large page of `level` that contains `gfn`."""
        first = gfn & -(1 << 9 * (level - 1))
        for word in self.links.nodes(self.links.slot(level, gfn)):
            spti, spte = self.pool_memory.owner(word), self.q[word]
            # Its table may have been recycled for the pieces of the one before.
            if spti.level == level and spte & PTE_PS and self.leaf_gfn(spte) == first:
                self.divide_large_page(spti, word)

    def unprotect_gfn(self, gfn: int) -> None:
        if self.logging and not self.logged[gfn]:
            return
        q = self.q
        for word in self.links.nodes(gfn):
            if q[word] & (PTE_D | PTE_RW) == PTE_D:
                q[word] |= PTE_RW
                self.counters.sptes_written += 1

    def table_written(self, gfn: int) -> None:
        """The guest stores to its table `gfn`: every SPTI of it goes out of sync. See `harness.engine`."""
        self.counters.table_writes += 1
        for index in self.gpts.get(gfn, ()):
            self.set_out_of_sync(self.sptis[index])

    def all_out_of_sync(self) -> None:
        """Every guest table goes out of sync (paging was turned off: nothing is a guest table any more)."""
        for index in list(self.pool_memory.lru):
            if self.sptis[index].guards:
                self.set_out_of_sync(self.sptis[index])

    # Dirty log.

    def dirty_log_start(self) -> None:
        """From now on the first store to any page faults and is logged. The log is empty."""
        self.logging = True
        self.logged_array[:] = 0
        self._begin_round(self.links.leaves())

    def dirty_log_stop(self) -> None:
        """No more logging. Pages become writable again as they are stored to: each store finds a spurious fault."""
        self.logging = False
        self.logged_array[:] = 0

    def dirty_log_read(self) -> Bytes:
        """uint8 of shape (frames,): 1 for each gfn stored to in this round. The next one begins: those pages are
        read-only again, the others are so still."""
        out = self.logged_array.copy()
        self.logged_array[:] = 0
        if self.logging:
            self._begin_round(self.links.pages(np.flatnonzero(out)))  # large pages are never writable in a round
        return out

    def log_dirty(self, gfn: int) -> None:
        """Puts `gfn` in the dirty log."""
        if not self.logged[gfn]:
            self.logged[gfn] = 1
            self.counters.dirty_logged += 1

    def _begin_round(self, words: Ints) -> None:
        """Takes RW from the leaf SPTEs at `words`, found through backlinks: the second of their uses."""
        pool = self.pool_memory.words
        sptes = pool[words]
        self.counters.log_rounds += 1
        self.counters.log_protected_sptes += int(np.count_nonzero(sptes & _RW))
        pool[words] = sptes & _NOT_RW
