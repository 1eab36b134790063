"""Mutations of the engine that are shown by a guest on the shadow tables themselves."""

from __future__ import annotations

from typing import Any, Final

from harness.engine import EngineConfig, MachineMemory
from harness.x86.access import Access
from harness.x86.bits import PF_I, PTE_A, PTE_P
from harness.xi.engine import XiEngine
from harness.xi.guest_walk import Walk
from harness.xi.known_paths import KnownPath
from harness.xi.pool import Spti
from tests.mutations.mutation import Mutation, Way, caught
from tests.mutations.oracles import NeverDirty
from tests.mutations.rights import with_codes
from tests.mutations.scripts import ZeroedInName
from tests.mutations.sync import NoInvlpg, NoResyncAtCr3, SameCr3Ignored
from tests.mutations.tables import RootEvicted

WRONG_GFN: Final = 0x168  # the second frame that `basic` maps in its arenas, and the one after it
WRONG_PIECE: Final = 73  # a page of a large one that `large` looks at
FEW: Final = 48  # probes a checkpoint, where the guest has many of them


class NoResyncAtFault(XiEngine):
    """A fault goes by the entry that the last synchronisation saw, not by the guest's as it is now."""

    def _known_fault(self, va: int, access: int, known: KnownPath) -> int | None:
        """Nothing: it looks at the guest's."""
        return None

    def _fill_entry(self, spti: Spti, index: int, walk: Walk, override: bool) -> None:
        if spti.rules is not None and not spti.fresh and not spti.synced:
            walk.entries[self._root_level - spti.level] = spti.snapshot_entry(index)
        super()._fill_entry(spti, index, walk, override)


class ExposedLeft(XiEngine):
    """A table that is linked while it waits for synchronisation is used as it is."""

    def sync_exposed(self) -> None:
        self.exposed.clear()


class KnownKept(XiEngine):
    """The paths of one root are gone under the next."""

    def _switch_root(self) -> None:
        kept = dict(self.known_paths)
        super()._switch_root()
        self.known_paths.update(kept)


class OneParentKept(XiEngine):
    """Of the SPTEs that lead to a table that is torn down, one goes on leading there."""

    _kept = -1

    def destroy(self, spti: Spti) -> None:
        self._kept = next(iter(self.links.nodes(self.links.parents(spti.index))), -1)
        super().destroy(spti)

    def _orphan_parent_entry(self, word: int) -> None:
        if word != self._kept:
            super()._orphan_parent_entry(word)


class AccessedAround(XiEngine):
    """With the entry of a page, A is set in its neighbour, as if it had been used."""

    def _set_in_guest(self, address: int, missing: int) -> None:
        super()._set_in_guest(address, missing)
        if self.memory.read64(address ^ 8) & PTE_P:
            self.memory.or64(address ^ 8, PTE_A)


class MarkedWhenRefused(XiEngine):
    """Sets A and D for an access that the guest's rights refuse."""

    def shadow_fault(self, va: int, access: int) -> int:
        result = super().shadow_fault(va, access)
        if result >= 0:
            walk = self.gva_to_gpa(va)
            if walk.gfn >= 0:
                self.set_accessed(walk, access & 3 == Access.STORE)
        return result


class FramesExchanged(XiEngine):
    """The p2m has the machine frames of two neighbours the wrong way round."""

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        p2m: Any = config.p2m
        p2m[[WRONG_GFN, WRONG_GFN + 1]] = p2m[[WRONG_GFN + 1, WRONG_GFN]]
        super().__init__(config, memory)


class OnePieceWrong(XiEngine):
    """One piece of each divided page leads to its neighbour's frame."""

    def fill_direct_entry(self, spti: Spti, index: int, force: bool) -> bool:
        if spti.level > 1 or index != WRONG_PIECE:
            return super().fill_direct_entry(spti, index, force)
        gfn, spti.gfn = spti.gfn, spti.gfn + 1
        try:
            return super().fill_direct_entry(spti, index, force)
        finally:
            spti.gfn = gfn


class LeftWritable(XiEngine):
    """A guest table that is in sync again is not write-protected."""

    def protect_gfn(self, gfn: int) -> None:
        """Leaves its SPTEs as they are."""


class TableStoreUnheard(XiEngine):
    """A store to a write-protected table does not put it out of sync."""

    def table_written(self, gfn: int) -> None:
        self.counters.table_writes += 1


class KeysUnheard(XiEngine):
    """The guest's PKRU is taken to be 0 for ever."""

    def set_pkru(self, pkru: int) -> None:
        """Ignores it."""


