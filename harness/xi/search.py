"""Searching the SPTEs: what finding those that point to a target takes where no backlink tells.

Every SPTE of every table that could hold one is looked at (numpy looks at a table at a time; the work is counted in
SPTEs). The tables of one level are known, nothing else is.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.engine import Words
from harness.x86.bits import ENTRIES, PTE_ADDR, PTE_PS
from harness.xi.links import Ints
from harness.xi.p2m import P2m
from harness.xi.pool import SNAPSHOT, SPTI_SHIFT, Pool
from harness.xi.stats import Stats

LARGE: Final = (3, 2)
_ADDR: Final = np.uint64(PTE_ADDR)
_PS: Final = np.uint64(PTE_PS)


class Use(Enum):
    """What a search is for: the name of its counter in `Stats`."""

    PARENTS = "visited_for_parents"
    FRAMES = "visited_for_frames"
    LOG = "visited_for_log"
    ASIDE = "visited_aside"  # who looks on: addresses that are watched, descriptions


class Search:
    """Linear searches over the pool of one domain."""

    def __init__(self, pool: Pool, p2m: P2m, counters: Stats, aside: bool = False) -> None:
        """`aside`: all searches count as `Use.ASIDE`."""
        self._pool = pool
        self._p2m = p2m
        self._counters = counters
        self._is_aside = aside
        self._spts: Words = pool.words.reshape(-1, 1 << SPTI_SHIFT)[:, :SNAPSHOT]
        self._levels = np.frombuffer(pool.levels, np.uint8)

    def aside(self) -> Search:
        """The same for who looks on."""
        return Search(self._pool, self._p2m, self._counters, True)

    def parents(self, index: int, count: int) -> list[int]:
        """The words of the SPTEs that lead to the SPT of SPTI `index`. The search ends when `count` are found."""
        spti = self._pool.sptis[index]
        target = np.uint64(spti.mfn << 12)
        found: list[int] = []
        visited = 0
        for row in np.flatnonzero(self._levels == spti.level + 1).tolist():
            if len(found) >= count:
                break
            sptes = self._spts[row]
            visited += ENTRIES
            at = ((sptes & _ADDR == target) & (sptes & _PS == 0)).nonzero()[0]
            if len(at):
                found += (at + (row << SPTI_SHIFT)).tolist()
        self._count(Use.PARENTS, visited)
        return found

    def leaves_of(self, gfn: int, levels: Sequence[int]) -> list[tuple[int, int]]:
        """(word, level) of the leaf SPTEs of `levels` that map `gfn`, in the order of `levels`."""
        found: list[tuple[int, int]] = []
        visited = 0
        for level in levels:
            rows = np.flatnonzero(self._levels == level)
            visited += ENTRIES * len(rows)
            first = gfn & -(1 << 9 * (level - 1))
            mfn = self._p2m.to_mfn[first] if first < self._p2m.frames else -1
            if mfn < 0 or not len(rows):
                continue
            sptes = self._spts[rows]
            hit = self._leaf(sptes, level) & (sptes & _ADDR == np.uint64(mfn << 12))
            found += [(word, level) for word in _words(rows, hit).tolist()]
        self._count(Use.FRAMES, visited)
        return found

    def leaves(self) -> Ints:
        """The words of all leaf SPTEs."""
        parts = []
        visited = 0
        for level in (1, *LARGE):
            rows = np.flatnonzero(self._levels == level)
            visited += ENTRIES * len(rows)
            parts.append(_words(rows, self._leaf(self._spts[rows], level)))
        self._count(Use.LOG, visited)
        return np.concatenate(parts)

    def pages(self, gfns: Ints) -> Ints:
        """The words of the SPTEs that map one of the 4 KiB pages `gfns`, all found in one sweep."""
        rows = np.flatnonzero(self._levels == 1)
        self._count(Use.LOG, ENTRIES * len(rows))
        wanted = np.zeros(self._p2m.machine_frames, np.bool_)
        mfns = self._p2m.table[gfns]
        wanted[mfns[mfns >= 0]] = True
        sptes = self._spts[rows]
        return _words(rows, (sptes != 0) & wanted[(sptes & _ADDR).view(np.int64) >> 12])

    def _leaf(self, sptes: Words, level: int) -> npt.NDArray[np.bool_]:
        leaf: npt.NDArray[np.bool_] = sptes != 0 if level == 1 else (sptes & _PS) != 0
        return leaf

    def _count(self, use: Use, visited: int) -> None:
        counters = self._counters
        if self._is_aside:
            use = Use.ASIDE
        else:
            counters.searches += 1
        setattr(counters, use.value, getattr(counters, use.value) + visited)


def _words(rows: Ints, hit: npt.NDArray[np.bool_]) -> Ints:
    """Pool words of what is set in `hit`, whose rows are the SPTIs `rows`."""
    row, index = hit.nonzero()
    words: Ints = (rows[row] << SPTI_SHIFT) + index
    return words
