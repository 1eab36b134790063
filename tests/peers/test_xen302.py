"""`xen302`: what is published of its mechanism, and what had to be added, one rule at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from harness.engine import AWAY, RETRY
from harness.peers.pages import ShadowPage
from harness.peers.xen302 import Xen302Engine
from harness.work import PAGE
from harness.x86.access import Access
from harness.x86.bits import CR4_PKE
from harness.x86.modes import PAGED_MODES
from tests.peers.domain import PeerDomain
from tests.xi.domain import PS, RW, USED, A, D

VA = 0x40000000
OTHER = 0x80000000
TABLES_AT = 0xA0000000  # where the guest maps its own tables
every_mode = pytest.mark.parametrize("mode", [mode.name for mode in PAGED_MODES])


def used(
    mode: str = "long4",
    pages: int = 1,
    engine: type[Xen302Engine] = Xen302Engine,
    frames: int = 2048,
    sptis: int = 64,
) -> tuple[PeerDomain, Xen302Engine]:
    """A guest that has stored to `pages` pages from VA on, gfn 300 and following, and has a large page elsewhere."""
    domain = PeerDomain(engine, mode, frames=frames, sptis=sptis)
    for page in range(pages):
        domain.map(VA + page * 4096, 300 + page)
    domain.start()
    for page in range(pages):
        domain.check(VA + page * 4096, Access.STORE)
    return domain, cast("Xen302Engine", domain.peer)


def table_of(domain: PeerDomain, va: int, level: int = 1) -> int:
    return domain.entry_at(va, level) >> 12


def open_table(domain: PeerDomain, gfn: int, at: int = TABLES_AT) -> None:
    """The guest maps its table `gfn`, flushes, and stores to it: it is out of sync now, and nothing else is."""
    domain.map(at, gfn)
    domain.flush()
    domain.check(at, Access.STORE)


def counted(domain: PeerDomain, *names: str) -> list[int]:
    stats = domain.engine.stats()
    return [stats[name] for name in names]


# Going out of sync.


@every_mode
def test_a_store_that_faults_takes_a_snapshot_and_is_recorded(mode: str) -> None:
    domain, xen = used(mode)
    table = table_of(domain, VA)
    open_table(domain, table)
    assert list(xen.out_of_sync.tables) == [table]
    step = xen.describe_walk(TABLES_AT)[-1]
    assert xen.out_of_sync.writable == [step["spti"] * 512 + step["index"]]
    assert step["spte"] & RW
    assert not xen.guest_tables()[table]
    domain.map(VA, 301)
    assert domain.run(VA + 8, Access.LOAD).frame == 300, "stale, as in a TLB"
    domain.audit()
    domain.flush()
    assert not xen.out_of_sync.tables
    assert not xen.out_of_sync.writable
    assert not xen.describe_walk(TABLES_AT)[-1]["spte"] & RW
    assert domain.check(VA, Access.STORE).frame == 301
    domain.audit()


def test_a_snapshot_is_of_the_span_that_the_shadow_uses() -> None:
    domain, xen = used()
    for page in (5, 9):
        domain.map(VA + page * 4096, 400)
        domain.check(VA + page * 4096, Access.LOAD)
    domain.flush()
    table = table_of(domain, VA)
    copied, pages = counted(domain, "words_copied", "pages_allocated")
    xen.table_written(table)
    assert counted(domain, "words_copied", "pages_allocated") == [copied + 512 + 10, pages + 1]
    snapshot = xen.out_of_sync.tables[table]
    assert (snapshot.first, snapshot.last) == (0, 9)
    xen.table_written(table_of(domain, VA, 2))
    assert counted(domain, "words_copied") == [copied + 512 + 10 + 512 + 512], "of tables above level 1 it is whole"


@every_mode
def test_only_what_changed_is_made_anew(mode: str) -> None:
    domain, xen = used(mode, pages=40)
    open_table(domain, table_of(domain, VA))
    domain.map(VA + 7 * 4096, 500)
    compared, anew = counted(domain, "entries_compared", "resync_spte")
    xen.sync_all()
    assert counted(domain, "entries_compared", "resync_spte") == [compared + 40, anew + 1]
    assert domain.check(VA + 7 * 4096, Access.LOAD).frame == 500


def test_an_alias_of_a_table_out_of_sync_is_recorded_when_a_store_faults_on_it() -> None:
    domain, xen = used()
    table = table_of(domain, VA)
    domain.map(TABLES_AT + 0x1000, table)
    open_table(domain, table)
    made = xen.out_of_sync.made
    assert domain.run(TABLES_AT + 0x1000, Access.LOAD).frame == table
    assert not xen.describe_walk(TABLES_AT + 0x1000)[-1]["spte"] & RW
    assert domain.run(TABLES_AT + 0x1000, Access.STORE).frame == table
    assert len(xen.out_of_sync.writable) == 2
    assert xen.out_of_sync.made == made, "one snapshot is enough"
    domain.audit()
    domain.flush()
    assert not any(xen.describe_walk(va)[-1]["spte"] & RW for va in (TABLES_AT, TABLES_AT + 0x1000))


def test_a_snapshot_that_was_announced_may_be_too_late() -> None:
    domain, xen = used()
    domain.map(VA, 301, USED)
    assert xen.out_of_sync.tables[table_of(domain, VA)].late
    domain.poke(domain.entry_at(VA), 302 << 12 | USED)
    domain.flush()
    domain.poke(domain.entry_at(VA), 303 << 12 | USED, announce=False)
    xen.table_written(table_of(domain, VA))
    domain.flush()
    assert domain.check(VA, Access.LOAD).frame == 303


# Synchronisation.


@every_mode
def test_a_fault_on_one_stale_address_brings_everything_back(mode: str) -> None:
    domain, xen = used(mode)
    domain.map(OTHER, 310)
    domain.flush()
    domain.check(OTHER, Access.STORE)
    tables = {table_of(domain, VA), table_of(domain, OTHER)}
    for number, table in enumerate(sorted(tables)):
        domain.map(TABLES_AT + number * 4096, table)
    domain.flush()
    for number in range(2):
        domain.check(TABLES_AT + number * 4096, Access.STORE)
    assert set(xen.out_of_sync.tables) == tables
    domain.map(VA + 4096, 301)
    assert domain.run(VA, Access.LOAD).frame == 300
    assert set(xen.out_of_sync.tables) == tables, "no fault"
    domain.map(OTHER, 311)
    assert domain.check(VA + 4096, Access.LOAD).frame == 301
    assert not xen.out_of_sync.tables
    assert domain.check(OTHER, Access.LOAD).frame == 311, "no fault here, and yet it is not stale"
    domain.audit()


def test_a_fault_on_an_address_that_is_not_stale_leaves_the_rest_alone() -> None:
    domain, xen = used(pages=2)
    domain.map(OTHER, 310)
    domain.map(VA + 4096, 301, USED & ~(D | RW))
    open_table(domain, table_of(domain, VA))
    domain.map(VA, 302)
    assert domain.check(OTHER, Access.LOAD).frame == 310
    assert xen.out_of_sync.tables
    assert counted(domain, "full_syncs")[0] > 0
    domain.audit()


@every_mode
def test_invlpg_of_a_stale_address_brings_everything_back_and_of_another_nothing(mode: str) -> None:
    domain, xen = used(mode, pages=2)
    open_table(domain, table_of(domain, VA))
    domain.map(VA, 302)
    domain.engine.invlpg(VA + 4096)
    assert xen.out_of_sync.tables
    domain.engine.invlpg(VA)
    assert not xen.out_of_sync.tables
    assert domain.check(VA, Access.STORE).frame == 302
    domain.audit()


def test_invlpg_leaves_no_table_above_level_1_stale() -> None:
    domain, xen = used()
    open_table(domain, table_of(domain, VA, 2))
    domain.map(VA + (2 << 20), 310)
    domain.engine.invlpg(VA)
    assert not xen.out_of_sync.tables


@every_mode
def test_a_bit_that_the_engine_set_and_the_guest_cleared_again_is_set_again(mode: str) -> None:
    domain, xen = used(mode, pages=2)
    open_table(domain, table_of(domain, VA))
    domain.map(VA + 4096, 301, USED & ~D)
    domain.flush()
    domain.check(TABLES_AT, Access.STORE)
    assert table_of(domain, VA) in xen.out_of_sync.tables
    domain.check(VA + 4096, Access.STORE)
    assert table_of(domain, VA) in xen.out_of_sync.tables, "D was the engine's own doing, and the entry is not stale"
    domain.audit()
    domain.map(VA + 4096, 301, USED & ~D)
    domain.flush()
    domain.check(VA + 4096, Access.STORE)
    assert domain.read_guest(domain.entry_at(VA + 4096), domain.mode.entry_bytes) & D


@every_mode
def test_the_shadow_of_another_table_is_linked_at_once_if_it_exists(mode: str) -> None:
    domain, _ = used(mode)
    domain.map(OTHER, 310)
    domain.flush()
    domain.check(OTHER, Access.STORE)
    level = domain.mode.levels[-2].number
    open_table(domain, table_of(domain, VA, level))
    domain.poke(domain.entry_at(VA, level), domain.read_guest(domain.entry_at(OTHER, level), domain.mode.entry_bytes))
    domain.flush()
    faults = counted(domain, "shadow_fault")
    assert domain.run(VA, Access.LOAD).frame == 310
    assert counted(domain, "shadow_fault") == faults
    domain.audit()
    domain.poke(domain.entry_at(VA, level), domain.frame() << 12 | USED)
    made = counted(domain, "spti_make_shadow")
    domain.flush()
    assert counted(domain, "spti_make_shadow") == made, "none is made before a fault"


def test_pdptes_are_registers() -> None:
    domain, xen = used("pae")
    root = xen.root_page
    assert root is not None
    assert not xen.guards[root.index]
    new = domain.frame()
    domain.poke(domain.entry_at(VA, 3), new << 12 | 1)
    assert domain.run(VA, Access.LOAD).frame == 300
    domain.engine.invlpg(VA)
    assert domain.run(VA, Access.LOAD).frame == 300, "only a load of CR3 reads them"
    domain.flush()
    assert domain.check(VA, Access.LOAD).frame is None
    domain.audit()


# Shadows: made, linked, freed.


def test_a_new_table_of_level_1_is_filled_up_to_the_first_entry_that_cannot_be() -> None:
    domain = PeerDomain(Xen302Engine, frames=2048)
    for page in (*range(4), *range(6, 20), *range(30, 33)):
        domain.map(VA + page * 4096, 300 + page, USED & ~A if page == 9 else USED)
    domain.start()
    domain.check(VA + 31 * 4096, Access.LOAD)
    filled = domain.peer.pool_pages.pages[domain.peer.describe_walk(VA)[-1]["spti"]].used
    assert filled == [0, 1, 2, 3, 31, 32]
    assert counted(domain, "entries_compared") == [4 + 5 + 3]
    faults = counted(domain, "shadow_fault")
    assert domain.check(VA + 32 * 4096, Access.STORE).frame == 332
    assert counted(domain, "shadow_fault") == faults
    domain.audit()


def test_the_fill_goes_on_through_the_address_of_the_fault() -> None:
    domain = PeerDomain(Xen302Engine, frames=2048)
    for page in range(20):
        domain.map(VA + page * 4096, 300 + page)
    domain.start()
    domain.check(VA + 7 * 4096, Access.LOAD)
    assert counted(domain, "entries_compared") == [4 + 21]
    assert counted(domain, "shadow_fault") == [1]
    assert domain.check(VA + 19 * 4096, Access.LOAD).frame == 319
    assert counted(domain, "shadow_fault") == [1]


def test_a_large_page_is_splintered() -> None:
    domain, xen = used()
    domain.map(OTHER, 1024, level=2)
    domain.flush()
    assert domain.check(OTHER, Access.STORE).frame == 1024
    assert not any(step["spte"] & PS for step in xen.describe_walk(OTHER))
    faults = counted(domain, "shadow_fault")
    assert domain.check(OTHER + 511 * 4096, Access.STORE).frame == 1535
    assert counted(domain, "shadow_fault") == faults
    assert counted(domain, "divide_large_page") == [1]
    domain.audit()


def test_a_page_that_becomes_a_table_is_searched_for() -> None:
    domain, xen = used(pages=3)
    domain.map(OTHER, 310)
    domain.flush()
    domain.check(OTHER, Access.LOAD)
    table = domain.frame()
    for va in (VA + 0x100000, OTHER + 0x1000):
        domain.map(va, table)
        domain.flush()
        domain.check(va, Access.STORE)
    assert xen.search.count[table] == 2
    domain.poke(domain.entry_at(VA + 0x1000000, 2), table << 12 | 0x67)
    domain.poke(table << 12, 311 << 12 | 0x67)
    domain.flush()
    visited, written = counted(domain, "sptes_visited", "sptes_written")
    assert domain.check(VA + 0x1000000, Access.LOAD).frame == 311
    # One by the back pointer, the rest of that table, then the tables from the first on, and the path of the fault.
    assert counted(domain, "sptes_visited") == [visited + 1 + 512 + 257 + 4]
    assert counted(domain, "sptes_written") == [written + 4]
    assert counted(domain, "linear_searches") == [1]
    assert not xen.search.count[table]
    domain.audit()


def test_a_table_that_nothing_leads_to_is_freed_at_once() -> None:
    domain, xen = used()
    held = len(xen.pool_pages.in_use)
    table = table_of(domain, VA)
    domain.poke(domain.entry_at(VA, 2), 0)
    domain.flush()
    assert table not in xen.guest_tables()
    assert not xen.protected[table]
    assert len(xen.pool_pages.in_use) == held - 1
    domain.audit()


def test_roots_are_kept_until_they_look_dead() -> None:
    domain, xen = used()
    first, second = domain.root, domain.new_root()
    domain.map(OTHER, 310, root=second)
    domain.switch(second)
    domain.check(OTHER, Access.LOAD)
    held = set(xen.guest_tables())
    domain.switch(first)
    assert set(xen.guest_tables()) == held
    domain.poke((second << 12) + 8 * 300, 0x1000)  # neither empty nor present
    domain.flush()
    assert set(xen.guest_tables()) < held
    assert second not in xen.guest_tables()
    domain.poke((first << 12) + 8 * 300, 0x1000)
    domain.flush()
    assert domain.check(VA, Access.LOAD).frame == 300, "never the one in use"
    assert counted(domain, "roots_given_up") == [1]
    domain.audit()


@every_mode
def test_another_paging_mode_frees_everything(mode: str) -> None:
    domain, xen = used(mode)
    domain.state, paged = replace(domain.state, cr0=domain.state.cr0 & 0x7FFFFFFF), domain.state
    domain.start()
    assert not xen.guest_tables()
    assert domain.check(300 << 12, Access.STORE).frame == 300
    domain.state = paged
    domain.start()
    assert domain.check(VA, Access.LOAD).frame == 300
    domain.audit()


def test_without_room_all_is_freed_and_the_fault_goes_on() -> None:
    domain, xen = used(sptis=2)
    for page in range(1, 30):
        domain.map(VA + (page << 21), 1000 + page)
        assert domain.check(VA + (page << 21), Access.STORE).frame == 1000 + page
        domain.audit()
    assert counted(domain, "emptied")[0] > 2
    assert xen.root_page is not None


def test_an_eager_fill_that_does_not_fit_begins_again_from_nothing() -> None:
    domain = PeerDomain(Xen302Engine, fill="eager", sptis=5, frames=2048)
    roots = [domain.root, *(domain.new_root() for _ in range(5))]
    for number, root in enumerate(roots):
        for page in range(3):
            domain.map(VA + (page << 21), 1000 + 10 * number + page, root=root)
    domain.start()
    for number, root in enumerate((*roots, roots[0])):
        domain.switch(root)
        assert domain.engine.addresses_of(1000 + 10 * (number % 6) + 2), "the whole tree is there"
        domain.audit()
    assert counted(domain, "emptied")[0] >= 1


class FoundStale(Xen302Engine):
    """A page that is linked at a new address is not brought up to date."""

    def page_found(self, page: ShadowPage) -> None:
        pass


@pytest.mark.parametrize(("engine", "frame"), [(Xen302Engine, 311), (FoundStale, 310)])
def test_what_is_linked_anew_is_not_stale(engine: type[Xen302Engine], frame: int) -> None:
    domain, _ = used(pages=2, engine=engine)
    new = domain.entry_at(VA + (1 << 30), 2)
    above = domain.entry_at(VA, 2)
    domain.poke(new, domain.read_guest(above, 8))
    domain.poke(new, 0)
    domain.map(VA + 0x1000, 310)
    open_table(domain, table_of(domain, VA))
    domain.check(VA + 0x1000, Access.LOAD)
    domain.map(VA + 0x1000, 311)
    domain.poke(new, domain.read_guest(above, 8), announce=False)  # that nothing was there needs no flush
    assert domain.check(VA + (1 << 30), Access.LOAD).frame == 300
    assert domain.run(VA + (1 << 30) + 0x1000, Access.LOAD).frame == frame


def test_a_second_shadow_of_a_table_out_of_sync_is_made_after_a_synchronisation() -> None:
    domain, xen = used()
    upper, table = domain.entry_at(VA, 3), table_of(domain, VA)
    domain.poke(300 << 12, 301 << 12 | 0x67)
    domain.poke(upper + 16, table << 12 | 0x67)  # the page table, two gigabytes on, as a page directory
    open_table(domain, table)
    assert xen.out_of_sync.tables
    assert domain.run(VA + (2 << 30), Access.LOAD).frame == 301
    assert not xen.out_of_sync.tables
    assert len({page.level for page in xen.of_gfn[table]}) == 2
    domain.audit()


# Frames, the dirty log, and rights that are opened for a while.


def test_a_frame_that_moves_is_searched_for_everywhere() -> None:
    domain, xen = used()
    visited = counted(domain, "sptes_visited")[0]
    domain.move(300)
    assert counted(domain, "sptes_visited") == [visited + 512 * len(xen.pool_pages.in_use)]
    assert domain.check(VA, Access.STORE).frame == 300
    domain.audit()


@every_mode
def test_a_table_whose_frame_goes_and_comes(mode: str) -> None:
    domain, xen = used(mode)
    table = table_of(domain, VA)
    open_table(domain, table)
    domain.take(table)
    assert table not in xen.guest_tables()
    assert not xen.out_of_sync.tables
    domain.audit()
    assert domain.engine.shadow_fault(VA, Access.LOAD) == AWAY
    domain.give(table)
    assert domain.engine.shadow_fault(VA, Access.LOAD) == RETRY
    assert domain.check(VA, Access.STORE).frame == 300
    domain.audit()


def test_a_round_of_the_dirty_log_frees_all_shadows() -> None:
    domain, xen = used(pages=3)
    assert len(xen.pool_pages.in_use) == 4
    domain.engine.dirty_log_start()
    assert counted(domain, "log_protected_sptes") == [3]
    assert len(xen.pool_pages.in_use) == 1
    domain.check(VA, Access.LOAD)
    assert not domain.engine.dirty_log_read().any()
    domain.check(VA, Access.STORE)
    domain.audit()
    assert np.flatnonzero(domain.engine.dirty_log_read()).tolist() == [300]
    assert counted(domain, "emptied") == [3]


def test_overrides_end_with_a_synchronisation() -> None:
    """With CR0.WP=0 a supervisor's store opens a read-only page; a change of PKRU puts it back to what its entry says,
    which must be what the snapshot says too."""
    domain = PeerDomain(Xen302Engine, wp=False, cr4=CR4_PKE, frames=2048)
    domain.map(VA, 300, USED & ~RW)
    domain.start()
    domain.check(VA, Access.STORE)
    xen = cast("Xen302Engine", domain.peer)
    assert xen.overridden
    domain.map(TABLES_AT, table_of(domain, VA))
    domain.check(TABLES_AT, Access.STORE)
    assert xen.out_of_sync.tables
    domain.engine.set_pkru(4)
    assert not xen.overridden
    assert not xen.out_of_sync.tables
    domain.audit()


def test_a_change_that_nobody_announced_is_found_and_repaired() -> None:
    domain, _ = used()
    table = table_of(domain, VA)
    assert domain.engine.unexplained_changes() == []
    domain.poke(domain.entry_at(VA), 301 << 12 | 0x67, announce=False)
    assert {failure.invariant for failure in domain.engine.audit()} == {"X3"}
    assert domain.engine.unexplained_changes() == [table]
    domain.flush()
    assert domain.check(VA, Access.LOAD).frame == 301
    domain.audit()


def test_what_it_holds() -> None:
    domain, xen = used()
    before = xen.held()
    assert before.tables == PAGE * len(xen.pool_pages.in_use)
    assert before.snapshots == before.reserved == 0
    xen.table_written(table_of(domain, VA))
    after = xen.held()
    assert after.snapshots == PAGE
    assert after.reverse > before.reverse
