"""Which pages to probe at a checkpoint, within a budget, reproducibly.

The edges of the mapped ranges come first, those that are new since the last checkpoint before the others, and the
others in turn from checkpoint to checkpoint when they are too many; then the pages that were mapped at the last
checkpoint and no longer are (where a shadow that missed the change still has them), unmapped neighbours, entries
that cannot be followed, non-canonical addresses, addresses drawn at random, and pages inside ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.check.ranges import Ranges
from harness.engine import Words
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.bits import PAGE_SHIFT, PAGE_SIZE
from harness.x86.modes import PagingMode

BUDGET_DEFAULT: Final = 2400
NON_CANONICAL_PAGES: Final = 6
EDGE_SHARE: Final = 0.7  # of the pages, when edges alone would fill the budget
_PAGE_MASK: Final = np.uint64((1 << 64) - PAGE_SIZE)


@dataclass(frozen=True, slots=True)
class Plan:
    """The pages to probe (uint64, page-aligned, unique, in order of importance), each with all of `accesses`."""

    pages: Words
    accesses: tuple[Access, ...]
    edges: int


class Planner:
    """Plans one checkpoint after the other.

    budget: probes per checkpoint, at least one page's worth of them. can_probe: False where the guest has no probe
    server: then only loads are planned, for the oracles that know no other access.
    """

    def __init__(self, seed: int, budget: int = BUDGET_DEFAULT, can_probe: bool = True) -> None:
        if budget < len(ALL_ACCESSES):
            raise ValueError(f"a budget of {budget} probes is less than the {len(ALL_ACCESSES)} accesses to one page")
        self.seed = seed
        self.budget = budget
        self.accesses = ALL_ACCESSES if can_probe else (Access.LOAD,)
        self._known = np.zeros(0, np.uint64)  # fingerprints of the edges seen at the last checkpoint
        self._edges_before = np.zeros(0, np.uint64)  # the edges themselves

    def rng(self, checkpoint: int, purpose: int = 0) -> np.random.Generator:
        """The generator of one checkpoint: the same seed and index draw the same numbers."""
        return np.random.default_rng((self.seed, checkpoint, purpose))

    def plan(self, mode: PagingMode, ranges: Ranges, checkpoint: int) -> Plan:
        """The pages of checkpoint number `checkpoint`; remembers the edges for the next."""
        rng = self.rng(checkpoint)
        room = max(self.budget // len(self.accesses), 1)
        edges = self._edges(ranges, int(room * EDGE_SHARE), checkpoint)
        parts = [edges, self._gone(mode, ranges)[: room // 8]]
        parts += [_neighbours(mode, ranges, edges)[: room // 8], ranges.odd[: room // 16]]
        if mode.canonical:
            parts.append(_non_canonical(mode, rng))
        parts.append(_random(mode, room // 16, rng))
        if len(ranges):
            parts.append(_inside(ranges, 2 * room, rng))  # twice, because many fall on pages that are taken
        parts.append(_random(mode, room, rng))
        pages = np.concatenate(parts) & _PAGE_MASK
        first = np.sort(np.unique(pages, return_index=True)[1])  # unique, the order kept
        pages = pages[first][:room]
        return Plan(pages, self.accesses, len(edges))

    def _gone(self, mode: PagingMode, ranges: Ranges) -> Words:
        """Edges of the last checkpoint that are not mapped any more."""
        before = self._edges_before
        self._edges_before = np.unique(np.concatenate((ranges.first, ranges.last)))
        if not mode.canonical:  # the guest may have left a long mode meanwhile
            before = before[before >> np.uint64(32) == 0]
        return before[~_mapped(ranges, before)] if len(ranges) else before

    def _edges(self, ranges: Ranges, limit: int, checkpoint: int) -> Words:
        """First and last page of each range, at most `limit`: new ones first, then the others in rotation."""
        page = np.concatenate((ranges.first, ranges.last))
        frame = np.concatenate((ranges.gfn, ranges.gfn + ranges.pages - 1)).astype(np.uint64)
        rights = np.concatenate((ranges.rights, ranges.rights)).astype(np.uint64)
        size = np.concatenate((ranges.page_size, ranges.page_size)).astype(np.uint64)
        # One word that changes with any of them; a collision only costs an edge its place in the queue.
        print_ = page ^ (frame * np.uint64(0x9E37_79B9_7F4A_7C15)) ^ (rights << np.uint64(1)) ^ (size << np.uint64(20))
        fresh = ~np.isin(print_, self._known)
        self._known = print_
        limit = max(limit, 1)
        new, old = np.unique(page[fresh]), np.unique(page[~fresh])
        if len(new) > limit:
            new = np.roll(new, -(checkpoint * limit) % len(new))[:limit]
        rest = limit - len(new)
        if len(old) > rest:
            old = np.roll(old, -(checkpoint * limit) % len(old))[:rest]
        return np.concatenate((new, old))


def _mapped(ranges: Ranges, page: Words) -> npt.NDArray[np.bool_]:
    at = np.searchsorted(ranges.first, page, side="right") - 1
    inside: npt.NDArray[np.bool_] = (at >= 0) & (page <= ranges.last[np.maximum(at, 0)])
    return inside


def _neighbours(mode: PagingMode, ranges: Ranges, edges: Words) -> Words:
    """The unmapped pages next to `edges`, in canonical form."""
    if not len(ranges):
        return np.zeros(0, np.uint64)
    step = np.uint64(PAGE_SIZE)
    both = np.stack((edges - step, edges + step), axis=1).ravel()
    if mode.canonical:  # a neighbour over the edge of the canonical half is not canonical: that is its point
        return both[~_mapped(ranges, both)]
    both &= np.uint64((1 << 32) - 1)
    return both[~_mapped(ranges, both)]


def _inside(ranges: Ranges, count: int, rng: np.random.Generator) -> Words:
    """Pages inside ranges: every range is as likely as any other, however long."""
    at = rng.integers(0, len(ranges), count)
    page = (rng.random(count) * ranges.pages[at]).astype(np.uint64)
    inside: Words = ranges.first[at] + (page << np.uint64(PAGE_SHIFT))
    return inside


def _random(mode: PagingMode, count: int, rng: np.random.Generator) -> Words:
    va = rng.integers(0, 1 << 63, count, dtype=np.uint64) << np.uint64(1)
    if not mode.canonical:
        return va >> np.uint64(32)
    return (va.view(np.int64) >> (64 - mode.va_bits)).view(np.uint64)


def _non_canonical(mode: PagingMode, rng: np.random.Generator) -> Words:
    """Both edges of the hole between the canonical halves, and addresses inside it."""
    low = 1 << (mode.va_bits - 1)
    high = (1 << 64) - low
    drawn = rng.integers(low, high, NON_CANONICAL_PAGES - 2, dtype=np.uint64)
    return np.concatenate((np.asarray([low, high - PAGE_SIZE], np.uint64), drawn))
