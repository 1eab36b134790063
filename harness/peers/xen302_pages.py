"""The shadow pages of the `xen302` engine: counted references, and accounts of what lets a frame be written.

A page is freed, and what it leads to, when the last SPTE that leads to it goes; roots are kept until they are given up.
With the first shadow of a guest's page that becomes a page table (it is *promoted*), with the last it is one no longer.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from harness.engine import EngineConfig, MachineMemory, Words
from harness.peers.engine import PeerEngine
from harness.peers.out_of_sync import OutOfSync
from harness.peers.pages import ShadowPage
from harness.peers.write_search import WriteSearch
from harness.x86.bits import ENTRIES, PTE_ADDR, PTE_P, PTE_RW
from harness.xi.roles import DIRECT, GUEST

_NOT_RW: Final = np.uint64(~PTE_RW & (1 << 64) - 1)


class CountedPages(PeerEngine):
    """Shadow pages with counted references, of which large ones are splintered.

    of_gfn: the GUEST pages of each gfn. shadowed: uint8 by gfn, whether it is a page table, in sync or not. By page
    number: references (SPTEs that lead to it, records of its SPTEs, and one for a root), low and high (the SPTEs in use
    lie between them, high < low for none), guards (its table goes out of sync and back). roots: numbers of the pages
    that are kept though nothing leads to them. partial: under eager fill, pages that may have gaps. storing: the
    table that the fault being answered stores to, -1 for none; fault_va: its address. syncing: `sync_all` is at work.
    """

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        super().__init__(config, memory)
        count = len(self.pool_pages)
        self.search = WriteSearch(self.pool_pages, self.p2m, self.counters)
        self.out_of_sync = OutOfSync()
        self.of_gfn: dict[int, list[ShadowPage]] = {}
        self.shadowed = np.zeros(config.frames, np.uint8)
        self.is_table = self.shadowed.data
        self.references = [0] * count
        self.low = [ENTRIES] * count
        self.high = [-1] * count
        self.guards = bytearray(count)
        self.roots: set[int] = set()
        self.partial: set[int] = set()
        self.emptied = 0
        self.storing = -1
        self.fault_va = 0
        self.syncing = False

    def sync_all(self) -> None:
        """Everything that is out of sync is brought back."""
        raise NotImplementedError

    # Accounts of SPTEs: how many let each frame be written, which of a table are used, who leads to a page.

    def leaf_set(self, page: ShadowPage, word: int, gfn: int) -> None:
        self.search.mapped(gfn, word)
        self._use(page.index, word & 511)

    def child_set(self, page: ShadowPage, word: int, child: ShadowPage) -> None:
        self.references[child.index] += 1
        self._use(page.index, word & 511)

    def _use(self, number: int, index: int) -> None:
        self.low[number] = min(self.low[number], index)
        self.high[number] = max(self.high[number], index)

    def child_gone(self, page: ShadowPage, word: int, child: ShadowPage) -> None:
        self.release(child)

    def put_leaf(self, page: ShadowPage, word: int, gfn: int, spte: int, fill: bool) -> None:
        old = self.q[word]
        super().put_leaf(page, word, gfn, spte, fill)
        new = self.q[word]
        self.search.change(gfn, 0 if (old ^ spte) & PTE_ADDR else old, new)  # `drop` has seen to one that led elsewhere
        if new:
            self.search.mapped(gfn, word)

    def drop(self, page: ShadowPage, word: int) -> None:
        if page.level == 1:
            spte = self.q[word]
            self.search.change(self.leaf_gfn(spte), spte, 0)
        super().drop(page, word)

    def write_leaves(self, page: ShadowPage, sptes: Words) -> None:
        changed = np.flatnonzero(page.spt != sptes)
        self.search.change_many(page.spt[changed], sptes[changed])
        super().write_leaves(page, sptes)

    def override(self, page: ShadowPage, index: int) -> None:
        word = page.base + index
        old = self.q[word]
        super().override(page, index)
        if page.level == 1:
            self.search.change(self.leaf_gfn(old), old, self.q[word])

    def end_overrides(self) -> None:
        """What is made anew here must be what the snapshots say."""
        if self.overridden:
            self.sync_all()
        super().end_overrides()

    # What may be written: a table only through the SPTE that a store to it has faulted on.

    def writable(self, gfn: int) -> bool:
        return (not self.is_table[gfn] or gfn == self.storing) and super().writable(gfn)

    def _leaves(self, gfns: npt.NDArray[np.int64], good: npt.NDArray[np.bool_], flags: Words) -> Words:
        sptes = super()._leaves(gfns, good, flags)
        if self.out_of_sync.tables:
            sptes[self.shadowed[gfns] != 0] &= _NOT_RW
        return sptes

    def whole(self, gfn: int, level: int) -> bool:
        """Never: a large page is splintered into tables of level 1."""
        return False

    # Shadow pages. They are counted references to; the roots of all address spaces have one of their own.

    def page_made(self, page: ShadowPage) -> None:
        index = page.index
        self.references[index] = 0
        self.low[index], self.high[index] = ENTRIES, -1
        if page.kind is GUEST:
            if page.gfn in self.out_of_sync.tables:
                self._sync_for(page)  # nobody knows how old the snapshot is
            self.of_gfn.setdefault(page.gfn, []).append(page)
            self._promote(page)
        if page.kind is DIRECT and page.level == 1:
            self.reconcile(page, True)
        elif self.eager and self.on_fault and not self.syncing:
            self.partial.add(index)
        elif self.eager:
            self.reconcile(page, True)
        elif page.kind is GUEST and page.level == 1 and self.on_fault:
            self._prefetch(page)

    def page_found(self, page: ShadowPage) -> None:
        if self.out_of_sync.tables and not self.syncing and self._unsync_below(page):
            self._sync_for(page)

    def _sync_for(self, page: ShadowPage) -> None:
        """Synchronises all before `page`, which must outlive it, is linked."""
        if not self.syncing:
            self.references[page.index] += 1
            self.sync_all()
            self.references[page.index] -= 1

    def _unsync_below(self, page: ShadowPage) -> bool:
        """Whether `page`, or one that it leads to, is out of sync."""
        seen, left = {page.index}, [page]
        while left:
            page = left.pop()
            if page.kind is GUEST and page.gfn in self.out_of_sync.tables:
                return True
            if page.level > 1:
                self.counters.sptes_visited += ENTRIES
                children = [self.pool_pages.child(spte) for spte in page.spt[page.spt != 0].tolist()]
                left += [child for child in children if child.index not in seen]
                seen.update(child.index for child in children)
        return False

    def _prefetch(self, page: ShadowPage) -> None:
        """A new table of level 1 gets, of the guest's entries that can be shadowed, those from the first on until one
        that cannot, and those from the address of the fault on until one that cannot."""
        wanted = self.wanted_leaves(page, self.guest.entries(page))
        ends = np.append(np.flatnonzero(wanted & np.uint64(PTE_P) == 0), ENTRIES)
        at = self.fault_va >> 12 & 511
        first = int(ends[0])
        second = int(ends[np.searchsorted(ends, at)]) if first < at else at
        looked_at = min(first + 1, ENTRIES) + (min(second + 1, ENTRIES) - at if first < at else 0)
        self.counters.entries_compared += looked_at
        wanted[first : max(first, at)] = 0
        wanted[max(first, second) :] = 0
        self.write_leaves(page, wanted)

    def _promote(self, page: ShadowPage) -> None:
        """The table of `page` is write-protected, if there is memory behind it, and if it is no PDPTE registers."""
        rules = page.rules
        assert rules is not None
        if rules.latched or not self.p2m.backed(page.gfn):
            return
        self.guards[page.index] = 1
        if not self.is_table[page.gfn]:
            self.is_table[page.gfn] = 1
            self.write_protect(page.gfn)

    def write_protect(self, gfn: int) -> None:
        """A page becomes a page table: nothing may map it writable from now on."""
        self.counters.write_protect += 1
        self.protected[gfn] = 1
        self.version += 1
        self.search.take_all(gfn)

    def release(self, page: ShadowPage) -> None:
        """One reference to `page` is gone. After the last it is freed, and so may be what it leads to."""
        self.references[page.index] -= 1
        if not self.references[page.index]:
            self._free(page)

    def _free(self, page: ShadowPage) -> None:
        self.drop_all(page)
        self.partial.discard(page.index)
        if page.kind is GUEST:
            pages = self.of_gfn[page.gfn]
            pages.remove(page)
            if not pages:
                del self.of_gfn[page.gfn]
            if self.guards[page.index]:
                self.guards[page.index] = 0
                if not any(self.guards[other.index] for other in pages):
                    self._demote(page.gfn)
        self.version += 1
        self.pool_pages.give_back(page)

    def _demote(self, gfn: int) -> None:
        """`gfn` is a page table no longer."""
        self.is_table[gfn] = 0
        self.protected[gfn] = 0
        self.out_of_sync.tables.pop(gfn, None)

    def empty(self) -> None:
        """Frees every shadow page, the root too."""
        self.emptied += 1
        self.counters.sptes_visited += ENTRIES * len(self.pool_pages.in_use)
        self.out_of_sync.clear()
        self.search.forget()
        self.of_gfn.clear()
        self.shadowed[:] = 0
        self.protected[:] = 0
        self.guards[:] = bytes(len(self.guards))
        self.roots.clear()
        self.partial.clear()
        self.overridden.clear()
        self.pool_pages.clear()
        self.root_page = None
        self.version += 1
