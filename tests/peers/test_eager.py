"""`eager`: everything again at every flush, nothing kept, nothing protected."""

from __future__ import annotations

import pytest

from harness.engine import AWAY, MMIO, RETRY
from harness.peers.eager import EagerEngine
from harness.peers.pages import ShadowPage
from harness.x86.access import Access
from harness.x86.modes import PAGED_MODES
from tests.peers.domain import PeerDomain
from tests.xi.domain import PS, USED

VA = 0x40000000
every_mode = pytest.mark.parametrize("mode", [mode.name for mode in PAGED_MODES])


@every_mode
def test_the_whole_tree_is_there_after_a_flush(mode: str) -> None:
    domain = PeerDomain(EagerEngine, mode)
    for page in range(20):
        domain.map(VA + page * 4096, 300 + page)
    domain.start()
    faults = domain.engine.stats()["shadow_fault"]
    for page in range(20):
        assert domain.check(VA + page * 4096, Access.STORE).frame == 300 + page
    assert domain.engine.stats()["shadow_fault"] == faults
    assert not any(domain.engine.guest_tables().values()), "no table is write-protected"
    domain.audit()


@every_mode
def test_a_rebuild_costs_the_whole_tree_again(mode: str) -> None:
    domain = PeerDomain(EagerEngine, mode)
    for page in range(20):
        domain.map(VA + page * 4096, 300 + page)
    domain.start()
    work = []
    for _ in range(3):
        before = domain.engine.stats()["entries_compared"]
        domain.flush()
        work.append(domain.engine.stats()["entries_compared"] - before)
    assert work[0] >= 512
    assert len(set(work)) == 1, "nothing is remembered"


def test_a_change_is_seen_after_invlpg() -> None:
    domain = PeerDomain(EagerEngine)
    domain.map(VA, 300)
    domain.start()
    domain.map(VA, 301)
    assert domain.run(VA, Access.LOAD).frame == 300, "stale, as in a TLB"
    domain.engine.invlpg(VA)
    assert domain.check(VA, Access.LOAD).frame == 301


class FoundStale(EagerEngine):
    """A page that is linked at a new address is not brought up to date."""

    def page_found(self, page: ShadowPage) -> None:
        pass


def link_an_old_table_anew(engine: type[EagerEngine]) -> int:
    """The frame that is reached where a table that changed since the last flush is mapped at a new address: nothing was
    there, so the guest need not flush."""
    domain = PeerDomain(engine)
    domain.map(VA, 300)
    domain.map(VA + 0x1000, 310)
    domain.start()
    domain.map(VA + 0x1000, 311)
    above, new = domain.entry_at(VA, 2), domain.entry_at(VA + (1 << 30), 2)
    domain.poke(new, domain.read_guest(above, 8))
    assert domain.check(VA + (1 << 30), Access.LOAD).frame == 300
    frame = domain.run(VA + (1 << 30) + 0x1000, Access.LOAD).frame
    assert frame is not None
    domain.audit()
    return frame


def test_what_is_linked_anew_is_not_stale() -> None:
    assert link_an_old_table_anew(EagerEngine) == 311
    assert link_an_old_table_anew(FoundStale) == 310


def test_a_fault_that_finds_no_room_throws_all_away() -> None:
    domain = PeerDomain(EagerEngine, sptis=2, frames=2048)
    for page in range(12):
        domain.map(VA + (page << 21), 1000 + page)
    domain.start()
    assert domain.engine.stats()["truncated"] > 0
    for page in range(12):
        assert domain.check(VA + (page << 21), Access.STORE).frame == 1000 + page
        domain.audit()
    assert domain.engine.stats()["recycled"] > 0


def test_frames_that_move_and_go() -> None:
    domain = PeerDomain(EagerEngine)
    domain.map(VA, 300)
    domain.map(VA + 0x1000, domain.frames + 1)
    domain.start()
    domain.move(300)
    assert domain.check(VA, Access.STORE).frame == 300
    domain.take(300)
    assert domain.engine.shadow_fault(VA, Access.LOAD) == AWAY
    assert domain.engine.shadow_fault(VA + 0x1000, Access.LOAD) == MMIO
    domain.give(300)
    assert domain.engine.shadow_fault(VA, Access.LOAD) == RETRY
    domain.audit()


def test_large_pages_stay_whole_where_the_machine_is() -> None:
    domain = PeerDomain(EagerEngine, frames=2048)
    domain.map(VA, 1024, USED, 2)
    domain.start()
    assert domain.peer.describe_walk(VA)[-1]["spte"] & PS
    domain.move(1100)
    assert domain.check(VA + (100 << 12), Access.STORE).frame == 1124
    assert not domain.peer.describe_walk(VA)[-2]["spte"] & PS
    domain.audit()