class AccessedNever(XiEngine):
    """Shows the shadow an A bit that it does not set in the guest's entry."""

    def _set_in_guest(self, address: int, missing: int) -> None:
        super()._set_in_guest(address, missing & ~PTE_A)


def _live(
    name: str,
    breaks: str,
    by: frozenset[str],
    guest: str,
    paging: str,
    engine: type[XiEngine],
    **more: Any,
) -> Mutation:
    return Mutation(name, breaks, by, guest, paging, engine, way=Way.LIVE, **more)


def _twin(name: str, breaks: str, by: frozenset[str], engine: type[XiEngine]) -> Mutation:
    return Mutation(name, breaks, by, "basic", "long4", engine, way=Way.TWIN, probes=FEW)


LIVE_ENGINE: Final = (
    _live("live-invlpg-skipped", "INVLPG synchronises nothing", caught("probe"), "basic", "long4", NoInvlpg),
    _live("known-path-kept", "known paths outlive their root", caught("stuck"), "switch", "long4", KnownKept),
    _live(
        "live-same-cr3-skipped",
        "a load of the CR3 that is loaded does nothing",
        caught("probe"),
        "basic",
        "long4",
        SameCr3Ignored,
    ),
    _live(
        "live-cr3-resync-skipped",
        "a CR3 load synchronises only tables that are new",
        caught("probe"),
        "basic",
        "long4",
        NoResyncAtCr3,
    ),
    _live(
        "live-fault-resync-skipped",
        "a fault goes by an entry that is out of date",
        caught("probe"),
        "basic",
        "long4",
        NoResyncAtFault,
    ),
    _live(
        "live-exposed-left",
        "a table linked while out of sync is used as it is",
        caught("ad_bits"),
        "switch",
        "nopae",
        ExposedLeft,
    ),
    _live(
        "live-parent-kept",
        "a table is torn down, and one SPTE still leads to it",
        caught("audit:X3"),
        "perm",
        "long4",
        OneParentKept,
        options={"pool_spti": 40},
    ),
    _live("live-never-dirty", "D is never set in the guest's entry", caught("ad_bits"), "basic", "long4", NeverDirty),
    _live(
        "live-never-accessed", "A is never set in the guest's entry", caught("ad_bits"), "basic", "long4", AccessedNever
    ),
    _live(
        "live-accessed-early",
        "A is set before anybody has used the page",
        caught("ad_bits"),
        "basic",
        "long4",
        AccessedAround,
    ),
    _live(
        "live-marked-when-refused",
        "A and D are set for a refused access",
        caught("ad_bits"),
        "perm",
        "nopae",
        MarkedWhenRefused,
    ),
    _live(
        "live-frames-exchanged",
        "the p2m has two frames the wrong way round",
        caught("probe"),
        "basic",
        "long4",
        FramesExchanged,
    ),
    _live(
        "live-piece-wrong",
        "one piece of a divided page leads to its neighbour's frame",
        caught("audit:divided", "tap"),
        "large",
        "nopae",
        OnePieceWrong,
        options={"seed": 2},  # the page's frames are scattered
    ),
    _live(
        "live-left-writable",
        "a table in sync is not write-protected",
        caught("audit:K5"),
        "basic",
        "long4",
        LeftWritable,
    ),
    _live(
        "live-table-store-unheard",
        "a store to a protected table does not put it out of sync",
        caught("stuck"),
        "basic",
        "long4",
        TableStoreUnheard,
    ),
    _live(
        "live-root-evicted",
        "the LRU recycles the root in use",
        caught("exception"),
        "perm",
        "long4",
        RootEvicted,
        options={"pool_spti": 40},
    ),
    _live(
        "live-zeroed-in-name",
        "the idle loop calls zeroed what is not",
        caught("audit:zeroed-is-zero"),
        "perm",
        "long4",
        ZeroedInName,
        options={"pool_spti": 40},
    ),
    _live(
        "live-keys-unheard", "the guest's PKRU is not told", caught("probe"), "perm", "long4", KeysUnheard, probes=FEW
    ),
    _twin(
        "twin-never-accessed",
        "A is never set in the guest's entry",
        caught("twin:memory"),
        AccessedNever,
    ),
    _twin(
        "twin-fetch-bit-wrong",
        "the I bit of the error code is inverted for fetches",
        caught("twin:fault"),
        with_codes(lambda access, code: code ^ PF_I if access & 3 == Access.FETCH else code),
    ),
)
