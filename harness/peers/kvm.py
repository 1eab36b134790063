"""`kvm`: the shadow MMU of Linux KVM, from its published sources.

Followed are arch/x86/kvm/mmu/mmu.c and paging_tmpl.h, and Documentation/virt/kvm/x86/mmu.rst, of Linux 5.13 to 6.1; the
functions are named where their work is done. What is otherwise than there, and why:

- KVM emulates a guest's store to a table that may not go unsync: one of an upper level, or one that is shadowed in two
  roles. Nothing here emulates instructions, so such a table is *opened* instead: it goes unsync like a last-level one
  and is recomputed at the next flush. That costs one fault for each run of stores where KVM pays one for each store.
  As in KVM (`detect_write_flooding`) a table that is stored to for the third time, no fault having gone through it in
  between, is taken to be none any more and is zapped; but not one that the store itself is translated by, which KVM
  does not zap either (`kvm_mmu_unprotect_page`, EMULTYPE_WRITE_PF_TO_SP).
- The two halves of a 32-bit guest's page table are one role here, as far as going unsync is concerned.
- Under eager fill a page is filled when it is made, and one that lost a child goes unsync, to be filled again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.engine import AuditFailure, EngineConfig, MachineMemory
from harness.peers.engine import PROTECTING, PeerEngine
from harness.peers.kvm_audit import audit_kvm
from harness.peers.pages import ShadowPage
from harness.peers.rmap import HEAD_BYTES, Rmap
from harness.peers.stale import is_stale
from harness.work import Held, Work
from harness.x86.bits import ENTRIES, PTE_PS, PTE_RW
from harness.xi.guest_walk import Walk
from harness.xi.roles import GUEST, UNPAGED, Role

MIN_FREE: Final = 5  # KVM_MIN_FREE_MMU_PAGES: what the path of a fault may take
LONGEST_PATH: Final = 5
REFILL: Final = 25  # KVM_REFILL_PAGES
FLOOD: Final = 3  # stores to an upper table, with no fault through it
_LEVELS: Final = (1, 2, 3)
_RW: Final = np.uint64(PTE_RW)
_NOT_RW: Final = ~PTE_RW


class KvmEngine(PeerEngine):
    """KVM's shadow MMU. ``KvmEngine(config, memory)``; no options.

    rmap: the leaf SPTEs by (gfn, level); parents: the SPTEs that lead to a page, by its number. By page number: unsync,
    unsync_children (a bit for each SPTE below which something is unsync), floods, guards (its table is protected while
    in sync). opened: unsync pages whose stores KVM would emulate. of_gfn: the GUEST pages of each gfn. shadowed: by
    level (2 or 3), how many tables there are in each large frame (`account_shadowed`, ``disallow_lpage``).
    """

    name = "kvm"
    operations = {**PeerEngine.operations, **PROTECTING}  # noqa: RUF012 - as in `Counted`

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        """Raises ValueError when `config` cannot work; the message says what would."""
        if config.pool_frames < MIN_FREE + LONGEST_PATH:  # else a store to a table of its own path never gets there
            raise ValueError(
                f"a pool of {config.pool_frames} frames: kvm keeps {MIN_FREE} free beside a path of {LONGEST_PATH}"
            )
        super().__init__(config, memory)
        count = len(self.pool_pages)
        self.rmap = Rmap()
        self.parents = Rmap()
        self.unsync = bytearray(count)
        self.unsync_children = [0] * count
        self.floods = [0] * count
        self.guards = bytearray(count)
        self.opened: set[int] = set()
        self.of_gfn: dict[int, list[ShadowPage]] = {}
        self.shadowed = {level: [0] * ((config.frames >> 9 * (level - 1)) + 1) for level in (2, 3)}
        self._pins: list[ShadowPage] = []
        self._refill = max(MIN_FREE, min(REFILL, count // 4))

    # Accounts of SPTEs: `rmap_add`, `drop_spte`, `mmu_page_add_parent_pte`, `drop_parent_pte`.

    def leaf_set(self, page: ShadowPage, word: int, gfn: int) -> None:
        self.rmap.add((gfn, page.level), word)

    def leaf_gone(self, page: ShadowPage, word: int, gfn: int) -> None:
        self.rmap.remove((gfn, page.level), word)

    def child_set(self, page: ShadowPage, word: int, child: ShadowPage) -> None:
        self.parents.add(child.index, word)
        if self.unsync[child.index] or self.unsync_children[child.index]:
            self._mark_unsync_child(word)

    def child_gone(self, page: ShadowPage, word: int, child: ShadowPage) -> None:
        self.parents.remove(child.index, word)
        self.unsync_children[page.index] &= ~(1 << (word & 511))

    # Pages: `kvm_mmu_get_page`.

    def whole(self, gfn: int, level: int) -> bool:
        """`kvm_mmu_hugepage_adjust`: whole in the machine, and with no table in it."""
        return self.p2m.whole(gfn, level) and not self.shadowed[level][gfn >> 9 * (level - 1)]

    @contextmanager
    def _pinned(self, page: ShadowPage) -> Iterator[None]:
        """Keeps `page`, and what it leads to, from being given up while it is worked on."""
        self._pins.append(page)
        try:
            yield
        finally:
            self._pins.pop()

    def page_made(self, page: ShadowPage) -> None:
        with self._pinned(page):
            self._begin(page)

    def _begin(self, page: ShadowPage) -> None:
        self.floods[page.index] = 0
        if page.kind is GUEST:
            pages = self.of_gfn.setdefault(page.gfn, [])
            pages.append(page)
            if self._may_guard(page):
                for other in list(pages):
                    if self.unsync[other.index]:
                        self.sync_page(other)  # `kvm_sync_pages`: a second role, and no page may stay unsync
                self._guard(page)
        if self.eager and self.on_fault:
            self.open(page)  # there is time for one path only
        elif self.eager:
            self.reconcile(page, True)

    def page_found(self, page: ShadowPage) -> None:
        """What is linked anew must not be stale: `kvm_mmu_find_shadow_page`, and `FNAME(fetch)` for what is below."""
        self.floods[page.index] = 0
        with self._pinned(page):
            self.sync_tree(page)

    def _may_guard(self, page: ShadowPage) -> bool:
        return page.rules is not None and not page.rules.latched and self.p2m.backed(page.gfn)

    def _guard(self, page: ShadowPage) -> None:
        """The table of `page` is write-protected from now on, and no large page may have it inside."""
        self.guards[page.index] = 1
        for level in (2, 3):
            self.shadowed[level][page.gfn >> 9 * (level - 1)] += 1
        self._protect(page.gfn)

    def _protect(self, gfn: int) -> None:
        """One more page in sync needs `gfn` read-only: `kvm_vcpu_write_protect_gfn`, `rmap_write_protect`."""
        self.protected[gfn] += 1
        self.version += 1
        if self.protected[gfn] > 1:
            return
        self.write_protect(gfn)

    def write_protect(self, gfn: int) -> None:
        """`gfn` is in use as a table that is in sync: nothing may map it writable."""
        self.counters.write_protect += 1
        self._take_rw(gfn)

    def _take_rw(self, gfn: int) -> int:
        lost, q = 0, self.q
        for level in _LEVELS:
            for word in self.rmap.of((gfn & -(1 << 9 * (level - 1)), level)):
                lost += (q[word] & PTE_RW) >> 1
                q[word] &= _NOT_RW
        self.counters.sptes_written += lost
        return lost

    def zap_page(self, page: ShadowPage) -> None:
        """`kvm_mmu_prepare_zap_page`: gives a page up, with what is unsync below it. Not the root."""
        for index in bits_of(self.unsync_children[page.index]) if not self.eager else ():
            self.counters.sptes_visited += 1
            spte = self.q[page.base + index]
            if spte and not self.is_leaf(page, spte):
                child = self.pool_pages.child(spte)
                if child is not self.root_page:
                    self.zap_page(child)
        self.drop_all(page)
        for word in self.parents.of(page.index):
            parent = self.pool_pages.owner(word)
            self.drop(parent, word)
            if self.eager:
                self.open(parent)
        if page.kind is GUEST:
            pages = self.of_gfn[page.gfn]
            pages.remove(page)
            if not pages:
                del self.of_gfn[page.gfn]
        if self.guards[page.index]:
            self.guards[page.index] = 0
            for level in (2, 3):
                self.shadowed[level][page.gfn >> 9 * (level - 1)] -= 1
            if not self.unsync[page.index]:
                self.protected[page.gfn] -= 1
        self.unsync[page.index] = 0
        self.unsync_children[page.index] = 0
        self.opened.discard(page.index)
        self.version += 1
        self.pool_pages.give_back(page)

    # Room: `make_mmu_pages_available`, `kvm_mmu_zap_oldest_mmu_pages`.

    def before_map(self) -> None:
        if len(self.pool_pages.free) < MIN_FREE:
            self._zap_oldest(self._refill, set())

    def make_room(self) -> bool:
        """A root is wanted, or under eager fill any page: then nothing goes that the root leads to, nor what is being
        built."""
        if self.on_fault:
            return False  # `before_map` has seen to it
        self._zap_oldest(1, self._kept() if self.eager else set())
        return bool(self.pool_pages.free)

    def _zap_oldest(self, wanted: int, kept: set[int]) -> None:
        for page in list(self.pool_pages.in_use.values()):
            if len(self.pool_pages.free) >= wanted:
                return
            if page is not self.root_page and page.role is not None and page.index not in kept:
                self.counters.recycled += 1
                self.zap_page(page)

    def _kept(self) -> set[int]:
        start = [page for page in (self.root_page, *self._pins) if page is not None]
        found = {page.index for page in start}
        while start:
            page = start.pop()
            self.counters.sptes_visited += ENTRIES
            for spte in page.spt[page.spt != 0].tolist():
                if not self.is_leaf(page, spte):
                    child = self.pool_pages.child(spte)
                    if child.index not in found:
                        found.add(child.index)
                        start.append(child)
        return found

    # Going unsync: `mmu_try_to_unsync_pages`, `kvm_unsync_page`, `kvm_mmu_mark_parents_unsync`.

    def in_sync(self, page: ShadowPage) -> bool:
        return bool(self.guards[page.index]) and not self.unsync[page.index]

    def store_to_table(self, gfn: int, walk: Walk | None) -> None:
        pages = [page for page in self.of_gfn.get(gfn, ()) if self.in_sync(page)]
        roles = {page.role._replace(quadrant=0) for page in self.of_gfn.get(gfn, ()) if page.role is not None}
        if len(roles) == 1 and pages[0].level == 1:
            for page in pages:
                self._unsync(page)
            return
        needed = self.eager or (walk is not None and gfn in self.guest.tables(walk))
        for page in pages:
            if page.role is None:  # it went with another
                continue
            self.floods[page.index] += page.level > 1
            if self.floods[page.index] >= FLOOD and not needed and page is not self.root_page:
                self.zap_page(page)
            else:
                self.open(page)

    def open(self, page: ShadowPage) -> None:
        """`page` goes unsync though KVM would not let it."""
        if self.in_sync(page):
            self.opened.add(page.index)
            self._unsync(page)

    def _unsync(self, page: ShadowPage) -> None:
        self.unsync[page.index] = 1
        self.protected[page.gfn] -= 1
        self.version += 1
        for word in self.parents.of(page.index):
            self._mark_unsync_child(word)

    def _mark_unsync_child(self, word: int) -> None:
        """Notes on the way up that something below the SPTE at `word` is unsync."""
        climbing = [word]
        while climbing:
            at = climbing.pop()
            number, bit = at >> 9, 1 << (at & 511)
            before = self.unsync_children[number]
            self.unsync_children[number] = before | bit
            if not before:
                climbing += self.parents.of(number)

    # Synchronisation: `kvm_mmu_sync_roots`, `mmu_sync_children`, `FNAME(sync_page)`.

    def sync_page(self, page: ShadowPage) -> None:
        """Recomputes every SPTE of an unsync page from the guest's table, which is protected again. Under eager fill a
        fault has no time for what is missing: the page stays unsync then."""
        if self.eager and self.on_fault:
            self.reconcile(page, False)
            return
        self.unsync[page.index] = 0
        self.opened.discard(page.index)
        self._protect(page.gfn)
        with self._pinned(page):
            self.reconcile(page, self.eager)

    def sync_tree(self, page: ShadowPage, upper_only: bool = False) -> bool:
        """Synchronises `page` and what the bitmaps say is unsync below it; `upper_only`: nothing of level 1. Whether
        anything at or below it is unsync still."""
        index = page.index
        if self.unsync[index]:
            if upper_only and page.level == 1:
                return True
            self.sync_page(page)
        left = bool(self.unsync[index])
        for number in bits_of(self.unsync_children[index]):
            self.counters.sptes_visited += 1
            spte = self.q[page.base + number]
            if spte and not self.is_leaf(page, spte) and self.sync_tree(self.pool_pages.child(spte), upper_only):
                left = True
            else:
                self.unsync_children[index] &= ~(1 << number)
        return left

    def flush(self, role: Role) -> None:
        old, self.root_page = self.root_page, None
        if old is not None and old.role != role and old.kind is UNPAGED:
            self.zap_page(old)  # nothing walks the map of a guest that has turned paging on
        root = self.get_page(role)
        self.set_root(root)
        assert root is not None
        if root.kind is not GUEST or (root.rules is not None and root.rules.latched):
            self.reconcile(root, self.eager)
        self.sync_tree(root)

    def refresh_address(self, va: int) -> None:
        """`kvm_mmu_invalidate_addr`: the SPTE of `va` in an unsync page. The processor's paging-structure caches go
        whole, so nothing above level 1 may be stale either; in KVM it never is."""
        page = self.root_page
        assert page is not None
        self.sync_tree(page, upper_only=True)
        while True:
            self.counters.sptes_visited += 1
            index = va >> page.shift & 511
            if page.level == 1:
                break
            spte = self.q[page.base + index]
            if not spte or spte & PTE_PS:
                return
            page = self.pool_pages.child(spte)
        if self.unsync[page.index]:
            self.counters.entries_compared += 1
            self.counters.resync_spte += 1
            self.update_entry(page, index, self.guest.entry_behind(page, index), self.eager)

    def _map_level(self, page: ShadowPage, va: int, walk: Walk, store: bool, override: bool) -> ShadowPage | None:
        self.floods[page.index] = 0  # `clear_sp_write_flooding_count`
        return super()._map_level(page, va, walk, store, override)

    # Frames: `kvm_unmap_gfn_range`, `kvm_mmu_slot_remove_write_access`.

    def take_write_access(self, gfns: npt.NDArray[np.int64] | None) -> int:
        if gfns is not None:
            return sum(map(self._take_rw, gfns.tolist()))
        words = np.array([word for key in self.rmap for word in self.rmap.of(key)], np.int64)
        sptes = self.pool_pages.words[words]
        self.pool_pages.words[words] = sptes & ~_RW
        lost = int(np.count_nonzero(sptes & _RW))
        self.counters.sptes_written += lost
        return lost

    def forget_frame(self, gfn: int) -> None:
        for level in _LEVELS:
            for word in self.rmap.of((gfn & -(1 << 9 * (level - 1)), level)):
                self.drop(self.pool_pages.owner(word), word)

    def forget_table(self, gfn: int) -> None:
        for page in list(self.of_gfn.get(gfn, ())):
            if page.role is None:
                continue
            if page is not self.root_page:
                self.zap_page(page)
            elif self._may_guard(page):
                self._guard(page)

    # For the harness.

    def unexplained_changes(self) -> list[int]:
        """See `harness.engine`: in-sync pages of which an SPTE is not what the guest's entry asks for."""
        out = {page.gfn for page in self.pool_pages.in_use.values() if self.in_sync(page) and self._is_stale(page)}
        self.counters.unexplained += len(out)
        for gfn in out:
            for page in self.of_gfn[gfn]:
                self.open(page)
        return sorted(out)

    def _is_stale(self, page: ShadowPage) -> bool:
        return is_stale(self, page, self.guest.entries(page), self.eager)

    def audit(self) -> list[AuditFailure]:
        return super().audit() + audit_kvm(self)

    def work(self) -> Work:
        """Beside what all do: entries of reverse maps that were looked at, and the pages that their arrays take."""
        visited, compared, written, copied, pages = super().work()
        rmap, parents = self.rmap, self.parents
        visited += rmap.visited + parents.visited
        return Work(visited, compared, written, copied, pages + rmap.pages + parents.pages)

    def held(self) -> Held:
        """reverse: beside the hash the arrays, and a ``struct kvm_rmap_head`` for each frame, each large frame and each
        page."""
        common = super().held()
        heads = sum(-(-self.config.frames >> 9 * (level - 1)) for level in _LEVELS) + len(self.pool_pages.in_use)
        reverse = self.rmap.bytes + self.parents.bytes + heads * HEAD_BYTES
        return common._replace(reverse=common.reverse + reverse)

    def stats(self) -> dict[str, object]:
        """Beside the common ones: the arrays of the reverse maps, now and ever allocated, and their bytes."""
        return super().stats() | {
            "rmap_chunks": self.rmap.chunks + self.parents.chunks,
            "rmap_chunks_made": self.rmap.chunks_made + self.parents.chunks_made,
            "rmap_bytes": self.rmap.bytes + self.parents.bytes,
        }


def bits_of(mask: int) -> list[int]:
    """Numbers of the bits that are set."""
    out = []
    while mask:
        low = mask & -mask
        out.append(low.bit_length() - 1)
        mask ^= low
    return out
