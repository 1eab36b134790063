"""Mutations of what all peer engines share, shown on each of them: SPTEs, faults, pool, what the processor is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from harness.engine import EngineConfig, MachineMemory, ShadowRoot, Words
from harness.peers.aliases import Aliases
from harness.peers.engine import PeerEngine
from harness.peers.guest_side import GuestSide
from harness.peers.pages import PagePool, ShadowPage
from harness.x86.access import Access
from harness.x86.bits import (
    CR4_PGE,
    PF_I,
    PTE_A,
    PTE_D,
    PTE_P,
    PTE_PS,
    PTE_RW,
    PTE_US,
)
from harness.x86.control import ControlState
from harness.xi.gpt import EntryRules
from harness.xi.guest_walk import Walk
from harness.xi.roles import DIRECT, Role
from tests.mutations.rights import Flags, Twist

Peer = type[PeerEngine]


def of(engine: Peer, fault: Peer) -> Peer:
    """`engine` with the `fault`, which is written for any."""
    return cast(Peer, type(fault.__name__, (fault, engine), {"__doc__": fault.__doc__}))


# What an SPTE says.


def rules(twist: Twist) -> Peer:
    """SPTEs are made by other rules; the reading of the guest (the fault path) stays right."""

    class Twisted(PeerEngine):
        def page_made(self, page: ShadowPage) -> None:
            if page.rules is not None:
                page.rules = twist(page.rules)
            super().page_made(page)

    return Twisted


def leaves(change: Flags) -> Peer:
    """The SPTEs of present leaves get the flags `change(low bits of the guest's entry, flags)`."""

    def twist(old: EntryRules) -> EntryRules:
        leaf = tuple(change(bits, flags) if flags else 0 for bits, flags in enumerate(old.leaf))
        return replace(old, leaf=leaf, leaf_array=np.array(leaf, np.uint64))

    return rules(twist)


def tables(change: Flags, rights: bool = True) -> Peer:
    """The same for the SPTEs that lead to tables; those of PDPTEs in PAE format where `rights` is False."""

    def twist(old: EntryRules) -> EntryRules:
        if old.has_rights is not rights:
            return old
        return replace(old, table=tuple(change(bits, flags) if flags else 0 for bits, flags in enumerate(old.table)))

    return rules(twist)


class DirtyHidden(PeerEngine):
    """A writable SPTE has no D."""

    def put_leaf(self, page: ShadowPage, word: int, gfn: int, spte: int, fill: bool) -> None:
        super().put_leaf(page, word, gfn, spte & ~PTE_D if spte & PTE_RW else spte, fill)

    def write_leaves(self, page: ShadowPage, sptes: Words) -> None:
        writable = sptes & np.uint64(PTE_RW) != 0
        super().write_leaves(page, np.where(writable, sptes & np.uint64(~PTE_D & (1 << 64) - 1), sptes))


class WrongHalf(PeerEngine):
    """The two SPTEs of a 32-bit guest's directory entry lead to each other's half of the page table."""

    def child_role(self, page: ShadowPage, index: int, gfn: int, entry: int) -> Role:
        role = super().child_role(page, index, gfn, entry)
        return role._replace(quadrant=role.quadrant ^ 1) if role.mode == "nopae" else role


class RightsAboveForgotten(PeerEngine):
    """With CR0.WP=0 a table below a read-only or supervisor entry has the role of any other."""

    def child_role(self, page: ShadowPage, index: int, gfn: int, entry: int) -> Role:
        role = super().child_role(page, index, gfn, entry)
        assert page.role is not None
        return role._replace(variant=page.role.variant)


class WrongLargeHalf(PeerEngine):
    """Both SPTEs of a 4 MiB page map its first 2 MiB."""

    def classify(self, page: ShadowPage, index: int, entry: int) -> tuple[int, int]:
        kind, gfn = super().classify(page, index, entry)
        known: Any = page.rules
        return kind, gfn & ~0x200 if known.doubled and known.is_large(entry) else gfn


class PiecesShifted(PeerEngine):
    """The pieces of a divided page are exchanged in pairs."""

    def reconcile(self, page: ShadowPage, fill: bool) -> None:
        self._shifted(page, lambda: super(PiecesShifted, self).reconcile(page, fill))

    def update_direct(self, page: ShadowPage, index: int, small: bool = False) -> None:
        self._shifted(page, lambda: super(PiecesShifted, self).update_direct(page, index, small))

    def _shifted(self, page: ShadowPage, call: Callable[[], None]) -> None:
        own = page.gfn
        page.gfn += page.kind is DIRECT and page.level == 1
        try:
            call()
        finally:
            page.gfn = own


class DividedWider(PeerEngine):
    """The SPTE above the pieces of a large page allows everything."""

    def put_child(self, page: ShadowPage, word: int, role: Role, flags: int, fill: bool) -> None:
        if role.kind is DIRECT and page.rules is not None and flags & PTE_P:
            flags |= PTE_RW | PTE_US
        super().put_child(page, word, role, flags, fill)


class WholeAlways(PeerEngine):
    """A large page is one SPTE wherever its machine frames are."""

    def whole(self, gfn: int, level: int) -> bool:
        return gfn + (1 << 9 * (level - 1)) <= self.config.frames


class UnmapIgnored(PeerEngine):
    """Keeps the SPTE of an entry that the guest has cleared."""

    def write_leaves(self, page: ShadowPage, sptes: Words) -> None:
        super().write_leaves(page, np.where(sptes == 0, page.spt, sptes))

    def update_entry(self, page: ShadowPage, index: int, entry: int, fill: bool, small: bool = False) -> None:
        if entry & PTE_P:
            super().update_entry(page, index, entry, fill, small)


# When the shadow is brought up to date.


class InvlpgSkipped(PeerEngine):
    """INVLPG is passed over."""

    def refresh_address(self, va: int) -> None:
        pass


class SameCr3Skipped(PeerEngine):
    """A load of the CR3 that is loaded is taken for nothing new, which is how guests flush."""

    def load_cr3(self, cr3: int) -> None:
        if cr3 != self.state.cr3:
            super().load_cr3(cr3)


class PgeToggleSkipped(PeerEngine):
    """A change of CR4.PGE alone is taken for one that flushes nothing."""

    def control(self, state: ControlState) -> None:
        if state.cr4 ^ self.state.cr4 == CR4_PGE and state.cr3 == self.state.cr3:
            self.guest.control(state)
            self._shadow_root = None
        else:
            super().control(state)


class RootKept(PeerEngine):
    """The first root that the guest loads stays the root."""

    def flush(self, role: Role) -> None:
        root = self.root_page
        kept = None if root is None or root.role is None else root.role
        super().flush(kept if kept is not None and kept.mode == role.mode != "unpaged" else role)


class NothingFilled(PeerEngine):
    """A fault is answered, and nothing is brought in for it."""

    def map_path(self, va: int, walk: Walk, store: bool, override: bool) -> None:
        pass


# What the guest, its tables and the processor are given.


class FetchBitWrong(PeerEngine):
    """The I bit of the error code is inverted for fetches."""

    def shadow_fault(self, va: int, access: int) -> int:
        result = super().shadow_fault(va, access)
        return result ^ PF_I if result >= 0 and access & 3 == Access.FETCH else result


class KeysUnheard(PeerEngine):
    """The guest's PKRU is taken to be 0 for ever."""

    def set_pkru(self, pkru: int) -> None:
        """Ignores it."""


