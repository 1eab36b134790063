"""The backlink policy ``gpt-only``: an SPTE has a backlink if what it points to is, or holds, a guest page table.

So have the SPTEs that lead to an SPT, and those that map a guest table, or a large page with one inside. The others
have none: when a page turns out to be a guest table, those that map it are searched for, and linked from then on;
moving the frame of a data page and beginning a round of the dirty log are searches too. Backlinks are no longer found
by arithmetic: each is allocated when its SPTE is linked, on the path of a fault, and found by a hash of the SPTE.
"""

from __future__ import annotations

from copy import copy
from typing import Final

import numpy as np

from harness.xi.links import Ints, Slots
from harness.xi.p2m import P2m
from harness.xi.pool import Pool
from harness.xi.search import LARGE, Search
from harness.xi.stats import Stats

NODE_BYTES: Final = 32  # next, previous, the SPTE that it is of, and the next of its hash chain
_PAGE: Final = 4096


class TableBacklinks(Slots):
    """See `harness.xi.links.Links`.

    tables: for each slot of leaves, how many guest tables lie in it. lists: the words linked, by slot; slot_of: the
    slot of each linked word.
    """

    policy = "gpt-only"
    spti_pages = 0
    followed = 0
    kept = "of guest tables only: others are found by a search of all SPTEs"

    def __init__(self, pool: Pool, p2m: P2m, counters: Stats) -> None:
        super().__init__(p2m.frames, len(pool))
        self._pool = pool
        self._p2m = p2m
        self._counters = counters
        self._search = Search(pool, p2m, counters)
        self._peak = 0
        self.tables = np.zeros(self._base_parents, np.int64)
        self.fixed_bytes = self.tables.nbytes
        self.lists: dict[int, dict[int, None]] = {}
        self.slot_of: dict[int, int] = {}

    def link(self, word: int, slot: int) -> None:
        if slot >= self._base_parents or self.tables[slot]:
            self._allocate(word, slot)

    def _allocate(self, word: int, slot: int) -> None:
        self.lists.setdefault(slot, {})[word] = None
        self.slot_of[word] = slot
        self._counters.backlinks_allocated += 1
        self._peak = max(self._peak, len(self.slot_of))

    def unlink(self, word: int) -> None:
        slot = self.slot_of.pop(word, None)
        if slot is None:
            return
        words = self.lists[slot]
        del words[word]
        if not words:
            del self.lists[slot]

    def link_many(self, words: Ints, slots: Ints) -> None:
        kept = self.tables[slots] != 0
        for word, slot in zip(words[kept].tolist(), slots[kept].tolist(), strict=True):
            self._allocate(word, slot)

    def unlink_many(self, words: Ints) -> None:
        for word in words.tolist():
            self.unlink(word)

    def table_appears(self, gfn: int) -> None:
        """Links the SPTEs that map `gfn` already: the search that backlinks for all pages do without."""
        if gfn >= self._p2m.frames:
            return
        new = []
        for level in (1, *LARGE):
            slot = self.slot(level, gfn)
            if not self.tables[slot]:
                new.append(level)
            self.tables[slot] += 1
        for word, level in self._search.leaves_of(gfn, new):
            self._allocate(word, self.slot(level, gfn))

    def table_gone(self, gfn: int) -> None:
        if gfn >= self._p2m.frames:
            return
        for level in (1, *LARGE):
            slot = self.slot(level, gfn)
            self.tables[slot] -= 1
            if not self.tables[slot]:
                for word in self.lists.pop(slot, ()):
                    del self.slot_of[word]

    def nodes(self, slot: int) -> list[int]:
        if slot >= self._base_parents or self.tables[slot]:
            return self._follow(slot)
        level, gfn = self.leaf_of(slot)
        return [word for word, _ in self._search.leaves_of(gfn, (level,))]

    def _follow(self, slot: int) -> list[int]:
        words = list(self.lists.get(slot, ()))
        self.followed += len(words)
        return words

    def empty(self, slot: int) -> bool:
        return slot not in self.lists

    def mapping(self, gfn: int) -> list[tuple[int, int]]:
        levels = (1, *LARGE)
        unknown = [level for level in levels if not self.tables[self.slot(level, gfn)]]
        found = self._search.leaves_of(gfn, unknown) if unknown else []
        return found + [(word, level) for level in levels for word in self._follow(self.slot(level, gfn))]

    def leaves(self) -> Ints:
        return self._search.leaves()

    def pages(self, gfns: Ints) -> Ints:
        known = self.tables[gfns] != 0
        words = [word for gfn in gfns[known].tolist() for word in self._follow(gfn)]
        rest = gfns[~known]
        found = self._search.pages(rest) if len(rest) else np.empty(0, np.int64)
        return np.concatenate([np.array(words, np.int64), found])

    def aside(self) -> TableBacklinks:
        other = copy(self)
        other._search = self._search.aside()
        return other

    def listed(self, slot: int) -> list[int]:
        return self.aside().nodes(slot)

    def unlinked(self, word: int, slot: int) -> str:
        there = self.slot_of.get(word)
        if slot < self._base_parents and not self.tables[slot]:
            return "" if there is None else "has a backlink, and maps no guest table"
        if there is None:
            return "on no list: it has no backlink"
        if there != slot:
            return "on the list of another target"
        return "" if word in self.lists.get(slot, ()) else "its list does not know it"

    @property
    def grown_bytes(self) -> int:
        return self.pages_held * _PAGE

    @property
    def pages_allocated(self) -> int:
        return self.pages_peak

    @property
    def pages_held(self) -> int:
        return -(-len(self.slot_of) * NODE_BYTES // _PAGE)

    @property
    def pages_peak(self) -> int:
        return -(-self._peak * NODE_BYTES // _PAGE)
