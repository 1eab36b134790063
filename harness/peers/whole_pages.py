"""Whole shadow pages at once: made to agree with the guest's table, and emptied."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from harness.engine import Words
from harness.peers.pages import ShadowPage
from harness.peers.tables import Tables
from harness.x86.bits import ENTRIES, PTE_ADDR, PTE_D, PTE_P, PTE_PK_SHIFT, PTE_RW
from harness.xi.gpt import OPEN_LEAF
from harness.xi.roles import DIRECT, GUEST

ROOT_ENTRIES: Final = 4  # of a root in PAE format
_ADDR: Final = np.uint64(PTE_ADDR)
_RW: Final = np.uint64(PTE_RW)
_FLAG_BITS: Final = np.uint64(0x7F)


class WholePages(Tables):
    """What `Tables` does to one SPTE, for all of a page; level 1 with numpy."""

    def reconcile(self, page: ShadowPage, fill: bool) -> None:
        """Makes every SPTE of `page` what its guest entry asks for now; with `fill` those too that are empty."""
        if page.kind is not GUEST:
            if fill:
                self._fill_direct(page)
            return
        entries = self.guest.entries(page)
        self.counters.sptes_visited += len(entries) << page.halved
        if page.level == 1:
            self._reconcile_leaves(page, entries, fill)
            return
        if page.halved:
            entries = np.repeat(entries, 2)
        there = page.spt[: len(entries)] != 0
        if fill:
            there |= (entries & np.uint64(PTE_P)) != 0
        looked_at = len(entries) if fill else int(np.count_nonzero(there))
        self.counters.entries_compared += -(-looked_at // 2) if page.halved else looked_at
        for index in np.flatnonzero(there).tolist():
            before = self.q[page.base + index]
            self.update_entry(page, index, int(entries[index]), fill)
            self.counters.resync_spte += self.q[page.base + index] != before

    def _fill_direct(self, page: ShadowPage) -> None:
        count = ENTRIES if page.kind is DIRECT else ROOT_ENTRIES
        self.counters.sptes_visited += count
        if page.level == 1:
            gfns = np.arange(page.gfn, min(page.gfn + 512, self.config.frames))
            sptes = np.zeros(512, np.uint64)
            assert page.role is not None
            flags = np.uint64(OPEN_LEAF | page.role.variant << PTE_PK_SHIFT)
            sptes[: len(gfns)] = self._leaves(gfns, self.p2m.table[gfns] >= 0, np.full(len(gfns), flags))
            self.write_leaves(page, sptes)
            return
        for index in range(count):
            self.update_direct(page, index)

    def _reconcile_leaves(self, page: ShadowPage, entries: Words, fill: bool) -> None:
        sptes, old = self.wanted_leaves(page, entries), page.spt
        if not fill:
            sptes[((old ^ sptes) & _ADDR != 0) | (old == 0)] = 0
            self.counters.entries_compared += int(np.count_nonzero(old))
        else:
            self.counters.entries_compared += 512
        self.write_leaves(page, sptes)

    def wanted_leaves(self, page: ShadowPage, entries: Words) -> Words:
        """The 512 SPTEs of a GUEST page of level 1 if all of the guest's `entries` are brought in."""
        rules = page.rules
        assert rules is not None
        gfns = ((entries & np.uint64(rules.frame_mask)) >> np.uint64(12)).view(np.int64)
        good = (entries & np.uint64(PTE_P | rules.reserved)) == PTE_P
        good &= gfns < self.config.frames
        gfns = gfns * good
        good &= self.p2m.table[gfns] >= 0
        flags = rules.leaf_array[(entries & _FLAG_BITS).view(np.int64)] | entries & np.uint64(rules.leaf_copy)
        return self._leaves(gfns, good, flags)

    def _leaves(self, gfns: npt.NDArray[np.int64], good: npt.NDArray[np.bool_], flags: Words) -> Words:
        """SPTEs of 4 KiB pages; 0 where not `good`."""
        writable = (flags & np.uint64(PTE_D)) != 0
        writable &= self.protected[gfns] == 0
        if self.logging:
            writable &= self.logged[gfns] != 0
        flags = flags | np.where(writable, _RW, np.uint64(0))
        sptes: Words = np.where(good, self.p2m.table[gfns].view(np.uint64) << np.uint64(12) | flags, np.uint64(0))
        return sptes

    def write_leaves(self, page: ShadowPage, sptes: Words) -> None:
        """The 512 SPTEs of a level-1 page become `sptes`."""
        old = page.spt
        changed = np.flatnonzero(old != sptes)
        if not len(changed):
            return
        self.version += 1
        before, after = old[changed], sptes[changed]
        replaced = (before != 0) & (after != 0) & ((before ^ after) & _ADDR != 0)  # cleared first
        self.counters.resync_spte += len(changed)
        self.counters.sptes_written += len(changed) + int(np.count_nonzero(replaced))
        if self.overridden:
            self.overridden.difference_update((changed + page.base).tolist())
        moved = np.flatnonzero(((before ^ after) & _ADDR != 0) | (before == 0) | (after == 0))
        q, base = self.q, page.base
        for index, was in zip(changed[moved].tolist(), before[moved].tolist(), strict=True):
            if was:
                q[base + index] = 0
                self.leaf_gone(page, base + index, self.leaf_gfn(was))
        old[changed] = after
        for index, now in zip(changed[moved].tolist(), after[moved].tolist(), strict=True):
            if now:
                self.leaf_set(page, base + index, self.leaf_gfn(now))

    def drop_all(self, page: ShadowPage) -> None:
        """Clears every SPTE of `page`."""
        used = page.used
        self.counters.sptes_visited += ENTRIES
        for index in used:
            if self.q[page.base + index]:
                self.drop(page, page.base + index)
