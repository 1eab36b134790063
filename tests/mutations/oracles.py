"""Mutations for the oracles that others would always precede: accessed and dirty bits, and the weak ones alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from harness.x86.access import Access
from harness.x86.bits import PTE_A, PTE_D
from harness.xi.engine import XiEngine
from tests.mutations.mutation import Mutation, caught
from tests.mutations.rights import LOST_FRAME_BIT


class LeafAccessedOnly(XiEngine):
    """Sets A in the leaf, and not in the entries above it."""

    def latch_walk(self) -> None:
        super().latch_walk()
        self._accessed = (*(0 for _ in self._accessed[1:]), *self._accessed[-1:])


class AccessedNextDoor(XiEngine):
    """Sets A in the entry after the leaf that was walked, too."""

    def _set_in_guest(self, address: int, missing: int) -> None:
        super()._set_in_guest(address, missing)
        if (address + 8) & 0xFFF:
            self.memory.or64(address + 8, PTE_A)


class DirtyWhenRefused(XiEngine):
    """Sets D for a store that the guest's rights refuse."""

    def shadow_fault(self, va: int, access: int) -> int:
        result = super().shadow_fault(va, access)
        if result >= 0 and access & 3 == Access.STORE:
            walk = self.gva_to_gpa(va)
            if walk.gfn >= 0:
                self.set_accessed(walk, True)
        return result

    def shadow_faults(self, addresses: Sequence[int], accesses: Sequence[int]) -> list[int]:
        return [self.shadow_fault(va, access) for va, access in zip(addresses, accesses, strict=True)]


class DirtyOnLoad(XiEngine):
    """Sets D for loads and fetches too."""

    def _set_in_guest(self, address: int, missing: int) -> None:
        super()._set_in_guest(address, missing | PTE_D)


class NeverDirty(XiEngine):
    """Shows the shadow a D bit that it does not set in the guest's entry."""

    def _set_in_guest(self, address: int, missing: int) -> None:
        super()._set_in_guest(address, missing & ~PTE_D)


ORACLES: Final = (
    Mutation(
        "accessed-leaf-only",
        "A is set in the leaf alone, not along the walk",
        caught("ad_bits"),
        "ad",
        "long4",
        LeafAccessedOnly,
    ),
    Mutation(
        "accessed-next-door",
        "A is set in an entry that no walk went through",
        caught("ad_bits"),
        "basic",
        "nopae",
        AccessedNextDoor,
    ),
    Mutation(
        "dirty-when-refused",
        "D is set for a store that is refused",
        caught("ad_bits"),
        "perm",
        "nopae",
        DirtyWhenRefused,
    ),
    Mutation("dirty-on-load", "a load sets D", caught("ad_bits"), "ad", "nopae", DirtyOnLoad),
    Mutation("never-dirty", "a store sets D in the SPTE only", caught("ad_bits"), "basic", "pae", NeverDirty),
    *(
        Mutation(
            f"frame-bit-lost, blind, {paging}",
            "the lowest bit of a page's frame number is lost",
            caught("gva2gpa", "memory", "info_tlb"),
            "basic",
            paging,
            LOST_FRAME_BIT,
            blind=True,
        )
        for paging in ("nopae", "pae", "long4", "long5")
    ),
)
