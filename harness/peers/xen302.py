"""`xen302`: the shadow page tables of Xen 3.0.2 (mid-2006) for HVM guests, "the current shadow" of the XI discussion.

Followed is the published behaviour of its shadow code; each part stands at its method. Two habits make its cost. What
went out of sync is brought back all at once (`sync_all`): at every load of CR3, and at every fault on an address of
which one table's entry is not what its snapshot says. And a page that becomes a page table is write-protected by a
search (`write_search`). What is otherwise than there, and why:

- A snapshot is taken when a store faults. Whoever announces a store otherwise (`table_written`) may do so when it has
  been made, as under observation; such a snapshot vouches for nothing, and every entry that it covers is brought in
  anew.
- A and D bits that the engine sets in a table out of sync are put into its snapshot too: a guest that clears them again
  would otherwise have an entry that is as it was, and an SPTE that is not.
- A shadow that is linked at a new place must not be stale there, since a guest need not flush where nothing was mapped:
  all is synchronised first if it, or what is below it, is out of sync. So it is there when a page out of sync gets a
  second shadow.
- The PDPTEs of a PAE guest are registers: their shadow never goes out of sync, and is brought in line at each flush.
- Shadow pages come from the engine's pool, since the hardware walks only that; snapshots, which nobody walks, from
  memory beside it. Where Xen gave up for want of memory all shadows are freed, as a flush of the shadow by its control
  operation does, and the fault goes on. Freed tables of level 1 are zeroed when they are wanted, not before.
- Under eager fill a page is filled when it is made, and a comparison covers whole tables. A fault has time for its path
  only; what it leaves unfinished is filled at the next flush.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from harness.engine import AuditFailure, EngineConfig, MachineMemory, Words
from harness.peers.engine import PROTECTING, PeerEngine
from harness.peers.faults import NoRoom
from harness.peers.out_of_sync import Snapshot
from harness.peers.pages import ShadowPage
from harness.peers.stale import is_stale
from harness.peers.tables import TABLE
from harness.peers.write_search import BYTES_PER_FRAME
from harness.peers.xen302_audit import audit_xen302
from harness.peers.xen302_pages import CountedPages
from harness.work import HASH_ENTRY_BYTES, Held
from harness.x86.bits import ENTRIES, PTE_A, PTE_ADDR, PTE_P, PTE_RW
from harness.x86.modes import MODES
from harness.xi.guest_walk import Walk
from harness.xi.roles import GUEST, Role

_SHADOWABLE: Final = PTE_P | PTE_A  # of an entry of level 1
_ADDR: Final = np.uint64(PTE_ADDR)
_LEVELS: Final = (1, 2, 3, 4, 5)


class Xen302Engine(CountedPages):
    """Xen 3.0.2's shadow. ``Xen302Engine(config, memory)``; no options.

    full_syncs: calls of `sync_all` with something to do; roots_given_up: roots that looked dead.
    """

    name = "xen302"
    operations = {**PeerEngine.operations, **PROTECTING}  # noqa: RUF012 - as in `Counted`

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        super().__init__(config, memory)
        self.full_syncs = 0
        self.roots_given_up = 0
        self._truncated = 0  # `truncated` when all was last filled

    # Going out of sync.

    def in_sync(self, page: ShadowPage) -> bool:
        return bool(self.guards[page.index]) and bool(self.protected[page.gfn])

    def store_to_table(self, gfn: int, walk: Walk | None) -> None:
        """`gfn`, a table in sync, goes out of sync; without a `walk` it may have been stored to already. The snapshot
        of a table of level 1 is of the span that its shadows are known to use, or will after the store's own path."""
        pages, mfn = self.of_gfn[gfn], self.p2m.to_mfn[gfn]
        table = self._table(mfn)
        first, last = 0, len(table) - 1
        if not self.eager and all(page.level == 1 for page in pages):
            path = walk.addresses if walk is not None else ()
            own = [(address & 0xFFF) // table.itemsize for address in path if address >> 12 == mfn]
            first = min([page.first + self.low[page.index] for page in pages] + own)
            last = max([page.first + self.high[page.index] for page in pages] + own)
        snapshot = Snapshot(table, first, last, walk is None)
        self.counters.pages_allocated += 1
        self.counters.words_copied += snapshot.words
        self.out_of_sync.add(gfn, snapshot)
        self.protected[gfn] = 0
        self.version += 1

    def _table(self, mfn: int) -> npt.NDArray[np.uint32] | Words:
        """The entries of the guest table in machine frame `mfn`."""
        words = self.memory.page(mfn)
        return words.view(np.uint32) if self.state.mode.entry_bytes == 4 else words

    def before_walk(self, va: int) -> None:
        self.fault_va = va
        if self.out_of_sync.tables and self.guest.paged and self._is_stale(va):
            self.sync_all()

    def _is_stale(self, va: int) -> bool:
        """Whether a table on the path of `va` has another entry there than its snapshot."""
        walk, size = self.guest.gva_to_gpa(va), self.state.mode.entry_bytes
        self.counters.entries_compared += len(walk.entries)
        for address, entry in zip(walk.addresses, walk.entries, strict=True):
            snapshot = self._snapshot_at(address)
            if snapshot is not None and not snapshot.holds((address & 0xFFF) // size, entry):
                return True
        return False

    def _snapshot_at(self, address: int) -> Snapshot | None:
        """The snapshot of the table that has an entry at machine `address`; -1 for none."""
        return None if address < 0 else self.out_of_sync.tables.get(self.p2m.to_gfn[address >> 12])

    def map_path(self, va: int, walk: Walk, store: bool, override: bool) -> None:
        gfn, size = walk.gfn, self.state.mode.entry_bytes
        for address, entry in zip(walk.addresses, walk.entries, strict=True) if self.out_of_sync.tables else ():
            snapshot = self._snapshot_at(address)
            if snapshot is not None:
                snapshot.note((address & 0xFFF) // size, entry)
        to_table = store and bool(self.is_table[gfn])
        self.storing = gfn if to_table else -1
        try:
            super().map_path(va, walk, store, override)
        except NoRoom:
            self.counters.recycled += len(self.pool_pages.in_use)
            role = self._role
            self.empty()
            self._use_root(role)
            super().map_path(va, walk, store, override)
        finally:
            self.storing = -1
        if to_table:
            self._record(va)

    def _record(self, va: int) -> None:
        """Notes the SPTE of `va` if it lets a table be written."""
        page = self.root_page
        assert page is not None
        while page.level > 1:
            page = self.pool_pages.child(self.q[page.base + (va >> page.shift & 511)])
        word = page.base + (va >> 12 & 511)
        if self.q[word] & PTE_RW:
            self.out_of_sync.writable.append(word)
            self.references[page.index] += 1  # it must be there when write access is taken back

    # Synchronisation.

    def sync_all(self) -> None:
        """Everything that is out of sync is brought back: write access is taken from all recorded SPTEs, each table is
        compared with its snapshot, level by level from the lowest, and the SPTEs of changed entries are made anew."""
        self._take_recorded()
        gfns = list(self.out_of_sync.tables)
        if not gfns:
            return
        self.full_syncs += 1
        self.version += 1
        self.syncing = True
        try:
            self.protected[gfns] = 1
            for level in _LEVELS:
                for gfn in gfns:
                    for page in list(self.of_gfn.get(gfn, ())):
                        if page.level == level and self.guards[page.index] and page.gfn == gfn:
                            self._sync_page(page)
            self._give_up_roots()
            self.out_of_sync.tables.clear()
        finally:
            self.syncing = False

    def _take_recorded(self) -> None:
        words, self.out_of_sync.writable = self.out_of_sync.writable, []
        for word in words:
            self.search.take(word)
        for word in words:
            self.release(self.pool_pages.owner(word))

    def _sync_page(self, page: ShadowPage) -> None:
        """One shadow of a table, whose snapshot tells which entries of it changed."""
        snapshot = self.out_of_sync.tables.get(page.gfn)
        entries = self.guest.entries(page)
        first, last = 0, page.count - 1
        if not self.eager and page.level < MODES[self.mode_of(page)].levels[0].number:
            first, last = self.low[page.index] >> page.halved, self.high[page.index] >> page.halved
        if snapshot is None or last < first:
            return
        now = entries[first : last + 1]
        self.counters.entries_compared += len(now)
        for number in snapshot.changed(page.first + first, now).tolist():
            entry, index = int(now[number]), first + number << page.halved
            self._bring_in(page, index, entry)
            if page.halved:
                self._bring_in(page, index + 1, entry)

    def _bring_in(self, page: ShadowPage, index: int, entry: int) -> None:
        """SPTE `index` is made anew from the guest's `entry`. A shadow of a table below is linked, but not made."""
        fill = self.eager
        if not fill and page.level == 1:
            fill = entry & _SHADOWABLE == _SHADOWABLE
        elif not fill:
            kind, gfn = self.classify(page, index, entry)
            fill = kind == TABLE and self.child_role(page, index, gfn, entry) in self.pool_pages.by_role
        before = self.q[page.base + index]
        self.update_entry(page, index, entry, fill)
        self.counters.resync_spte += self.q[page.base + index] != before

    def _give_up_roots(self) -> None:
        """Roots that no longer look like one: with an entry that is neither present nor empty, or with none at all."""
        for number in list(self.roots):
            page = self.pool_pages.pages[number]
            if page is self.root_page or page.gfn not in self.out_of_sync.tables:
                continue
            entries = self._table(self.p2m.to_mfn[page.gfn])
            used = entries[entries != 0]
            if not len(used) or (used & PTE_P == 0).any():
                self.roots_given_up += 1
                self._give_up_root(page)

    def _give_up_root(self, page: ShadowPage) -> None:
        self.roots.remove(page.index)
        self.release(page)

    @property
    def _role(self) -> Role:
        """Of the root in use."""
        assert self.root_page is not None and self.root_page.role is not None
        return self.root_page.role

    def flush(self, role: Role) -> None:
        if self.root_page is not None and self._role.mode != role.mode:
            self.empty()  # as when the number of the guest's levels changes
        self.sync_all()
        self._use_root(role)
        if self.eager and self.counters.truncated != self._truncated:
            self.empty()  # shadows of other address spaces may have left no room
            self._use_root(role)
            self._truncated = self.counters.truncated

    def _use_root(self, role: Role) -> None:
        root = self.get_page(role)
        if root is None:
            self.empty()
            root = self.get_page(role)
        assert root is not None
        if root.index not in self.roots:
            self.roots.add(root.index)
            self.references[root.index] += 1
        self.set_root(root)
        if self.on_fault:
            return
        if root.kind is not GUEST or (root.rules is not None and root.rules.latched):
            self.reconcile(root, self.eager)
        for number in sorted(self.partial):
            page = self.pool_pages.pages[number]
            if number in self.partial:  # it may have gone with another
                self.partial.remove(number)
                self.reconcile(page, True)

    def refresh_address(self, va: int) -> None:
        """The address is synchronised as before a fault. The processor's paging-structure caches go whole, so nothing
        above level 1 may be stale either."""
        if not self.out_of_sync.tables or not self.guest.paged:
            return
        above = any(page.level > 1 for gfn in self.out_of_sync.tables for page in self.of_gfn[gfn])
        if above or self._is_stale(va):
            self.sync_all()

    # Frames: none of this is looked up, all of it is searched for.

    def take_write_access(self, gfns: npt.NDArray[np.int64] | None) -> int:
        """A round of the dirty log begins with all shadows freed, whatever was stored to."""
        del gfns
        if self.root_page is None:
            return 0
        lost = int(self.search.count.sum())
        role = self._role
        self.empty()
        self._use_root(role)
        return lost

    def forget_frame(self, gfn: int) -> None:
        """Every SPTE of every shadow is looked at."""
        if self.eager:
            self.partial.update(self.pool_pages.in_use)  # what maps it is to be filled when it has a frame again
        mfn = self.p2m.to_mfn[gfn]
        if mfn < 0:
            return
        for page in self.pool_pages.in_use.values():
            self._drop_to(page, mfn)

    def forget_table(self, gfn: int) -> None:
        self._take_recorded()
        for page in list(self.of_gfn.get(gfn, ())):
            if page.role is None or page.gfn != gfn:
                continue  # it went with another
            if page is self.root_page:
                self._promote(page)
                if self.eager:
                    self.partial.add(page.index)
            else:
                self._unlink(page)

    def _unlink(self, page: ShadowPage) -> None:
        """Takes away all that keeps `page`."""
        for other in list(self.pool_pages.in_use.values()):
            if other.level == page.level + 1:
                self._drop_to(other, page.mfn)
        if page.index in self.roots:
            self._give_up_root(page)

    def _drop_to(self, page: ShadowPage, mfn: int) -> None:
        """Clears the SPTEs of `page` that lead to machine frame `mfn`."""
        self.counters.sptes_visited += ENTRIES
        for index in np.flatnonzero((page.spt & _ADDR) == np.uint64(mfn << 12)).tolist():
            if self.q[page.base + index]:
                self.drop(page, page.base + index)

    # For the harness.

    def unexplained_changes(self) -> list[int]:
        """See `harness.engine`: in-sync pages of which an SPTE is not what the guest's entry asks for."""
        out = {
            page.gfn
            for page in self.pool_pages.in_use.values()
            if self.in_sync(page)
            and is_stale(self, page, self.guest.entries(page), self.eager and page.index not in self.partial)
        }
        self.counters.unexplained += len(out)
        for gfn in out:
            self.store_to_table(gfn, None)
        return sorted(out)

    def audit(self) -> list[AuditFailure]:
        return super().audit() + audit_xen302(self)

    def held(self) -> Held:
        """reverse: beside the hash, which has the snapshots too, back pointers and counts, and what is recorded."""
        held, oos = super().held(), self.out_of_sync
        frames = self.config.frames * BYTES_PER_FRAME
        kept = frames + len(oos.tables) * HASH_ENTRY_BYTES + oos.record_bytes
        return held._replace(snapshots=oos.snapshot_bytes, reverse=held.reverse + kept)

    def stats(self) -> dict[str, object]:
        """Beside the common ones: synchronisations of everything that had something to do, snapshots taken, searches
        that the back pointer answered and those that went through the whole shadow, roots that were given up, and how
        often all was freed."""
        return super().stats() | {
            "full_syncs": self.full_syncs,
            "snapshots_taken": self.out_of_sync.made,
            "back_pointer_hits": self.search.hits,
            "linear_searches": self.search.searches,
            "roots_given_up": self.roots_given_up,
            "emptied": self.emptied,
        }
