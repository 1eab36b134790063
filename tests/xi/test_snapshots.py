"""Where snapshots are kept: reserved pages, or pages that are there while a table is out of sync."""

from __future__ import annotations

import numpy as np
import pytest

from harness.x86.access import Access
from harness.xi.engine import XiEngine
from harness.xi.snapshots import DynamicSnapshots, page_sum
from tests.xi.domain import PS, RW, US, USED, A, D, Domain, P

VA = 0x40000000
DYNAMIC = {"snapshots": "dynamic"}


def store_of(engine: XiEngine) -> DynamicSnapshots:
    assert isinstance(engine.snapshots, DynamicSnapshots)
    return engine.snapshots


@pytest.mark.parametrize("mode", ["nopae", "pae", "long4", "long5"])
@pytest.mark.parametrize("fill", ["eager", "demand"])
def test_a_page_is_held_while_a_table_is_out_of_sync(mode: str, fill: str) -> None:
    domain = Domain(mode, fill, options=DYNAMIC)
    table = domain.map(VA, 300) >> 12
    domain.start()
    domain.check(VA, Access.STORE)
    registers = mode == "pae"  # the PDPTEs are in no page of the guest's
    assert domain.engine.stats()["snapshot_pages"] == registers
    domain.poke(domain.entry_at(VA), 301 << 12 | USED)
    shadows = [domain.engine.sptis[k] for k in domain.engine.gpts[table]]
    assert domain.engine.stats()["snapshot_pages"] == registers + len(shadows)
    spti = shadows[0]
    assert spti.snapshot_entry(VA >> 12 & 511) & ~(A | D) == 300 << 12 | USED & ~(A | D)
    assert domain.run(VA, Access.LOAD).frame == 300, "until it is flushed"
    domain.audit()
    domain.flush()
    assert domain.check(VA, Access.LOAD).frame == 301
    assert domain.engine.stats()["snapshot_pages"] == registers
    assert domain.engine.stats()["snapshots_taken"] == len(shadows)
    domain.audit()


def test_what_is_made_is_synchronised_at_once_and_counted() -> None:
    counts = {}
    for options in ({}, DYNAMIC):
        domain = Domain("long4", options=options)
        for page in range(20):
            domain.map(VA + page * 4096, 300 + page)
        domain.start()
        stats = domain.engine.stats()
        counts[bool(options)] = stats["synced_when_made"], stats["entries_when_made"], stats["resynced_entries"]
    assert counts[False][:2] == (0, 0)
    assert counts[True] == (4, 3 + 20, 3 + 20)
    assert counts[False][2] == counts[True][2]


def test_a_table_that_is_in_sync_is_its_own_snapshot() -> None:
    domain = Domain("long4", options=DYNAMIC)
    at = domain.map(VA, 300, USED & ~(A | D))
    domain.start()
    (spti,) = (domain.engine.sptis[k] for k in domain.engine.gpts[at >> 12])
    assert spti.snapshot_entry(0) == 300 << 12 | USED & ~(A | D)
    domain.check(VA, Access.STORE)
    assert spti.snapshot_entry(0) == 300 << 12 | USED
    assert domain.engine.snapshots.entries_of(spti)[0] == 300 << 12 | USED
    domain.audit()


@pytest.mark.parametrize("fill", ["eager", "demand"])
@pytest.mark.parametrize("flags", [USED, USED & ~RW, USED & ~A, USED & ~D, 0])
def test_a_store_that_is_told_when_it_is_made_is_found_all_the_same(flags: int, fill: str) -> None:
    domain = Domain("long4", fill, options=DYNAMIC, late=True)
    target = 301 if flags == USED else 300
    domain.map(VA, 300)
    domain.start()
    domain.check(VA, Access.STORE)
    domain.poke(domain.entry_at(VA), target << 12 | flags if flags else 0)
    assert domain.engine.stats()["snapshots_late"] == 1
    domain.audit()
    domain.flush()
    for access in Access:
        domain.check(VA, access)
    domain.audit()


def test_a_store_that_nothing_tells_of_is_named_and_repaired() -> None:
    for options in ({}, DYNAMIC):
        domain = Domain("long4", options=options)
        at = domain.map(VA, 300)
        domain.start()
        assert domain.engine.unexplained_changes() == []
        domain.poke(at, 301 << 12 | USED, announce=False)
        assert "snapshot" in {failure.invariant for failure in domain.engine.audit()}
        assert domain.engine.unexplained_changes() == [at >> 12]
        domain.engine.resync_all()
        assert domain.check(VA, Access.LOAD).frame == 301
        domain.audit()


@pytest.mark.parametrize("snapshots", ["reserved", "dynamic"])
@pytest.mark.parametrize("fill", ["eager", "demand"])
def test_what_is_stored_to_through_one_half_of_a_large_page_is_writable_through_the_other(
    fill: str, snapshots: str
) -> None:
    """Two SPTEs stand for the one entry, and D in it was set for the sake of one of them."""
    domain = Domain("nopae", fill, scramble=True, options={"snapshots": snapshots})
    domain.map(0x400000, 0, P | RW | US | A, 2)
    domain.start()
    for va, access in (
        (0x400000, Access.LOAD),
        (0x601000, Access.LOAD),
        (0x601000, Access.STORE),
        (0x401000, Access.STORE),
    ):
        domain.check(va, access)
        domain.audit()


@pytest.mark.parametrize("mode", ["nopae", "pae", "long4"])
def test_a_d_that_is_cleared_before_anybody_is_told_closes_a_large_page_in_pieces(mode: str) -> None:
    """The sum of the page goes without A and D; what tells is an SPTE that goes beyond its entry."""
    domain = Domain(mode, "demand", scramble=True, options=DYNAMIC, late=True)
    entry = domain.map(0x400000, 0, P | RW | US | A, 2)
    domain.start()
    domain.check(0x400000, Access.STORE)
    domain.poke(entry, P | RW | US | A | PS)
    assert domain.engine.counters.snapshots_late == 1
    domain.audit()


def test_one_changed_entry_changes_the_sum_and_a_and_d_do_not() -> None:
    page = np.random.default_rng(1).integers(0, 1 << 63, 512, np.uint64)
    before = page_sum(page)
    for entry in range(0, 512, 37):
        for bit in (0, 12, 40, 63):
            page[entry] ^= np.uint64(1 << bit)
            assert page_sum(page) != before
            page[entry] ^= np.uint64(1 << bit)
        page[entry] ^= np.uint64(A | D | (A | D) << 32)
        assert page_sum(page) == before


def hold(engine: XiEngine) -> None:
    store = store_of(engine)
    store.page_of[next(spti.index for spti in engine.sptis if spti.synced)] = store.free.pop()


def leak(engine: XiEngine) -> None:
    store_of(engine).free.pop()


def lose(engine: XiEngine) -> None:
    store = store_of(engine)
    store.page_of = [-1] * len(store.page_of)


def use_the_reserved(engine: XiEngine) -> None:
    engine.sptis[0].snapshot[7] = 1


@pytest.mark.parametrize("sabotage", [hold, leak, lose, use_the_reserved])
def test_the_audit_sees_pages_where_they_must_not_be(sabotage: object) -> None:
    domain = Domain("long4", options=DYNAMIC)
    domain.map(VA, 300)
    domain.start()
    domain.poke(domain.entry_at(VA), 301 << 12 | USED)
    domain.audit()
    assert callable(sabotage)
    sabotage(domain.engine)
    assert "snapshot" in {failure.invariant for failure in domain.engine.audit()}
