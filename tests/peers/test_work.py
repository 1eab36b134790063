"""The work of the peers, counted by hand: the scenarios of tests/xi/test_work.py."""

from __future__ import annotations

from typing import cast

import pytest

from harness.peers.eager import EagerEngine
from harness.peers.engine import PeerEngine
from harness.peers.kvm import KvmEngine
from harness.peers.pages import ShadowPage
from harness.peers.rmap import CHUNK, CHUNK_BYTES, HEAD_BYTES, Rmap
from harness.peers.xen302 import Xen302Engine
from harness.work import HASH_ENTRY_BYTES, Held, Work
from harness.x86.access import Access
from harness.x86.modes import PAGED_MODES
from tests.peers.domain import PEERS, PeerDomain, storm
from tests.xi.counting import NOTHING, PATH, TABLE, VA, Account, share, use
from tests.xi.domain import RW, US, USED, A, P

each = pytest.mark.parametrize("engine", PEERS.values(), ids=PEERS)
those_that_protect = pytest.mark.parametrize("engine", [KvmEngine, Xen302Engine])


def used(engine: type[PeerEngine], pages: int = 2) -> tuple[PeerDomain, Account]:
    """See `use`."""
    domain = PeerDomain(engine)
    return domain, use(domain, pages)


def page_of(domain: PeerDomain, va: int, level: int = 1) -> ShadowPage:
    """The shadow page on the path of `va`."""
    table = domain.entry_at(va, level) >> 12
    return next(page for page in domain.peer.pool_pages.in_use.values() if page.gfn == table)


@each
def test_a_fault_that_fills_an_entry_is_its_path_and_one_spte(engine: type[PeerEngine]) -> None:
    domain, account = used(engine, pages=8)
    domain.peer.drop(page_of(domain, VA), page_of(domain, VA).base + 3)
    account()
    assert domain.peer.shadow_fault(VA + 0x3000, Access.STORE) == -1
    assert account() == Work(PATH, PATH, 1, 0, 0)
    assert domain.peer.shadow_fault(VA + 0x3000, Access.STORE) == -1, "spurious: nothing changes"
    assert account() == Work(PATH, PATH, 0, 0, 0)


@each
def test_a_fault_that_the_guest_gets_is_its_path(engine: type[PeerEngine]) -> None:
    domain, account = used(engine)
    assert domain.peer.shadow_fault(VA + 0x5000, Access.LOAD) == 0
    assert account() == Work(PATH, PATH, 0, 0, 0)


@each
def test_an_spte_that_changes_is_written_once(engine: type[PeerEngine]) -> None:
    domain = PeerDomain(engine)
    domain.map(VA, 300, P | RW | US | A)
    domain.start()
    domain.check(VA, Access.LOAD)
    account = Account(domain.peer)
    domain.check(VA, Access.STORE)  # sets D
    assert account() == Work(PATH, PATH, 1, 0, 0)


@each
def test_an_spte_that_is_opened_for_the_supervisor_is_written_for_it(engine: type[PeerEngine]) -> None:
    domain = PeerDomain(engine, wp=False)
    domain.map(VA, 300, USED & ~RW)
    domain.start()
    domain.check(VA, Access.LOAD)
    account = Account(domain.peer)
    domain.check(VA, Access.STORE)
    assert account() == Work(PATH, PATH, 1, 0, 0)


@those_that_protect
def test_a_cr3_load_with_nothing_changed_is_no_work(engine: type[PeerEngine]) -> None:
    domain, account = used(engine)
    domain.flush()
    assert account() == NOTHING


def test_eager_makes_everything_anew_at_each_cr3_load() -> None:
    domain, account = used(EagerEngine)
    domain.flush()
    assert account() == Work(4 * TABLE, 4 * TABLE, 3 + 3, 4 * TABLE, 4)


def test_eager_looks_at_everything_for_a_round_of_the_dirty_log_and_for_a_frame_that_moves() -> None:
    domain, account = used(EagerEngine)
    domain.peer.dirty_log_start()
    assert account() == Work(4 * TABLE, 0, 3, 0, 0)
    domain.peer.dirty_log_stop()
    domain.move(300)
    assert account() == Work(4 * TABLE, 0, 1, 0, 0)


def test_kvm_a_table_goes_unsync_and_its_parents_learn_of_it() -> None:
    domain, account = used(KvmEngine)
    domain.peer.table_written(domain.entry_at(VA) >> 12)
    assert account() == Work(3, 0, 0, 0, 0)
    domain.peer.table_written(domain.entry_at(VA) >> 12)
    assert account() == NOTHING


def test_kvm_a_cr3_load_recomputes_what_is_there_of_a_table_that_is_unsync() -> None:
    domain, account = used(KvmEngine)
    domain.map(VA, 310)
    account()
    domain.flush()
    # Down to the table by one SPTE a level; all of it, of which 2 are there; the one that is dropped, on its list.
    assert account() == Work(3 + TABLE + 1, 2, 1, 0, 0)
    assert domain.peer.done() == {"resync_spte": 1}


