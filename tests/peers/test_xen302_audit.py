"""What the `xen302` engine keeps beside its tables: each thing that is wrong there is found, and so are engines with
one fault each."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from harness.peers.pages import ShadowPage
from harness.peers.xen302 import Xen302Engine
from harness.x86.access import Access
from harness.x86.bits import PTE_A, PTE_RW
from harness.xi.guest_walk import Walk
from tests.peers.calm_storm import Punctual, calm
from tests.peers.domain import PeerDomain
from tests.peers.window_guest import WindowGuest
from tests.xi.domain import USED, A, D

VA = 0x40000000
TABLES_AT = 0x40100000
DATA = 300


def out_of_sync() -> tuple[PeerDomain, Xen302Engine]:
    """A guest that has stored to VA, and then to the table of that. 4 tables, the last out of sync."""
    domain = PeerDomain(Xen302Engine)
    domain.map(VA, DATA)
    domain.map(TABLES_AT, domain.entry_at(VA) >> 12)
    domain.start()
    domain.check(VA, Access.STORE)
    domain.check(TABLES_AT, Access.STORE)
    domain.audit()
    return domain, cast("Xen302Engine", domain.peer)


def lose_a_reference(xen: Xen302Engine, table: int) -> None:
    xen.references[xen.of_gfn[table][0].index] -= 1


def forget_a_root(xen: Xen302Engine, table: int) -> None:
    xen.roots.clear()


def shrink_a_range(xen: Xen302Engine, table: int) -> None:
    xen.high[xen.of_gfn[table][0].index] -= 1


def lose_a_page(xen: Xen302Engine, table: int) -> None:
    xen.of_gfn[table].append(xen.of_gfn[table][0])


def guard_nothing(xen: Xen302Engine, table: int) -> None:
    xen.guards[xen.of_gfn[table][0].index] = 0


def call_data_a_table(xen: Xen302Engine, table: int) -> None:
    xen.shadowed[DATA] = 1


def forget_protection(xen: Xen302Engine, table: int) -> None:
    assert xen.root_page is not None
    xen.protected[xen.root_page.gfn] = 0


def forget_that_it_is_out_of_sync(xen: Xen302Engine, table: int) -> None:
    xen.out_of_sync.tables.clear()


def age_the_snapshot(xen: Xen302Engine, table: int) -> None:
    xen.out_of_sync.tables[table].entries[0] ^= 1 << 12


def age_a_bit_of_the_snapshot(xen: Xen302Engine, table: int) -> None:
    xen.out_of_sync.tables[table].entries[0] &= ~PTE_A & (1 << 64) - 1


def cut_the_snapshot(xen: Xen302Engine, table: int) -> None:
    xen.out_of_sync.tables[table].first = 1


def forget_a_record(xen: Xen302Engine, table: int) -> None:
    xen.release(xen.pool_pages.owner(xen.out_of_sync.writable.pop()))


def miscount(xen: Xen302Engine, table: int) -> None:
    xen.search.count[DATA] += 1


@pytest.mark.parametrize(
    ("spoil", "invariants"),
    [
        (lose_a_reference, {"references"}),
        (forget_a_root, {"references"}),
        (shrink_a_range, {"range"}),
        (lose_a_page, {"promoted"}),
        (guard_nothing, {"promoted"}),
        (call_data_a_table, {"promoted", "recorded"}),
        (forget_protection, {"promoted"}),
        (forget_that_it_is_out_of_sync, {"promoted"}),
        (age_the_snapshot, {"snapshot"}),
        (age_a_bit_of_the_snapshot, {"snapshot"}),
        (cut_the_snapshot, {"snapshot"}),
        (forget_a_record, {"recorded"}),
        (miscount, {"writable-refs"}),
    ],
)
def test_what_is_wrong_is_found(spoil: Callable[[Xen302Engine, int], None], invariants: set[str]) -> None:
    domain, xen = out_of_sync()
    spoil(xen, domain.entry_at(VA) >> 12)
    assert {failure.invariant for failure in xen.audit()} == invariants


class Unrecorded(Xen302Engine):
    """What a store made writable is not put on the list."""

    def _record(self, va: int) -> None:
        pass


class KeepsWriteAccess(Xen302Engine):
    """A table stays writable where it was when it is synchronised."""

    def _take_recorded(self) -> None:
        words, self.out_of_sync.writable = self.out_of_sync.writable, []
        for word in words:
            self.release(self.pool_pages.owner(word))


class FillsStale(Xen302Engine):
    """A fault does not look whether its path is stale."""

    def before_walk(self, va: int) -> None:
        self.fault_va = va


class SynchronisesTheLowest(Xen302Engine):
    """Of tables above level 1 only write protection comes back."""

    def _sync_page(self, page: ShadowPage) -> None:
        if page.level == 1:
            super()._sync_page(page)


class LeaksPages(Xen302Engine):
    """A page that nothing leads to is not freed."""

    def child_gone(self, page: ShadowPage, word: int, child: ShadowPage) -> None:
        self.references[child.index] -= 1


class ForgetsRanges(Xen302Engine):
    """A range only ever grows upwards."""

    def _use(self, number: int, index: int) -> None:
        self.high[number] = max(self.high[number], index)


BROKEN = (
    Unrecorded,
    KeepsWriteAccess,
    FillsStale,
    SynchronisesTheLowest,
    LeaksPages,
    ForgetsRanges,
)


@pytest.mark.parametrize("engine", BROKEN)
def test_a_broken_engine_is_caught(engine: type[Xen302Engine]) -> None:
    for seed in range(20):
        try:
            WindowGuest(engine, "long4", seed).rage(60)
        except (AssertionError, KeyError):
            return
    pytest.fail(f"{engine.__name__}: {engine.__doc__} Nothing was noticed.")


def test_snapshots_that_are_taken_late_must_not_be_believed() -> None:
    """`Punctual` does, which is right only where stores are announced in time."""
    with pytest.raises(AssertionError):
        for seed in range(20):
            calm(Punctual, "long4", 60, seed, "demand", late=True).rage(60)


class ForgetsItsOwnBits(Xen302Engine):
    """A and D bits that the engine sets do not get into the snapshot."""

    def map_path(self, va: int, walk: Walk, store: bool, override: bool) -> None:
        unknown = [-1] * len(walk.addresses)
        super().map_path(va, Walk(walk.entries, unknown, 0, True, walk.gfn, walk.leaf), store, override)


@pytest.mark.parametrize(("engine", "found"), [(Xen302Engine, set()), (ForgetsItsOwnBits, {"snapshot"})])
def test_a_bit_that_is_missing_in_the_snapshot_is_found(engine: type[Xen302Engine], found: set[str]) -> None:
    domain = PeerDomain(engine)
    domain.map(VA, DATA)
    domain.map(VA + 4096, DATA + 1, USED & ~(A | D))
    domain.map(TABLES_AT, domain.entry_at(VA) >> 12)
    domain.start()
    domain.check(TABLES_AT, Access.STORE)
    domain.check(VA + 4096, Access.STORE)
    assert {failure.invariant for failure in domain.engine.audit()} == found


class SearchesNoFurther(Xen302Engine):
    """A page that becomes a table is looked for where it was mapped last, and nowhere else."""

    def write_protect(self, gfn: int) -> None:
        self.protected[gfn] = 1
        if self.search.count[gfn]:
            self.search.take(int(self.search.back[gfn]))


@pytest.mark.parametrize(("engine", "found"), [(Xen302Engine, set()), (SearchesNoFurther, {"K5", "recorded"})])
def test_a_search_that_ends_early_is_found(engine: type[Xen302Engine], found: set[str]) -> None:
    domain = PeerDomain(engine)
    table = domain.frame()
    domain.start()
    for va in (VA, VA + (2 << 20), VA + (4 << 20)):
        domain.map(va, table)
        domain.flush()
        domain.check(va, Access.STORE)
    domain.poke(table << 12, DATA << 12 | 0x67)
    domain.poke(domain.entry_at(VA + (8 << 20), 2), table << 12 | 0x67)
    domain.flush()
    assert domain.run(VA + (8 << 20), Access.LOAD).frame == DATA
    assert {failure.invariant for failure in domain.engine.audit()} == found
    assert bool(domain.peer.describe_walk(VA)[-1]["spte"] & PTE_RW) == bool(found)
