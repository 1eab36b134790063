"""One set of mutations for every peer engine: what is broken in each, on which run, and who must notice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from harness.migration.precopy import Limits
from harness.migration.run import MigrationPlan
from harness.x86.bits import CR0_WP, CR4_SMAP, CR4_SMEP, PTE_A, PTE_D, PTE_G, PTE_NX, PTE_P, PTE_PK, PTE_RW, PTE_US
from harness.xi.gpt import SW_WRITE
from tests.mutations import peers as p
from tests.mutations.interception import StoresDeaf, observer
from tests.mutations.mutation import Mutation, Way, caught
from tests.mutations.scripts import log_begun, mapped, moved
from tests.mutations.small_guests import MANY_STORES

FEW: Final = 48  # probes a checkpoint of a live run
ONE_ROUND: Final = Limits(rounds=1, rate=256.0)


@dataclass(frozen=True, slots=True)
class Row:
    """A mutation of any peer. fault: None where the engine is whole, and what drives it is not. by: catchers, as words;
    synced: those besides that look only at tables which the engine holds to be in sync with the guest's. more: further
    fields of `Mutation`."""

    name: str
    breaks: str
    fault: p.Peer | None
    guest: str
    paging: str
    by: str
    synced: str = ""
    more: dict[str, Any] | None = None

    def of(self, engine: p.Peer, in_sync: bool) -> Mutation:
        return Mutation(
            f"{engine.name}: {self.name}",
            self.breaks,
            caught(*self.by.split(), *(self.synced.split() if in_sync else ())),
            self.guest,
            self.paging,
            engine if self.fault is None else p.of(engine, self.fault),
            **(self.more or {}),
        )


def _live(
    name: str, breaks: str, fault: p.Peer, guest: str, paging: str, by: str, synced: str = "", **more: Any
) -> Row:
    return Row(name, breaks, fault, guest, paging, by, synced, {"way": Way.LIVE, **more})


def _replayed(name: str, breaks: str, fault: p.Peer, by: str, way: Way = Way.REPLAY) -> Row:
    return Row(name, breaks, fault, "basic", "long4", by, more={"way": way})


OBSERVED: Final = (
    Row(
        "nx-dropped",
        "NX is not copied into SPTEs",
        p.rules(lambda r: replace(r, leaf_copy=r.leaf_copy & ~PTE_NX, table_copy=r.table_copy & ~PTE_NX)),
        "perm",
        "pae",
        "probe",
        "audit:F7",
    ),
    Row(
        "user-always",
        "U/S is set in the SPTE of every page",
        p.leaves(lambda bits, flags: flags | PTE_US),
        "perm",
        "nopae",
        "probe",
        "audit:F6",
    ),
    Row(
        "user-dropped",
        "U/S is dropped in SPTEs that lead to tables",
        p.tables(lambda bits, flags: flags & ~PTE_US),
        "basic",
        "nopae",
        "probe",
        "audit:F6",
    ),
    Row(
        "writable-always",
        "RW is set in the SPTE of every page that was ever used",
        p.leaves(lambda bits, flags: flags | PTE_D | SW_WRITE if flags & PTE_P else flags),
        "perm",
        "nopae",
        "probe",
        "audit:F8",
    ),
    Row(
        "read-only-table-ignored",
        "RW=0 in an entry that leads to a table does not reach the SPTE",
        p.tables(lambda bits, flags: flags | PTE_RW | SW_WRITE),
        "perm",
        "pae",
        "probe",
        "audit:F8",
    ),
    Row(
        "key-dropped",
        "the protection key is not copied into SPTEs",
        p.rules(lambda r: replace(r, leaf_copy=r.leaf_copy & ~PTE_PK)),
        "perm",
        "long4",
        "probe",
        "audit:F8",
    ),
    Row(
        "global-kept",
        "G is copied into SPTEs, so that a CR3 load would spare them",
        p.rules(lambda r: replace(r, leaf_copy=r.leaf_copy | PTE_G)),
        "switch",
        "nopae",
        "audit:F2",
    ),
    Row(
        "reserved-ignored",
        "an entry with a reserved bit is shadowed like any other",
        p.rules(lambda r: replace(r, reserved=0, reserved_large=0)),
        "hostile_rsvd",
        "pae",
        "probe",
        "audit:F1",
    ),
    Row(
        "frame-bit-lost",
        "the lowest bit of a page's frame number is lost",
        p.LOST_BIT,
        "basic",
        "long4",
        "probe",
        "audit:X3",
    ),
    Row(
        "frame-bit-lost, blind",
        "the lowest bit of a page's frame number is lost",
        p.LOST_BIT,
        "basic",
        "long4",
        "gva2gpa memory info_tlb",
        more={"blind": True},
    ),
    Row(
        "pse36-ignored",
        "a 4 MiB page's address bits 39:32 are not read",
        p.rules(lambda r: replace(r, pse36=False)),
        "large",
        "nopae",
        "probe",
    ),
    Row(
        "accessed-hidden",
        "an SPTE is present and has no A",
        p.leaves(lambda bits, flags: flags | PTE_P),
        "perm",
        "nopae",
        "audit:F4",
    ),
    Row(
        "accessed-ignored",
        "an SPTE is present before the guest's A bit is set",
        p.leaves(lambda bits, flags: flags | PTE_P | PTE_A),
        "perm",
        "nopae",
        "ad_bits",
        "audit:F4",
    ),
    Row("dirty-hidden", "a writable SPTE has no D", p.DirtyHidden, "basic", "long4", "audit:F5"),
    Row(
        "rights-in-pdpte",
        "the PDPTEs of a shadow in PAE format have rights",
        p.tables(lambda bits, flags: flags | PTE_RW | PTE_US, rights=False),
        "basic",
        "pae",
        "audit:F8",
    ),
    Row(
        "rights-above-forgotten",
        "CR0.WP=0: tables below entries with other rights are one",
        p.RightsAboveForgotten,
        "perm",
        "long4",
        "probe",
        "audit:X3",
    ),
    Row(
        "wrong-table-half",
        "the halves of a 32-bit page table are exchanged",
        p.WrongHalf,
        "large",
        "nopae",
        "probe",
        "audit:X3",
    ),
    Row(
        "wrong-large-half",
        "both SPTEs of a 4 MiB page map its first half",
        p.WrongLargeHalf,
        "large",
        "nopae",
        "probe",
        "audit:X3",
    ),
    Row(
        "pieces-shifted",
        "the pieces of a divided page are one frame off",
        p.PiecesShifted,
        "unpaged",
        "nopae",
        "audit:divided",
    ),
    Row("fetch-bit-wrong", "the I bit of an error code is inverted", p.FetchBitWrong, "basic", "nopae", "probe"),
    Row(
        "smep-ignored",
        "the processor runs on the shadow without SMEP",
        p.hardware(cr4=CR4_SMEP),
        "perm",
        "nopae",
        "probe",
    ),
    Row(
        "smap-ignored",
        "the processor runs on the shadow without SMAP",
        p.hardware(cr4=CR4_SMAP),
        "perm",
        "nopae",
        "probe",
    ),
    Row("wp-off", "the processor runs on the shadow with CR0.WP=0", p.hardware(cr0=CR0_WP), "basic", "nopae", "probe"),
    Row("root-beside-the-pool", "CR3 points behind the pool", p.hardware(beyond=True), "basic", "long5", "probe"),
    Row("invlpg-skipped", "INVLPG synchronises nothing", p.InvlpgSkipped, "stale", "nopae", "probe"),
    Row(
        "same-cr3-skipped", "a load of the CR3 that is loaded does nothing", p.SameCr3Skipped, "basic", "nopae", "probe"
    ),
    Row(
        "pge-toggle-skipped", "a change of CR4.PGE alone flushes nothing", p.PgeToggleSkipped, "stale", "nopae", "probe"
    ),
    Row("root-kept", "a CR3 load keeps the root", p.RootKept, "switch", "long4", "audit:root"),
    Row(
        "page-leaked",
        "a page that was given back is lost",
        p.pool(p.Leaky),
        "perm",
        "nopae",
        "audit:pool-conservation",
        more={"config": {"pool_frames": 48}},
    ),
    Row("hash-forgets", "the hash loses level-1 pages", p.pool(p.Forgetful), "basic", "nopae", "audit:H1"),
    Row(
        "pool-given-away",
        "the pool's frames are the guest's as well",
        p.PoolGivenAway,
        "basic",
        "nopae",
        "audit:X4",
        more={"config": {"pool_base_mfn": 0x1800}},
    ),
    Row(
        "accessed-leaf-only",
        "A is set in the leaf alone, not along the walk",
        p.guest_side(p.LeafAccessedOnly),
        "ad",
        "long4",
        "ad_bits",
    ),
    Row("never-dirty", "a store sets D in the SPTE only", p.guest_side(p.NeverDirty), "basic", "pae", "ad_bits"),
)

# Of engines that write-protect tables.
PROTECTED: Final = (
    Row(
        "unmap-ignored",
        "an entry that is gone keeps its SPTE",
        p.UnmapIgnored,
        "basic",
        "nopae",
        "probe audit:F1",
    ),
    Row("alias-untold", "a table's addresses are told but for one", p.AliasUntold, "alias", "nopae", "self-check"),
    Row(
        "stores-not-told",
        "watchpoint hits do not reach the engine",
        None,
        "basic",
        "pae",
        "self-check",
        more={"tamper": observer(StoresDeaf)},
    ),
    _live("live-store-unheard", "a store to a table leaves it in sync", p.StoreUnheard, "basic", "long4", "stuck"),
    _replayed("replayed-cries-out", "a table is told to have changed unseen", p.CriesOut, "replay:unexplained"),
)

SCRIPTED: Final = (
    Row(
        "freed-in-use",
        "a page is free, and an SPTE leads to it",
        p.FreedInUse,
        "",
        "",
        "audit:X3",
        more={"script": mapped},
    ),
    Row(
        "large-over-table",
        "PS in SPTEs that lead to tables",
        p.LargeOverTable,
        "",
        "",
        "audit:F3",
        more={"script": mapped},
    ),
    Row(
        "old-owner-kept",
        "the m2p keeps a frame's old owner",
        p.OldOwnerKept,
        "",
        "",
        "audit:P1",
        more={"script": moved},
    ),
    Row(
        "old-frame-kept",
        "SPTEs keep the machine frame that a page has left",
        p.OldFrameKept,
        "",
        "",
        "audit:P2",
        more={"script": moved},
    ),
    Row(
        "round-unprotected",
        "a round of the dirty log begins with everything writable",
        p.RoundsUnprotected,
        "",
        "",
        "audit:dirty-log",
        more={"script": log_begun},
    ),
)

LIVE: Final = (
    _live("live-invlpg-skipped", "INVLPG synchronises nothing", p.InvlpgSkipped, "basic", "long4", "probe"),
    _live("live-same-cr3-skipped", "a load of the same CR3 does nothing", p.SameCr3Skipped, "basic", "long4", "probe"),
    _live("live-frame-bit-lost", "a page's lowest frame bit is lost", p.LOST_BIT, "basic", "long4", "crash"),
    _live(
        "live-dirty-ignored",
        "an SPTE is writable before the guest's D bit is set",
        p.leaves(lambda bits, flags: flags | PTE_D if bits & PTE_RW and bits & PTE_A else flags),
        "ad",
        "nopae",
        "tap",
        "audit:F5",
    ),
    _live("live-nothing-filled", "a fault brings nothing in", p.NothingFilled, "basic", "long4", "stuck"),
    _live("live-keys-unheard", "the guest's PKRU is not told", p.KeysUnheard, "perm", "long4", "probe", probes=FEW),
    _live("live-never-accessed", "A is never set", p.guest_side(p.AccessedNever), "basic", "long4", "ad_bits"),
    _live(
        "live-scattered-whole",
        "a large page is one SPTE over scattered frames",
        p.WholeAlways,
        "large",
        "pae",
        "audit:large",
        options={"seed": 2},
    ),
    _live(
        "live-old-frame-kept",
        "a frame moves and SPTEs keep the old one",
        p.OldFrameKept,
        "basic",
        "long4",
        "audit:P2",
        options={"stress": True},
    ),
    _live(
        "live-own-stores-unlogged",
        "the dirty log misses the A and D bits that the engine sets",
        p.OwnStoresUnlogged,
        "basic",
        "long4",
        "dirty-log",
        options={"stress": True},
    ),
    _live(
        "live-round-unprotected",
        "a round of the dirty log begins with everything writable",
        p.RoundsUnprotected,
        "basic",
        "long4",
        "dirty-log",
        options={"stress": True},
    ),
    _live(
        "twin-fetch-bit-wrong",
        "the I bit of an error code is inverted",
        p.FetchBitWrong,
        "basic",
        "long4",
        "twin:fault",
        way=Way.TWIN,
        probes=FEW,
    ),
    _live(
        "twin-never-accessed",
        "A is never set in the guest's entry",
        p.guest_side(p.AccessedNever),
        "basic",
        "long4",
        "twin:memory",
        way=Way.TWIN,
        probes=FEW,
    ),
    _live(
        "migrated-large-unlogged",
        "a migration misses stores to large pages",
        p.LargeUnlogged,
        "many stores",
        "nopae",
        "migration",
        way=Way.MIGRATE,
        source=MANY_STORES,
        probes=12,
        plan=MigrationPlan(exits=100, limits=ONE_ROUND),
    ),
)

REPLAYED: Final = (
    _replayed("replayed-fetch-bit-wrong", "the I bit of an error code is inverted", p.FetchBitWrong, "replay:answers"),
    _replayed("replayed-invlpg-skipped", "INVLPG synchronises nothing", p.InvlpgSkipped, "replay:answers"),
    _replayed("replayed-frame-bit-lost", "a page's lowest frame bit is lost", p.LOST_BIT, "replay:walks"),
    _replayed("replayed-dirty-hidden", "a writable SPTE has no D", p.DirtyHidden, "replay:audits"),
    _replayed(
        "replayed-round-unprotected",
        "the dirty log protects nothing",
        p.RoundsUnprotected,
        "replay:audits replay:dirty-log",
    ),
    _replayed(
        "repeated-user-dropped",
        "U/S is dropped in SPTEs that lead to tables",
        p.tables(lambda bits, flags: flags & ~PTE_US),
        "replay:pool",
        Way.REPEAT,
    ),
)


def mutations_of(engine: p.Peer, in_sync: bool = True, without: str = "") -> tuple[Mutation, ...]:
    """All of them, in `engine`. in_sync: whether it write-protects tables, and holds those to be in sync. without:
    names of those that do not apply to it, as words."""
    rows = (*OBSERVED, *(PROTECTED if in_sync else ()), *SCRIPTED, *LIVE, *REPLAYED)
    return tuple(row.of(engine, in_sync) for row in rows if row.name not in without.split())
