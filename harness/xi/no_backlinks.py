"""The backlink policy ``none``: an SPTE is found by looking at all of them.

What is kept is one number for each SPT, how many SPTEs lead to it, as a reference count: it says whether nothing leads
there any more, and when a search for its parents is over. It does not say where they are.
"""

from __future__ import annotations

from copy import copy
from typing import Final

import numpy as np

from harness.x86.bits import PTE_PS
from harness.xi.links import Ints, Slots
from harness.xi.p2m import P2m
from harness.xi.pool import SPTI_SHIFT, Pool
from harness.xi.search import LARGE, Search
from harness.xi.stats import Stats

COUNT_BYTES: Final = 8  # of a reference count


class NoBacklinks(Slots):
    """See `harness.xi.links.Links`. references: for each SPTI, how many SPTEs lead to its SPT."""

    policy = "none"
    pages_held = 0
    pages_peak = 0
    spti_pages = 0
    grown_bytes = 0
    pages_allocated = 0
    followed = 0
    kept = "none: found by a search of all SPTEs"

    def __init__(self, pool: Pool, p2m: P2m, counters: Stats) -> None:
        super().__init__(p2m.frames, len(pool))
        self._pool = pool
        self._search = Search(pool, p2m, counters)
        self.references = [0] * len(pool)
        self.fixed_bytes = COUNT_BYTES * len(pool)

    def link(self, word: int, slot: int) -> None:
        del word
        if slot >= self._base_parents:
            self.references[slot - self._base_parents] += 1

    def unlink(self, word: int) -> None:
        spte = self._pool.q[word]
        if self._pool.levels[word >> SPTI_SHIFT] > 1 and not spte & PTE_PS:
            self.references[self._pool.child(spte).index] -= 1

    def link_many(self, words: Ints, slots: Ints) -> None:
        """Leaves, all of them."""

    def unlink_many(self, words: Ints) -> None:
        if len(words) and self._pool.levels[int(words[0]) >> SPTI_SHIFT] > 1:
            for word in words.tolist():
                self.unlink(word)

    def table_appears(self, gfn: int) -> None:
        """Nothing is kept of it."""

    def table_gone(self, gfn: int) -> None:
        """Nothing was kept of it."""

    def nodes(self, slot: int) -> list[int]:
        if slot >= self._base_parents:
            index = slot - self._base_parents
            return self._search.parents(index, self.references[index])
        level, gfn = self.leaf_of(slot)
        return [word for word, _ in self._search.leaves_of(gfn, (level,))]

    def empty(self, slot: int) -> bool:
        return not self.references[slot - self._base_parents]

    def mapping(self, gfn: int) -> list[tuple[int, int]]:
        return self._search.leaves_of(gfn, (1, *LARGE))

    def leaves(self) -> Ints:
        return self._search.leaves()

    def pages(self, gfns: Ints) -> Ints:
        return self._search.pages(gfns) if len(gfns) else np.empty(0, np.int64)

    def aside(self) -> NoBacklinks:
        other = copy(self)
        other._search = self._search.aside()
        return other

    def listed(self, slot: int) -> list[int]:
        return self.aside().nodes(slot)

    def unlinked(self, word: int, slot: int) -> str:
        """No SPTE is on a list."""
        del word, slot
        return ""
