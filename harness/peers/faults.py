"""The path of a fault on the shadow: the guest's own tables decide whether the guest sees one.

What has to be done is XI's decision table (`harness.xi.decision.PLACE`), which says what the architecture asks for. How
an engine brings itself up to date first, and what it does about a store to a table, is its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from harness.engine import AWAY, GENERAL_PROTECTION, MMIO, RETRY
from harness.peers.pages import ShadowPage
from harness.peers.whole_pages import WholePages
from harness.x86.access import ALL_ACCESSES, USER_BIT
from harness.x86.bits import PTE_PS
from harness.xi.decision import PLACE, Step
from harness.xi.guest_walk import RW, Walk
from harness.xi.roles import GUEST

_NO_FRAME, _FRAME_AWAY, _BACKED = (PLACE.part("frame", value) for value in ("none", "away", "backed"))
_STORE, _GPT, _UNLOGGED, _OVERRIDDEN = (PLACE.part(name, "yes") for name in ("store", "gpt", "unlogged", "override"))
_SET_AD, _MMIO, _AWAY, _UNSYNC, _LOG, _OVERRIDE = (
    int(step) for step in (Step.SET_AD, Step.MMIO, Step.AWAY, Step.UNSYNC, Step.LOG, Step.OVERRIDE)
)
_ACCESSES: Final = frozenset(int(access) for access in ALL_ACCESSES)


class NoRoom(Exception):
    """The pool has no page for the path of a fault."""


class Faults(WholePages):
    """The fault path."""

    away_gfn = -1

    # The engine's own.

    def before_walk(self, va: int) -> None:
        """A fault has come; the guest's tables were not looked at yet."""

    def before_map(self) -> None:
        """The guest allows the access: its path is about to be mapped, up to one page a level."""

    def store_to_table(self, gfn: int, walk: Walk | None) -> None:
        """The guest stores to `gfn`, which is protected; `walk`: of the store's address, None if it is not known.
        Afterwards `gfn` may be written, unless the store finds it protected anew and comes back."""
        raise NotImplementedError

    # The path.

    def shadow_fault(self, va: int, access: int) -> int:
        """See `harness.engine.ShadowEngine.shadow_fault`. Raises ValueError for an access code that is none."""
        self.counters.shadow_fault += 1
        if access not in _ACCESSES:
            raise ValueError(f"{access} is no access")
        if not self.guest.canonical(va):
            return GENERAL_PROTECTION
        self.on_fault = True
        try:
            return self._answer(va, access)
        finally:
            self.on_fault = False

    def shadow_faults(self, addresses: Sequence[int], accesses: Sequence[int]) -> list[int]:
        """`shadow_fault` for many faults at one moment; nothing is shared among them."""
        return [self.shadow_fault(va, access) for va, access in zip(addresses, accesses, strict=True)]

    def _answer(self, va: int, access: int) -> int:
        self.before_walk(va)
        if not self.guest.paged:
            return self._place(va, access, Walk([], [], RW, True, va >> 12, 0))
        walk = self.gva_to_gpa(va)
        result = self.guest.results(walk, (access,))[0]
        return self._refused(walk, result) if result != RETRY else self._place(va, access, walk)

    def gva_to_gpa(self, va: int) -> Walk:
        """Walks the guest's own tables for the canonical address `va`, touching nothing. Paging is on."""
        self.counters.gva_to_gpa += 1
        return self.guest.gva_to_gpa(va)

    def _refused(self, walk: Walk, result: int) -> int:
        if result == AWAY:
            self.counters.faults_away += 1
            self.away_gfn = walk.gfn
        else:
            self.counters.faults_injected += 1
        return result

    def _place(self, va: int, access: int, walk: Walk) -> int:
        """A fault on an access that the guest's tables allow."""
        gfn, p2m = walk.gfn, self.p2m
        store = access & 3 == 1
        features = _STORE if store else 0
        if gfn < p2m.frames and p2m.to_mfn[gfn] >= 0:
            self.before_map()
            features |= _BACKED | (_GPT if self.protected[gfn] else 0)
            if self.logging and not self.logged[gfn]:
                features |= _UNLOGGED
        else:
            features |= _FRAME_AWAY if gfn in p2m.away else _NO_FRAME
        if store and not access & USER_BIT and self.guest.needs_override(walk):
            features |= _OVERRIDDEN
        steps = PLACE.lookup[features]
        if steps & _SET_AD:
            self.guest.set_accessed(walk, store)
        if steps & _AWAY:
            return self._refused(walk, AWAY)
        if steps & _MMIO:
            self.counters.faults_mmio += 1
            return MMIO
        if steps & _UNSYNC:
            self.counters.table_writes += 1
            self.store_to_table(gfn, walk)
        if steps & _LOG:
            self.log_dirty(gfn)
        self.map_path(va, walk, store, bool(steps & _OVERRIDE))
        return RETRY

    def map_path(self, va: int, walk: Walk, store: bool, override: bool) -> None:
        """Brings the whole path of `va` into the shadow. Raises NoRoom when the pool has no page for it."""
        page = self.root_page
        while page is not None:
            page = self._map_level(page, va, walk, store, override)

    def _map_level(self, page: ShadowPage, va: int, walk: Walk, store: bool, override: bool) -> ShadowPage | None:
        """One SPTE of the path. The page that it leads to, None if it is a leaf."""
        index = va >> page.shift & 511
        small = store and self.logging
        if page.kind is GUEST:
            self.update_entry(page, index, self.guest.entry(walk, page.level), True, small)
        else:
            self.update_direct(page, index, small)
        spte = self.q[page.base + index]
        if not spte:
            raise NoRoom
        if override and page.kind is GUEST and page.level == walk.leaf:
            self.override(page, index)
        return None if page.level == 1 or spte & PTE_PS else self.pool_pages.child(spte)
