"""`lazy`: nothing is shadowed before it is used, and nothing outlives a flush."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.peers.engine import PeerEngine
from harness.peers.faults import NoRoom
from harness.peers.pages import ShadowPage
from harness.xi.guest_walk import Walk
from harness.xi.roles import Role, root_role


class LazyEngine(PeerEngine):
    """A shadow that is a TLB and no more: entries come with faults, and go all at once."""

    name = "lazy"

    def flush(self, role: Role) -> None:
        """CR3 was loaded, or CR0, CR4 or EFER changed. Under eager fill what the guest maps must be there at once."""
        root = self.start_again(role)
        if self.eager:
            self.reconcile(root, True)

    def start_again(self, role: Role) -> ShadowPage:
        """Throws the shadow away; what is left is an empty root."""
        self.pool_pages.clear()
        self.overridden.clear()
        self.root_page = None
        root = self.get_page(role)
        self.set_root(root)
        assert root is not None
        return root

    def page_made(self, page: ShadowPage) -> None:
        """Below a root that is being filled every table is filled as it is made."""
        if self.eager and not self.on_fault and self.root_page is not None:
            self.reconcile(page, True)

    def page_found(self, page: ShadowPage) -> None:
        """A table that is there already is linked once more. What is stale in it was never the translation of the new
        address, at which the guest need not flush: the page is emptied. So are those below, as they are found again."""
        if self.on_fault:
            self.drop_all(page)

    def refresh_address(self, va: int) -> None:
        """INVLPG."""
        self.resync_all()

    def map_path(self, va: int, walk: Walk, store: bool, override: bool) -> None:
        """A fault is answered; without room for its path all is thrown away for it."""
        try:
            super().map_path(va, walk, store, override)
        except NoRoom:
            self.start_again(root_role(self.state))
            super().map_path(va, walk, store, override)

    # A round of the dirty log begins, or a frame moves: nothing that is in the shadow may stay.

    def take_write_access(self, gfns: npt.NDArray[np.int64] | None) -> int:
        self.start_again(root_role(self.state))
        return 0

    def forget_frame(self, gfn: int) -> None:
        self.start_again(root_role(self.state))

    def forget_table(self, gfn: int) -> None:
        """`forget_frame` has seen to it."""