def test_kvm_an_upper_table_is_recomputed_too() -> None:
    domain, account = used(KvmEngine)
    at = domain.entry_at(VA, 2)
    domain.poke(at, domain.read_guest(at, 8) & ~US)
    account()
    domain.flush()
    # Two steps down; all of the table, whose one SPTE changes.
    assert account() == Work(2 + TABLE, 1, 1, 0, 0)
    assert domain.peer.done() == {"resync_spte": 1}
    domain.poke(at, 0)
    account()
    domain.flush()
    # Now it goes, and is taken off the list of the table below.
    assert account() == Work(2 + TABLE + 1, 1, 1, 0, 0)
    assert domain.peer.done() == {"resync_spte": 2}


@pytest.mark.parametrize(("engine", "times"), [(EagerEngine, 1), (KvmEngine, 2)])
def test_a_root_of_an_unpaged_guest_has_four_sptes(engine: type[PeerEngine], times: int) -> None:
    domain = PeerDomain(engine, "unpaged", "eager", frames=512)
    account = Account(domain.peer)
    domain.start()
    # The root, which kvm fills when it is made and once more at the load, and the table of one page of 2 MiB.
    assert account() == Work(4 * times + TABLE, 0, 1 + 1, 2 * TABLE, 2)


def test_kvm_fills_an_entry_of_a_table_that_is_unsync() -> None:
    domain, account = used(KvmEngine)
    domain.map(VA + 0x5000, 305)
    account()
    assert domain.peer.shadow_fault(VA + 0x5000, Access.LOAD) == -1
    assert account() == Work(PATH, PATH, 1, 0, 0)


def test_kvm_invlpg_looks_at_upper_tables_and_one_entry() -> None:
    domain, account = used(KvmEngine)
    domain.peer.invlpg(VA)
    assert account() == Work(PATH, 0, 0, 0, 0)
    domain.map(VA, 310)
    account()
    domain.peer.invlpg(VA)
    assert account() == Work(3 + PATH + 1, 1, 1, 0, 0)
    assert domain.peer.done() == {"resync_spte": 1}


def sharing(engine: type[PeerEngine]) -> tuple[PeerDomain, Account, int]:
    """See `share`."""
    domain = PeerDomain(engine)
    return domain, *share(domain)


def test_kvm_protecting_a_page_walks_its_reverse_map() -> None:
    domain, account, page = sharing(KvmEngine)
    kvm = cast("KvmEngine", domain.peer)
    kvm.write_protect(page)
    assert account() == Work(3, 0, 3, 0, 0)
    kvm.write_protect(page)
    assert account() == Work(3, 0, 0, 0, 0), "they are read-only already"


def test_xen302_protecting_a_page_tries_the_last_spte_then_its_table_then_every_table() -> None:
    domain, account, page = sharing(Xen302Engine)
    xen = cast("Xen302Engine", domain.peer)
    xen.write_protect(page)
    # The last was set in the third table, which has no other. Of the rest the first table has one, and with the eighth
    # SPTE of the second the count is reached.
    assert account() == Work(1 + TABLE + TABLE + 8, 0, 3, 0, 0)


def test_xen302_a_table_goes_out_of_sync_with_a_snapshot_of_the_span_in_use() -> None:
    domain, account = used(Xen302Engine)
    domain.peer.table_written(domain.entry_at(VA) >> 12)
    assert account() == Work(0, 0, 0, TABLE + 3, 1), "the first fault has brought in what is mapped beside it too"
    assert domain.peer.held().snapshots == 4096
    domain.flush()
    # Whether the store had been made was not said: all of the span is made anew, and stays as it was.
    assert account() == Work(0, 3, 0, 0, 0)
    assert domain.peer.held().snapshots == 0


def test_kvm_a_round_of_the_dirty_log_walks_all_reverse_maps() -> None:
    domain, account, _ = sharing(KvmEngine)
    domain.peer.dirty_log_start()
    assert account() == Work(8, 0, 8, 0, 0)
    domain.check(VA, Access.STORE)
    account()
    domain.peer.dirty_log_read()
    assert account() == Work(1, 0, 1, 0, 0)


def test_kvm_a_frame_that_moves_is_found_by_its_reverse_map() -> None:
    domain, account, page = sharing(KvmEngine)
    domain.move(page)
    # All 3 are looked at, then each is looked for to be taken off: it is the first, the second, and the only one.
    assert account() == Work(3 + 1 + 2 + 1, 0, 3, 0, 0)


def test_kvm_a_teardown_looks_through_the_table_and_takes_each_spte_off_its_list() -> None:
    domain, account = used(KvmEngine, pages=20)
    cast("KvmEngine", domain.peer).zap_page(page_of(domain, VA))
    parent = 1 + 1  # looked up, and taken off
    assert account() == Work(TABLE + 20 + parent, 0, 20 + 1, 0, 0)


