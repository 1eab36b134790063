"""`eager`: at every CR3 load the guest's whole tree is walked, and the shadow made anew from nothing.

No write protection, no history, no reverse maps: what is in the shadow may be stale as a TLB may, and a flush, of all
addresses or of one, throws everything away and builds again. It is what every other engine exists to avoid, and the
simplest thing that can be right. What does not fit into the pool is built by faults; when a fault's path does not fit
either, all is thrown away for it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.peers.engine import PeerEngine
from harness.peers.faults import NoRoom
from harness.peers.pages import ShadowPage
from harness.x86.bits import PTE_ADDR, PTE_PS, PTE_RW
from harness.xi.guest_walk import Walk
from harness.xi.roles import Role, root_role


class EagerEngine(PeerEngine):
    """The naive baseline. ``EagerEngine(config, memory)``; no options."""

    name = "eager"

    _building = False

    def flush(self, role: Role) -> None:
        self.forget_all(role)
        assert self.root_page is not None
        self._building = True
        try:
            self.reconcile(self.root_page, True)
        finally:
            self._building = False

    def forget_all(self, role: Role) -> None:
        """Throws the shadow away; what is left is an empty root."""
        self.pool_pages.clear()
        self.overridden.clear()
        self.set_root(self.get_page(role))

    def page_made(self, page: ShadowPage) -> None:
        """While the tree is built every page is filled as it is made; on a fault's path only what the path needs."""
        if self._building:
            self.reconcile(page, True)

    def page_found(self, page: ShadowPage) -> None:
        """What may be stale in a page is right for the addresses that have led to it, and wrong for a new one: a
        guest need not flush where nothing was mapped."""
        if not self._building:
            self._refresh(page, set())

    def _refresh(self, page: ShadowPage, done: set[int]) -> None:
        if page.index in done:
            return
        done.add(page.index)
        self.reconcile(page, False)
        for spte in page.spt[page.spt != 0].tolist():
            if not self.is_leaf(page, spte):
                self._refresh(self.pool_pages.child(spte), done)

    def refresh_address(self, va: int) -> None:
        self.resync_all()

    def map_path(self, va: int, walk: Walk, store: bool, override: bool) -> None:
        try:
            super().map_path(va, walk, store, override)
        except NoRoom:
            self.counters.recycled += len(self.pool_pages.in_use)
            self.forget_all(root_role(self.state))
            super().map_path(va, walk, store, override)

    def store_to_table(self, gfn: int, walk: Walk | None) -> None:
        raise AssertionError(f"gfn {gfn:#x} is write-protected, and nothing ever is")

    # There are no reverse maps: every SPTE is looked at.

    def take_write_access(self, gfns: npt.NDArray[np.int64] | None) -> int:
        """Every leaf loses RW, asked for or not: the searches for some are the same work."""
        del gfns
        lost = 0
        for page in self.pool_pages.in_use.values():
            self.counters.sptes_visited += 512
            leaf = page.spt & np.uint64(PTE_RW) != 0
            if page.level > 1:
                leaf &= page.spt & np.uint64(PTE_PS) != 0
            lost += int(np.count_nonzero(leaf))
            page.spt[leaf] &= np.uint64(~PTE_RW & (1 << 64) - 1)
        self.counters.sptes_written += lost
        return lost

    def forget_frame(self, gfn: int) -> None:
        mfn = self.p2m.to_mfn[gfn]
        for page in self.pool_pages.in_use.values():
            self.counters.sptes_visited += 512
            span = 1 << 9 * (page.level - 1)
            leaf = page.spt != 0
            if page.level > 1:
                leaf &= page.spt & np.uint64(PTE_PS) != 0
            first = ((page.spt & np.uint64(PTE_ADDR)) >> np.uint64(12)).view(np.int64)
            for index in np.flatnonzero(leaf & (first <= mfn) & (mfn < first + span)).tolist():
                self.drop(page, page.base + index)

    def forget_table(self, gfn: int) -> None:
        """The shadow of one table cannot be taken out of the rest: all go."""
        if any(page.gfn == gfn for page in self.pool_pages.in_use.values()):
            self.resync_all()