def hardware(cr0: int = 0, cr4: int = 0, beyond: bool = False) -> Peer:
    """The processor runs on the shadow without these bits of CR0 and CR4, or with a root just `beyond` the pool."""

    class Misled(PeerEngine):
        @property
        def root(self) -> ShadowRoot:
            real = super().root
            control = replace(real.control, cr0=real.control.cr0 & ~cr0, cr4=real.control.cr4 & ~cr4)
            outside = self.config.pool_base_mfn + self.config.pool_frames << 12
            return replace(real, control=control, root=outside if beyond else real.root)

    return Misled


def guest_side(broken: type[GuestSide]) -> Peer:
    """The A and D bits of the guest's entries are set otherwise."""

    class Marking(PeerEngine):
        def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
            super().__init__(config, memory)
            self.guest.__class__ = broken

    return Marking


class LeafAccessedOnly(GuestSide):
    """Sets A in the leaf, and not in the entries above it."""

    def latch_walk(self) -> None:
        super().latch_walk()
        self._accessed = (*(0 for _ in self._accessed[1:]), *self._accessed[-1:])


class NeverDirty(GuestSide):
    """Shows the shadow a D bit that it does not set in the guest's entry."""

    def set_accessed(self, walk: Walk, store: bool) -> bool:
        changed = super().set_accessed(walk, False)
        if store and walk.entries:
            walk.entries[-1] |= PTE_D
        return changed or store


