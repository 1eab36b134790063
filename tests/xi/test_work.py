"""The work of XI under its policies, counted by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from harness.work import HASH_ENTRY_BYTES, Held, Work
from harness.x86.access import Access
from harness.x86.modes import PAGED_MODES
from harness.xi import resync
from harness.xi.life import IDLE_DROPS
from harness.xi.pool import Spti
from harness.xi.shared_pool import SharedPool
from harness.xi.table_backlinks import NODE_BYTES
from tests.xi.counting import NOTHING, PATH, TABLE, VA, Account, share, use
from tests.xi.domain import Domain
from tests.xi.policies import COMBINATIONS, combination_id
from tests.xi.storm import Storm

HASH = 4 * HASH_ENTRY_BYTES
EVERY = ({}, *COMBINATIONS)
each = pytest.mark.parametrize("options", EVERY, ids=lambda options: combination_id(options) or "default")
backlinks = pytest.mark.parametrize("backlinks", ["all", "gpt-only", "none"])


def used(options: Mapping[str, str] | None = None, pages: int = 2) -> tuple[Domain, Account]:
    """See `use`."""
    domain = Domain("long4", "demand", options=options)
    return domain, use(domain, pages)


def spti_of(domain: Domain, va: int, level: int = 1) -> Spti:
    """The SPTI on the path of `va`."""
    return next(spti for spti in domain.engine.sptis if spti.role and spti.gfn == domain.entry_at(va, level) >> 12)


@each
def test_a_fault_that_fills_an_entry_is_its_path_and_one_spte(options: Mapping[str, str]) -> None:
    domain, account = used(options)
    assert domain.engine.shadow_fault(VA + 0x2000, Access.STORE) == -1
    assert account() == Work(PATH, PATH, 1, 0, 0)
    assert domain.engine.shadow_fault(VA + 0x2000, Access.STORE) == -1, "spurious: nothing changes"
    assert account() == Work(PATH, PATH, 0, 0, 0)


@each
def test_a_fault_that_the_guest_gets_is_its_path(options: Mapping[str, str]) -> None:
    domain, account = used(options)
    assert domain.engine.shadow_fault(VA + 0x5000, Access.LOAD) == 0
    assert account() == Work(PATH, PATH, 0, 0, 0)


@each
def test_a_cr3_load_with_nothing_changed_is_no_work(options: Mapping[str, str]) -> None:
    domain, account = used(options)
    domain.flush()
    assert account() == NOTHING


def test_walks_are_those_of_faults_on_short_cuts_too() -> None:
    domain = Domain("long4", "demand", options={})
    domain.engine.shadow_fault(VA, Access.LOAD)
    assert domain.engine.done()["gva_to_gpa"] == 0, "paging is off"
    use(domain, 20)
    assert domain.engine.counters.faults == 1 + 20
    assert domain.engine.done()["gva_to_gpa"] == 20


def test_a_table_goes_out_of_sync_and_its_parents_learn_of_it() -> None:
    domain, account = used()
    domain.engine.table_written(domain.entry_at(VA) >> 12)
    assert account() == Work(3, 0, 0, 0, 0)
    domain.engine.table_written(domain.entry_at(VA) >> 12)
    assert account() == NOTHING


def test_without_backlinks_each_parent_is_a_search_through_the_level_above() -> None:
    domain, account = used({"backlinks": "none"})
    domain.engine.table_written(domain.entry_at(VA) >> 12)
    parents, mappings = 3 * TABLE, TABLE  # one table at each level; one of level 1 that could map the guest's table
    assert account() == Work(parents + mappings, 0, 0, 0, 0)


def test_going_out_of_sync_takes_a_page_for_the_snapshot_under_dynamic() -> None:
    domain, account = used({"snapshots": "dynamic"})
    domain.engine.table_written(domain.entry_at(VA) >> 12)
    # Whether the snapshot is right: the sum of the table, and a look at its SPTEs.
    assert account() == Work(3 + TABLE, TABLE, 0, TABLE, 1)


@backlinks
def test_rw_comes_back_to_each_spte_that_maps_a_table(backlinks: str) -> None:
    domain, account = used({"backlinks": backlinks})
    table = domain.entry_at(VA) >> 12
    domain.map(VA + 0x3000, table)
    domain.check(VA + 0x3000, Access.LOAD)  # mapped with D set, and so writable but for the table's sake
    domain.flush()
    account()
    domain.engine.table_written(table)
    assert account() == Work(4 * TABLE if backlinks == "none" else 3 + 1, 0, 1, 0, 0)


def test_a_cr3_load_compares_the_tables_out_of_sync_and_looks_at_what_changed() -> None:
    domain, account = used()
    domain.map(VA, 310)
    account()
    domain.flush()
    # Down to the table by one SPTE a level; one changed entry, whose SPTE is dropped; a new snapshot.
    assert account() == Work(3 + 1, TABLE, 1, TABLE, 0)
    assert domain.engine.done()["resync_spte"] == 1


def test_under_dynamic_the_table_is_its_own_snapshot_and_a_sum_of_it_is_kept() -> None:
    domain, account = used({"snapshots": "dynamic"})
    domain.map(VA, 310)
    account()
    domain.flush()
    assert account() == Work(3 + 1, TABLE + TABLE, 1, 0, 0)


def test_under_dynamic_a_store_that_is_told_late_has_the_sptes_recomputed() -> None:
    domain = Domain("long4", "demand", options={"snapshots": "dynamic"}, late=True)
    account = use(domain, 20)
    domain.map(VA, 310)
    # A snapshot, the sum of which is another one: all SPTEs are looked at, those that are there recomputed, one goes.
    assert account() == Work(TABLE + 3, TABLE + 20, 1, TABLE, 1)


def test_the_pdptes_of_a_pae_guest_are_compared_at_each_load() -> None:
    domain = Domain("pae", "demand")
    domain.map(VA, 300)
    domain.start()
    domain.check(VA, Access.STORE)
    domain.flush()
    account = Account(domain.engine)
    domain.flush()
    assert account() == Work(0, 4, 0, 0, 0)
    domain.poke(domain.entry_at(VA, 3), 0)
    domain.flush()
    # Whether any changed, and which: the one whose SPTE goes. They are copied.
    assert account() == Work(1, 4 + 4, 1, 4, 0)


def test_a_fault_on_a_missing_translation_synchronises_its_entry_and_goes_its_path_again() -> None:
    domain, account = used()
    domain.map(VA + 0x5000, 305)
    account()
    assert domain.engine.shadow_fault(VA + 0x5000, Access.LOAD) == -1
    # Between the two: what INVLPG looks at.
    assert account() == Work(PATH + 2 + PATH + PATH, PATH + 1 + PATH, 1, 0, 0)


def test_or_all_that_is_out_of_sync() -> None:
    domain, account = used({"fault-resync": "all"})
    domain.map(VA + 0x5000, 305)
    account()
    assert domain.engine.shadow_fault(VA + 0x5000, Access.LOAD) == -1
    assert account() == Work(PATH + 3 + 1 + PATH, PATH + TABLE + PATH, 1, TABLE, 0)


def test_invlpg_looks_at_upper_tables_and_one_entry() -> None:
    domain, account = used()
    domain.engine.invlpg(VA)
    assert account() == NOTHING, "nothing is out of sync"
    domain.map(VA, 310)
    account()
    domain.engine.invlpg(VA)
    # Two steps down to the lowest table above level 1 that has something below it, then the path.
    assert account() == Work(2 + PATH, 1, 1, 0, 0)


# Tables that a search for what maps a page goes through: those of level 1, and of levels 2 and 3 for the large pages
# around it, unless these have a guest table inside, and so backlinks.
SEARCHED = [("gpt-only", 5), ("none", 5 + 1 + 1)]


def sharing(options: Mapping[str, str]) -> tuple[Domain, Account, int]:
    """See `share`."""
    domain = Domain("long4", "demand", options=options)
    return domain, *share(domain)


def test_protecting_a_page_follows_the_backlinks_of_those_that_map_it() -> None:
    domain, account, page = sharing({})
    domain.engine.protect_gfn(page)
    assert account() == Work(3, 0, 3, 0, 0)
    domain.engine.protect_gfn(page)
    assert account() == Work(3, 0, 0, 0, 0), "they are read-only already"


@pytest.mark.parametrize(("backlinks", "tables"), SEARCHED)
def test_protecting_a_data_page_is_a_search_without_its_backlinks(backlinks: str, tables: int) -> None:
    domain, account, page = sharing({"backlinks": backlinks})
    domain.engine.protect_gfn(page)
    assert account() == Work(tables * TABLE, 0, 3, 0, 0)


def test_gpt_only_searches_once_for_a_table_that_appears() -> None:
    domain, account, page = sharing({"backlinks": "gpt-only"})
    domain.engine.links.table_appears(page)
    assert account() == Work(5 * TABLE, 0, 0, 0, 0)
    domain.engine.protect_gfn(page)
    assert account() == Work(3, 0, 3, 0, 0)


def test_a_round_of_the_dirty_log_follows_the_backlinks_of_all_leaves() -> None:
    domain, account, _ = sharing({})
    domain.engine.dirty_log_start()
    assert account() == Work(8, 0, 8, 0, 0)
    domain.check(VA, Access.STORE)
    account()
    domain.engine.dirty_log_read()
    assert account() == Work(1, 0, 1, 0, 0)


@pytest.mark.parametrize("backlinks", ["gpt-only", "none"])
def test_a_round_of_the_dirty_log_is_a_search_without_the_backlinks_of_data(backlinks: str) -> None:
    domain, account, _ = sharing({"backlinks": backlinks})
    domain.engine.dirty_log_start()
    assert account() == Work((5 + 1 + 1) * TABLE, 0, 8, 0, 0)
    domain.check(VA, Access.STORE)
    account()
    domain.engine.dirty_log_read()
    assert account() == Work(5 * TABLE, 0, 1, 0, 0), "one sweep through level 1"


@pytest.mark.parametrize(("backlinks", "tables"), SEARCHED)
def test_a_frame_that_moves_is_searched_for_without_its_backlinks(backlinks: str, tables: int) -> None:
    domain, account, page = sharing({"backlinks": backlinks})
    domain.move(page)
    assert account() == Work(tables * TABLE, 0, 3, 0, 0)


def test_a_frame_that_moves_is_found_by_its_backlinks() -> None:
    domain, account, page = sharing({})
    domain.move(page)
    assert account() == Work(3, 0, 3, 0, 0)


def test_a_teardown_looks_through_the_table_and_follows_the_backlink_of_its_parent() -> None:
    domain, account = used(pages=20)
    domain.engine.destroy(spti_of(domain, VA))
    assert account() == Work(1 + TABLE, 0, 1 + 20, 0, 0)


def test_a_few_sptes_are_counted_as_many_are() -> None:
    domain, account = used(pages=3)
    domain.engine.destroy(spti_of(domain, VA))
    assert account() == Work(1 + TABLE, 0, 1 + 3, 0, 0)


def test_a_subtree_is_looked_through_for_what_is_below_and_torn_down() -> None:
    domain, account = used()
    domain.engine.destroy_tree(spti_of(domain, VA, 2))
    assert account() == Work(1 + 4 * TABLE, 0, 1 + 1 + 2, 0, 0)


def test_a_table_that_goes_piece_by_piece_is_looked_through_for_each() -> None:
    tables = 31  # with the 3 above them, all but 3 of a pool of 37, which keeps 4 ready
    domain = Domain("long4", "demand", sptis=37)
    for page in range(20):
        domain.map(VA + page * 4096, 300 + page)
    for table in range(1, tables):
        domain.map(VA + (table << 21), 300)
    domain.start()
    for page in range(20):
        domain.check(VA + page * 4096, Access.LOAD)
    for table in range(1, tables):
        domain.check(VA + (table << 21), Access.LOAD)
    account = Account(domain.engine)
    assert domain.engine.idle()
    assert account() == Work(TABLE, 0, IDLE_DROPS, 0, 0)


@pytest.mark.parametrize(("snapshots", "words"), [("reserved", 2 * TABLE), ("dynamic", TABLE)])
def test_a_table_is_zeroed_while_somebody_waits(snapshots: str, words: int) -> None:
    for zeroing in ("idle", "critical-path"):
        domain, account = used({"snapshots": snapshots, "zeroing": zeroing})
        role = spti_of(domain, VA).role
        assert role is not None
        domain.engine.spti_make_shadow(role._replace(gfn=777))
        assert account() == Work(0, 0, 0, words if zeroing == "critical-path" else 0, 0)
        domain.engine.spti_make_shadow(role._replace(gfn=777))
        assert account() == NOTHING, "it is there"


def test_zeroing_in_idle_moments_is_not_counted() -> None:
    domain, account = used()
    domain.engine.destroy(spti_of(domain, VA))
    account()
    while domain.engine.idle():
        pass
    assert domain.engine.counters.zeroed_idle == 1
    assert account() == NOTHING


def test_a_large_page_of_an_unpaged_guest_gets_its_rw_back() -> None:
    domain = Domain("unpaged", "demand", frames=512)
    domain.start()
    domain.check(0x3000, Access.STORE)
    domain.engine.dirty_log_start()
    domain.engine.dirty_log_stop()
    account = Account(domain.engine)
    domain.check(0x3000, Access.STORE)
    assert account() == Work(3, 3, 1, 0, 0), "the path of PAE format"


def test_a_frame_that_comes_is_looked_for_in_every_snapshot_under_eager_fill() -> None:
    domain = Domain("long4", "eager")
    domain.map(VA, 300)
    domain.start()
    domain.take(300)
    account = Account(domain.engine)
    domain.give(300)
    assert account() == Work(0, 4 * TABLE, 1, 0, 0)


def test_a_large_page_in_pieces_is_one_spte_for_another() -> None:
    domain = Domain("long4", "demand", frames=2048)
    domain.map(VA, 1024, level=2)
    domain.start()
    domain.check(VA, Access.STORE)
    spti = spti_of(domain, VA, 2)
    account = Account(domain.engine)
    with domain.engine.pinned(spti):
        assert domain.engine.divide_large_page(spti, spti.base)
    assert account() == Work(0, 0, 2, 0, 0)
    domain.check(VA + 0x3000, Access.STORE)
    assert account() == Work(PATH, PATH, 1, 0, 0)


def test_the_pieces_of_a_large_page_are_written_one_by_one_under_eager_fill() -> None:
    domain = Domain("long4", "eager", frames=2048)
    domain.map(VA, 1024, level=2)
    domain.start()
    spti = spti_of(domain, VA, 2)
    account = Account(domain.engine)
    with domain.engine.pinned(spti):
        assert domain.engine.divide_large_page(spti, spti.base)
    assert account() == Work(TABLE, 0, 2 + 512, 0, 0)


@pytest.mark.parametrize("fill", ["demand", "eager"])
@pytest.mark.parametrize("mode", [mode.name for mode in PAGED_MODES])
def test_what_numpy_does_is_counted_as_one_by_one(mode: str, fill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for bulk in (1, 10**6):
        monkeypatch.setattr(resync, "BULK", bulk)
        storm = Storm(mode, 13, 5, fill)
        storm.rage(16)
        told.append(storm.engine.work())
    assert told[0] == told[1]
    assert min(told[0][:4]) > 0


@each
def test_pages_are_allocated_by_what_is_not_reserved_only(options: Mapping[str, str]) -> None:
    storm = Storm("long4", 13, 5, options=options)
    storm.rage(16)
    work, counters = storm.engine.work(), storm.engine.counters
    snapshots = counters.snapshots_taken if options.get("snapshots") == "dynamic" else 0
    nodes = storm.engine.links.pages_peak if options.get("backlinks") == "gpt-only" else 0
    assert work.pages_allocated == snapshots + nodes
    assert (work.pages_allocated > 0) == (
        options.get("snapshots") == "dynamic" or options.get("backlinks") == "gpt-only"
    )


def test_backlinks_that_are_allocated_take_pages_as_they_grow() -> None:
    options = {"backlinks": "gpt-only"}
    page, domain = 4096 // NODE_BYTES, Domain("long4", "demand", options=options)
    table = domain.root
    for number in range(page):
        domain.map(VA + number * 4096, table)
    domain.start()
    pages = []
    for number in range(page):
        domain.check(VA + number * 4096, Access.LOAD)
        pages.append(domain.engine.work().pages_allocated)
    assert pages == [1] * (page - 3) + [2] * 3, "3 more lead down to the table of level 1"
    for number in range(page):
        domain.map(VA + number * 4096, 0, 0)
    domain.flush()
    assert domain.engine.work().pages_allocated == 2


def test_an_spti_of_a_shared_pool_is_allocated() -> None:
    pool = SharedPool(64 * 4, 2 * 1024)
    domain = Domain("long4", "demand", options={"pool": "shared"}, shared_pool=pool)
    domain.map(VA, 300)
    domain.start()
    domain.check(VA, Access.STORE)
    assert domain.engine.work().pages_allocated == 4 * 4
    assert domain.engine.held().reserved == 8 * (1024 + 2 + 1 + 64), "heads of lists"


@pytest.mark.parametrize(
    ("options", "held"),
    [
        ({}, Held(4 * 4096, 4 * 4096, HASH + 4 * 8192 + 8 * 1091, 64 * 16384 + 8 * 1091)),
        ({"backlinks": "gpt-only"}, Held(4 * 4096, 4 * 4096, HASH + 4096 + 8 * 1027, 64 * 8192 + 8 * 1027)),
        ({"backlinks": "none"}, Held(4 * 4096, 4 * 4096, HASH + 8 * 64, 64 * 8192 + 8 * 64)),
        ({"snapshots": "dynamic"}, Held(4 * 4096, 8 * 64, HASH + 4 * 8192 + 8 * 1091, 64 * 12288 + 8 * (1091 + 64))),
    ],
    ids=["default", "gpt-only", "none", "dynamic"],
)
def test_memory_held(options: Mapping[str, str], held: Held) -> None:
    """4 tables in use of 64; a domain of 1024 frames: 2 large pages of 2 MiB, 1 of 1 GiB."""
    domain, _ = used(options)
    assert domain.engine.held() == held


def test_under_dynamic_a_snapshot_is_held_while_its_table_is_out_of_sync() -> None:
    domain, _ = used({"snapshots": "dynamic"})
    before = domain.engine.held()
    domain.map(VA, 310)
    assert domain.engine.held() == before._replace(snapshots=before.snapshots + 4096)
    domain.flush()
    assert domain.engine.held() == before
