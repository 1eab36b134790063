"""`kvm`: what its sources say it does, one rule at a time."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from harness.peers.kvm import FLOOD, KvmEngine, bits_of
from harness.x86.access import Access
from harness.x86.modes import PAGED_MODES
from tests.peers.domain import PeerDomain
from tests.xi.domain import PS, RW

VA = 0x40000000
OTHER = 0x80000000  # where the tests map tables
every_mode = pytest.mark.parametrize("mode", [mode.name for mode in PAGED_MODES])


def used(mode: str = "long4", frames: int = 2048, sptis: int = 64) -> tuple[PeerDomain, KvmEngine]:
    """A guest that has stored to VA, gfn 300."""
    domain = PeerDomain(KvmEngine, mode, frames=frames, sptis=sptis)
    domain.map(VA, 300)
    domain.start()
    domain.check(VA, Access.STORE)
    return domain, cast("KvmEngine", domain.peer)


def table_of(domain: PeerDomain, va: int, level: int = 1) -> int:
    return domain.entry_at(va, level) >> 12


@every_mode
def test_a_last_level_table_goes_unsync_and_is_found_by_the_bitmaps(mode: str) -> None:
    domain, kvm = used(mode)
    table = table_of(domain, VA)
    assert kvm.protected[table]
    domain.map(VA, 301)
    assert not kvm.protected[table]
    assert not kvm.opened
    assert domain.run(VA, Access.LOAD).frame == 300, "stale, as in a TLB"
    domain.audit()
    domain.flush()
    assert kvm.protected[table]
    assert domain.check(VA, Access.STORE).frame == 301
    domain.audit()


@every_mode
def test_invlpg_looks_at_that_address_only(mode: str) -> None:
    domain, kvm = used(mode)
    domain.map(VA + 0x1000, 301)
    domain.check(VA + 0x1000, Access.STORE)
    domain.map(VA, 302)
    domain.map(VA + 0x1000, 303)
    domain.engine.invlpg(VA)
    assert domain.check(VA, Access.LOAD).frame == 302
    assert domain.run(VA + 0x1000, Access.LOAD).frame == 301, "the other is stale still"
    assert not kvm.protected[table_of(domain, VA)]
    domain.audit()


def test_there_is_no_snapshot_every_entry_is_recomputed() -> None:
    domain, _ = used()
    for page in range(1, 40):
        domain.map(VA + page * 4096, 400 + page)
        domain.check(VA + page * 4096, Access.LOAD)
    before = domain.engine.stats()
    domain.map(VA, 301)
    domain.flush()
    after = domain.engine.stats()
    assert after["entries_compared"] - before["entries_compared"] == 40
    assert after["resync_spte"] - before["resync_spte"] == 1


@every_mode
def test_an_upper_table_is_opened_until_the_next_flush(mode: str) -> None:
    domain, kvm = used(mode)
    level = domain.mode.levels[-2].number
    table = table_of(domain, VA, level)
    domain.map(VA + 0x1000000, 500)
    assert kvm.opened
    assert not kvm.protected[table]
    assert domain.check(VA + 0x1000000, Access.STORE).frame == 500
    domain.flush()
    assert not kvm.opened
    assert kvm.protected[table]
    domain.audit()


def test_an_upper_table_that_is_flooded_is_zapped() -> None:
    domain, kvm = used()
    table = table_of(domain, VA, 2)
    for number in range(FLOOD):
        assert table in kvm.of_gfn
        domain.poke((table << 12) + 8 * (100 + number), 0)
        domain.flush()
        domain.audit()
    assert table not in kvm.of_gfn
    assert domain.check(VA, Access.STORE).frame == 300


def test_a_fault_through_a_table_says_that_it_is_one() -> None:
    domain, kvm = used()
    table = table_of(domain, VA, 2)
    for number in range(2 * FLOOD):
        domain.poke((table << 12) + 8 * (100 + number), 0)
        domain.flush()
        domain.map(VA + 0x1000 * (number + 1), 400)
        domain.check(VA + 0x1000 * (number + 1), Access.LOAD)
    assert table in kvm.of_gfn


def test_a_table_in_two_roles_may_not_go_unsync_as_one() -> None:
    domain, kvm = used()
    upper, table = domain.entry_at(VA, 3), table_of(domain, VA)
    domain.poke(upper + 8, table << 12 | 0x67)  # the page table, one gigabyte on, as a page directory
    domain.poke(300 << 12, 301 << 12 | 0x67)  # so that what VA maps is a page table there
    domain.flush()
    assert domain.check(VA + (1 << 30), Access.LOAD).frame == 301
    assert len({page.level for page in kvm.of_gfn[table]}) == 2
    domain.poke((table << 12) + 8 * 9, 0)
    assert kvm.opened
    domain.audit()


def test_a_page_that_becomes_a_table_is_protected_through_its_reverse_map() -> None:
    domain, kvm = used()
    table = domain.frame()
    for page in range(20):
        domain.map(OTHER + page * 4096, table)
        domain.check(OTHER + page * 4096, Access.STORE)
    words = kvm.rmap.of((table, 1))
    assert len(words) == 20
    assert all(kvm.q[word] & RW for word in words)
    chunks, visited = kvm.rmap.chunks, kvm.rmap.visited
    domain.poke(domain.entry_at(VA + 0x1000000, 2), table << 12 | 0x67)
    domain.poke(table << 12, 310 << 12 | 0x67)
    domain.check(VA + 0x1000000, Access.LOAD)
    assert not any(kvm.q[word] & RW for word in words)
    assert chunks == 2
    assert 20 <= kvm.rmap.visited - visited <= 30, "the frame's mappings, and nothing else"
    domain.audit()


def test_a_large_page_with_a_table_inside_is_divided_when_it_is_used() -> None:
    domain, kvm = used(frames=4096)
    domain.map(OTHER, 2048, level=2)
    domain.check(OTHER, Access.STORE)
    assert domain.peer.describe_walk(OTHER)[-1]["spte"] & PS
    domain.poke(domain.entry_at(VA + 0x1000000, 2), 2100 << 12 | 0x67)
    domain.poke(2100 << 12, 310 << 12 | 0x67)
    assert domain.check(VA + 0x1000000, Access.LOAD).frame == 310
    large = domain.peer.describe_walk(OTHER)[-1]["spte"]
    assert large & PS
    assert not large & RW
    assert domain.check(OTHER, Access.STORE).frame == 2048
    assert not domain.peer.describe_walk(OTHER)[-2]["spte"] & PS
    assert not kvm.whole(2048, 2)
    domain.audit()


class LargeAroundTables(KvmEngine):
    """Large pages are mapped whole whatever is in them."""

    def whole(self, gfn: int, level: int) -> bool:
        return self.p2m.whole(gfn, level)


def test_a_large_page_that_stays_writable_around_a_table_is_found() -> None:
    domain = PeerDomain(LargeAroundTables, frames=4096)
    domain.map(VA, 310)
    domain.map(OTHER, 2048, level=2)
    domain.start()
    domain.check(OTHER, Access.STORE)
    domain.poke(domain.entry_at(VA + 0x1000000, 2), 2100 << 12 | 0x67)
    domain.poke(2100 << 12, 310 << 12 | 0x67)
    domain.check(VA + 0x1000000, Access.LOAD)
    domain.audit()
    domain.check(OTHER, Access.STORE)
    assert {failure.invariant for failure in domain.engine.audit()} == {"K5"}


def test_the_oldest_go_when_there_is_no_room() -> None:
    domain, kvm = used(sptis=4)
    for page in range(1, 30):
        domain.map(VA + (page << 21), 1000 + page)
        assert domain.check(VA + (page << 21), Access.STORE).frame == 1000 + page
        domain.audit()
    assert domain.engine.stats()["recycled"] > 0
    assert kvm.root_page is not None
    assert kvm.root_page.role is not None


def test_a_pool_in_which_a_path_would_be_zapped_again_and_again_is_refused() -> None:
    with pytest.raises(ValueError, match="keeps 5 free beside a path of 5"):
        used(sptis=2)


def test_a_round_of_the_dirty_log_walks_the_reverse_maps() -> None:
    domain, kvm = used()
    domain.engine.dirty_log_start()
    assert domain.engine.stats()["log_protected_sptes"] == 1
    domain.check(VA, Access.LOAD)
    assert not domain.engine.dirty_log_read().any()
    domain.check(VA, Access.STORE)
    assert np.flatnonzero(kvm.logged).tolist() == [300]
    domain.audit()
    assert np.flatnonzero(domain.engine.dirty_log_read()).tolist() == [300]
    assert domain.engine.stats()["log_protected_sptes"] == 2


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


def test_bits_of() -> None:
    assert bits_of(0) == []
    assert bits_of(1 | 1 << 9 | 1 << 511) == [0, 9, 511]