class AccessedNever(GuestSide):
    """Shows the shadow an A bit that it does not set in the guest's entry."""

    def set_accessed(self, walk: Walk, store: bool) -> bool:
        walk.entries[:] = [entry | PTE_A for entry in walk.entries]
        return super().set_accessed(walk, store)


# Pool and frames.


class Leaky(PagePool):
    """The first page of level 1 that is given back is lost."""

    leaked = False

    def give_back(self, page: ShadowPage) -> None:
        super().give_back(page)
        if page.level == 1 and not self.leaked:
            self.leaked = True
            self.free.pop()


class Forgetful(PagePool):
    """The hash loses each page of level 1 as soon as it is in."""

    def take(self, role: Role, phys_bits: int) -> ShadowPage | None:
        page = super().take(role, phys_bits)
        if page is not None and page.level == 1:
            del self.by_role[role]
        return page

    def give_back(self, page: ShadowPage) -> None:
        assert page.role is not None
        self.by_role.setdefault(page.role, page)
        super().give_back(page)


def pool(broken: type[PagePool]) -> Peer:
    class Pooled(PeerEngine):
        def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
            super().__init__(config, memory)
            self.pool_pages.__class__ = broken

    return Pooled


class PoolGivenAway(PeerEngine):
    """The frames of the pool are the guest's as well."""

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        p2m = np.arange(config.frames)
        shared = slice(config.pool_base_mfn, config.pool_base_mfn + config.pool_frames)
        p2m[shared] = -1
        super().__init__(replace(config, p2m=p2m), memory)
        self.p2m.table[shared] = self.p2m.m2p[shared] = np.arange(shared.start, shared.stop)


class OldOwnerKept(PeerEngine):
    """The m2p still names the gfn that the frame was before."""

    def xi_invld_mfn(self, gfn: int, mfn: int) -> None:
        old = self.p2m.to_mfn[gfn]
        super().xi_invld_mfn(gfn, mfn)
        self.p2m.to_gfn[old] = gfn


class OldFrameKept(PeerEngine):
    """A frame that moves is mapped where it was."""

    def forget_frame(self, gfn: int) -> None:
        pass


class OwnStoresUnlogged(PeerEngine):
    """The A and D bits that the engine sets are not logged."""

    def _own_store(self, gfn: int) -> None:
        pass


class RoundsUnprotected(PeerEngine):
    """A round of the dirty log begins with everything writable still."""

    def take_write_access(self, gfns: npt.NDArray[np.int64] | None) -> int:
        return 0


class LargeUnlogged(PeerEngine):
    """Large pages stay writable when the dirty log begins."""

    def take_write_access(self, gfns: npt.NDArray[np.int64] | None) -> int:
        words = self.pool_pages.words
        upper = [page.base for page in self.pool_pages.in_use.values() if page.level in (2, 3)]
        before = {base: words[base : base + 512].copy() for base in upper}
        lost = super().take_write_access(gfns)
        for base, sptes in before.items():
            words[base : base + 512] = sptes
        return lost


# What the harness is told.


class AllButOne(Aliases):
    def addresses_of(self, gfn: int, writable: bool = False, executable: bool = False) -> frozenset[int]:
        found = super().addresses_of(gfn, writable, executable)
        return found - {max(found)} if len(found) > 1 else found


class AliasUntold(PeerEngine):
    """Of several addresses of a frame one is not told."""

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        super().__init__(config, memory)
        self.aliases = AllButOne(self)


class CriesOut(PeerEngine):
    """A table in sync is taken for one that was stored to behind the engine's back."""

    def unexplained_changes(self) -> list[int]:
        return sorted(gfn for gfn, in_sync in self.guest_tables().items() if in_sync)[:1]


class StoreUnheard(PeerEngine):
    """A store to a protected table leaves it in sync."""

    def store_to_table(self, gfn: int, walk: Walk | None) -> None:
        pass


class LargeOverTable(PeerEngine):
    """SPTEs of the highest level have PS."""

    def control(self, state: ControlState) -> None:
        super().control(state)
        for page in self.pool_pages.in_use.values():
            if page.level == 4:
                page.spt[page.spt != 0] |= np.uint64(PTE_PS)


class FreedInUse(PeerEngine):
    """A page of level 1 is free while an SPTE leads to it."""

    def control(self, state: ControlState) -> None:
        super().control(state)
        lowest = [page for page in self.pool_pages.in_use.values() if page.level == 1]
        for page in lowest[:1]:
            self.pool_pages.give_back(page)


LOST_BIT: Final = rules(lambda r: replace(r, frame_mask=r.frame_mask & ~0x1000) if r.level == 1 else r)