def test_kvm_a_teardown_looks_for_what_is_unsync_below() -> None:
    domain, account = used(KvmEngine)
    kvm, upper = cast("KvmEngine", domain.peer), page_of(domain, VA, 2)
    domain.engine.table_written(domain.entry_at(VA) >> 12)
    account()
    kvm.zap_page(upper)
    below = TABLE + 2 + 1 + 1  # with two leaves, and the SPTE that leads to it, looked up and taken off
    assert account() == Work(1 + below + TABLE + 1 + 1, 0, 2 + 1 + 1, 0, 0)


def test_kvm_goes_through_what_it_keeps_when_room_is_wanted_under_eager_fill() -> None:
    domain = PeerDomain(KvmEngine, fill="eager")
    domain.map(VA, 300)
    domain.start()
    account = Account(domain.peer)
    assert domain.peer.make_room()
    assert account() == Work(4 * TABLE, 0, 0, 0, 0)


def test_entries_of_a_reverse_map_that_are_passed_count() -> None:
    rmap = Rmap()
    for word in range(2 * CHUNK):
        rmap.add("gfn", word)
    rmap.remove("gfn", 3)
    assert rmap.visited == CHUNK + 4, "the younger array, then the older up to the fourth"


@those_that_protect
def test_a_table_that_is_made_is_a_page_that_is_allocated_and_zeroed(engine: type[PeerEngine]) -> None:
    domain, account = used(engine)
    role = page_of(domain, VA).role
    assert role is not None
    domain.peer.get_page(role._replace(gfn=777))
    assert account() == Work(0, 0, 0, TABLE, 1)
    domain.peer.get_page(role._replace(gfn=777))
    assert account() == NOTHING, "it is there"


def test_the_arrays_of_reverse_maps_take_pages_as_they_grow() -> None:
    rmap, per_page = Rmap(), 4096 // CHUNK_BYTES
    for key in range(per_page + 1):
        rmap.add(key, 1)
        assert rmap.pages == (key > 1), "one SPTE takes no array"
        if key:
            rmap.add(key, 2)
    assert rmap.pages == 1
    rmap.add(0, 2)
    assert rmap.pages == 2
    for key in range(per_page + 1):
        rmap.remove(key, 2)
    assert (rmap.chunks, rmap.pages) == (0, 2), "what is freed is kept for the next"
    for word in range(3, 3 + CHUNK):
        rmap.add(0, word)
    assert (rmap.chunks, rmap.pages) == (2, 2)


def test_kvm_has_the_pages_of_its_reverse_maps_allocated() -> None:
    domain, account = used(KvmEngine)
    for page in range(3):
        domain.map(VA + 0x200000 * page + 0x8000, 300)
    domain.flush()
    for page in range(3):
        domain.check(VA + 0x200000 * page + 0x8000, Access.LOAD)
    assert account().pages_allocated == 2 + 1, "tables, and the array of the SPTEs that map gfn 300"


class OneByOne(KvmEngine):
    """Tables of level 1 are synchronised one SPTE at a time."""

    def _reconcile_leaves(self, page: ShadowPage, entries: object, fill: bool) -> None:
        del entries
        now = self.guest.entries(page).tolist()
        for index in range(TABLE):
            before = self.q[page.base + index]
            if before or fill:
                self.counters.entries_compared += 1
                self.update_entry(page, index, now[index], fill)
                self.counters.resync_spte += self.q[page.base + index] != before


@pytest.mark.parametrize("fill", ["demand", "eager"])
@pytest.mark.parametrize("mode", [mode.name for mode in PAGED_MODES])
def test_what_numpy_does_is_counted_as_one_by_one(mode: str, fill: str) -> None:
    told = []
    for engine in (KvmEngine, OneByOne):
        run = storm(engine, mode, 13, 5, fill)
        run.rage(16)
        told.append((cast("PeerEngine", run.engine).work(), run.engine.done()))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("engine", "held"),
    [
        (EagerEngine, Held(4 * 4096, 0, 4 * HASH_ENTRY_BYTES, 0)),
        (KvmEngine, Held(4 * 4096, 0, 4 * HASH_ENTRY_BYTES + HEAD_BYTES * (1024 + 2 + 1 + 4), 0)),
    ],
)
def test_memory_held(engine: type[PeerEngine], held: Held) -> None:
    """4 tables; a domain of 1024 frames: 2 large pages of 2 MiB, 1 of 1 GiB."""
    domain, _ = used(engine)
    assert domain.peer.held() == held


def test_kvm_holds_arrays_for_frames_that_are_mapped_more_than_once() -> None:
    domain, _, _ = sharing(KvmEngine)
    assert domain.peer.held().reverse == 8 * HASH_ENTRY_BYTES + HEAD_BYTES * (1024 + 2 + 1 + 8) + CHUNK_BYTES
