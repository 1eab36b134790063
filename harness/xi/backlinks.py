"""The backlink policy ``all``, which is XI's own: for every target, the list of the SPTEs that point to it.

Two pages of an SPTI hold 512 pairs (next, previous), index for index with its SPTEs, so that the way from an SPTE to
its backlink and back is arithmetic. Heads are kept per gfn and page size for leaves, and per SPTI for the SPTEs that
lead to it (its parents). A link is a pool word + 1, so that a zero page is a page without links; the first node's
`previous` names its head, so unlinking needs to know nothing of the target.
"""

from __future__ import annotations

from copy import copy
from typing import Final

import numpy as np

from harness.xi.links import Ints, Slots
from harness.xi.pool import BACKLINKS, SPTI_SHIFT, Pool

HEAD: Final = 1 << 62

_SCALAR_BELOW: Final = 8  # shorter runs are linked one by one: cheaper than setting up numpy


class Backlinks(Slots):
    """Lists of SPTEs by target: see `harness.xi.links.Links`."""

    policy = "all"
    kept = "of every SPTE"
    spti_pages = 2
    grown_bytes = 0
    pages_allocated = 0
    followed = 0

    def __init__(self, pool: Pool, frames: int) -> None:
        """`frames`: guest frames of the domain."""
        super().__init__(frames, len(pool))
        self._pool = pool
        self._q = pool.q
        self._signed = pool.signed
        self._heads_array = np.zeros(self.slots, np.int64)
        self.heads = self._heads_array.data.cast("B").cast("Q")
        self.fixed_bytes = self._heads_array.nbytes

    def link(self, word: int, slot: int) -> None:
        """Puts the SPTE at `word` at the front of a list. O(1)."""
        q = self._q
        at = word + BACKLINKS + (word & 511)
        head = self.heads[slot]
        q[at] = head
        q[at + 1] = HEAD | slot
        if head:
            old = head - 1
            q[old + BACKLINKS + 1 + (old & 511)] = word + 1
        self.heads[slot] = word + 1

    def unlink(self, word: int) -> None:
        """Takes the SPTE at `word` off its list. O(1)."""
        q = self._q
        at = word + BACKLINKS + (word & 511)
        after, before = q[at], q[at + 1]
        if before & HEAD:
            self.heads[before ^ HEAD] = after
        else:
            node = before - 1
            q[node + BACKLINKS + (node & 511)] = after
        if after:
            node = after - 1
            q[node + BACKLINKS + 1 + (node & 511)] = before
        q[at] = 0
        q[at + 1] = 0

    def nodes(self, slot: int) -> list[int]:
        """The words of all SPTEs on a list, as of now."""
        q = self._q
        out: list[int] = []
        link = self.heads[slot]
        while link:
            word = link - 1
            out.append(word)
            link = q[word + BACKLINKS + (word & 511)]
        self.followed += len(out)
        return out

    def leaves(self) -> Ints:
        """The words of all SPTEs that map a page, large or small, in no particular order."""
        return self._gather(self._heads_array[: self._base_parents])

    def pages(self, gfns: Ints) -> Ints:
        """The words of all SPTEs that map one of the 4 KiB pages `gfns`, in no particular order."""
        return self._gather(self._heads_array[gfns])

    def _gather(self, heads: Ints) -> Ints:
        """The words of all nodes of the lists that begin at `heads`: a step along all lists at once, as long as there
        are enough of them."""
        signed = self._signed
        parts: list[Ints] = []
        link = heads[heads != 0]
        while len(link) >= _SCALAR_BELOW:
            words = link - 1
            parts.append(words)
            link = signed[words + BACKLINKS + (words & 511)]
            link = link[link != 0]
        rest: list[int] = []
        q = self._q
        for first in link.tolist():
            after = first
            while after:
                word = after - 1
                rest.append(word)
                after = q[word + BACKLINKS + (word & 511)]
        parts.append(np.array(rest, np.int64))
        words = np.concatenate(parts)
        self.followed += len(words)
        return words

    @property
    def pages_held(self) -> int:
        return self.spti_pages * self._pool.held

    @property
    def pages_peak(self) -> int:
        return self.spti_pages * self._pool.held_peak

    def empty(self, slot: int) -> bool:
        return not self.heads[slot]

    def table_appears(self, gfn: int) -> None:
        """It has its list already."""

    def table_gone(self, gfn: int) -> None:
        """Its list stays."""

    def mapping(self, gfn: int) -> list[tuple[int, int]]:
        return [(word, level) for level in (1, 2, 3) for word in self.nodes(self.slot(level, gfn))]

    def aside(self) -> Backlinks:
        return copy(self)

    def listed(self, slot: int) -> list[int]:
        out: dict[int, None] = {}
        link = self.heads[slot]
        while link and link - 1 not in out and link <= len(self._q):
            out[link - 1] = None
            link = self._backlink(link - 1)[0]
        return list(out)

    def unlinked(self, word: int, slot: int) -> str:
        after, before = self._backlink(word)
        if not before:
            return "on no list: it has no backlink"
        if before & HEAD:
            if before ^ HEAD != slot:
                return "on the list of another target"
            there = self.heads[slot]
        else:
            there = self._backlink(before - 1)[0]
        back = self._backlink(after - 1)[1] if after else word + 1
        return "" if there == back == word + 1 else "its neighbours on the list do not know it"

    def _backlink(self, word: int) -> tuple[int, int]:
        """(next, previous) of the SPTE at `word`; (0, 0) outside the pool."""
        at = word + BACKLINKS + (word & 511)
        return (self._q[at], self._q[at + 1]) if at + 1 < len(self._q) else (0, 0)

    def link_many(self, words: Ints, slots: Ints) -> None:
        """Links `words[i]` into list `slots[i]` for all i. Slots may repeat: each round links one word a slot, the one
        whose number stays in the head when all are written there."""
        heads, signed = self._heads_array, self._signed
        while len(words) >= _SCALAR_BELOW:
            order = np.arange(len(words))
            before = heads[slots]
            heads[slots] = order
            won = heads[slots] == order
            w, s, old = words[won], slots[won], before[won]
            at = w + BACKLINKS + (w & 511)
            signed[at] = old
            signed[at + 1] = s | HEAD
            node = old[old != 0] - 1
            signed[node + BACKLINKS + 1 + (node & 511)] = w[old != 0] + 1
            heads[s] = w + 1
            if len(w) * 2 < len(words):  # few targets, many times each: rounds would not pay
                words, slots = words[~won], slots[~won]
                break
            words, slots = words[~won], slots[~won]
        for word, slot in zip(words.tolist(), slots.tolist(), strict=True):
            self.link(word, slot)

    def unlink_many(self, words: Ints) -> None:
        """Unlinks linked SPTEs of one SPT. Neighbours within the SPT go one by one, the rest at once."""
        if len(words) < _SCALAR_BELOW:
            for word in words.tolist():
                self.unlink(word)
            return
        signed = self._signed
        own = int(words[0]) >> SPTI_SHIFT
        at = words + BACKLINKS + (words & 511)
        after, before = signed[at], signed[at + 1]
        inside = ((after != 0) & ((after - 1) >> SPTI_SHIFT == own)) | (
            (before < HEAD) & ((before - 1) >> SPTI_SHIFT == own)
        )
        if inside.any():
            for word in words[inside].tolist():
                self.unlink(word)
            at = at[~inside]
            after, before = signed[at], signed[at + 1]
        first = before >= HEAD
        self._heads_array[before[first] ^ HEAD] = after[first]
        node = before[~first] - 1
        signed[node + BACKLINKS + (node & 511)] = after[~first]
        follower = after != 0
        node = after[follower] - 1
        signed[node + BACKLINKS + 1 + (node & 511)] = before[follower]
        signed[at] = 0
        signed[at + 1] = 0
