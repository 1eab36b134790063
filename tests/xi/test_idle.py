"""Idle moments: what is done while the guest runs, in how small pieces, and when it is enough."""

from __future__ import annotations

import pytest

from harness.x86.access import Access
from harness.xi.life import IDLE_DROPS, IDLE_ZEROES
from harness.xi.pool import LOW_WATER, PAGES_AT_ONCE, minimum_sptis
from tests.xi.domain import USED, Domain

ENOUGH = minimum_sptis(pages=PAGES_AT_ONCE) + LOW_WATER


def full(fill: str = "demand", options: dict[str, str] | None = None) -> Domain:
    """A guest that has used more tables than the pool holds, twenty pages in each."""
    domain = Domain("long4", fill, sptis=ENOUGH, options=options)
    for table in range(ENOUGH + 4):
        for page in range(20):
            domain.map((table << 21) + (page << 12), 300 + page, USED)
    domain.start()
    for table in range(ENOUGH + 4):
        for page in range(20):
            domain.check((table << 21) + (page << 12), Access.STORE)
    return domain


def sptes(domain: Domain) -> int:
    return sum(int((spti.spt != 0).sum()) for spti in domain.engine.sptis if spti.role is not None)


def test_nothing_to_do_is_said_at_once() -> None:
    domain = Domain("long4", "demand", sptis=120)
    domain.map(0, 300)
    domain.start()
    domain.check(0, Access.LOAD)
    assert not domain.engine.idle()
    domain.engine.root_spti = None
    domain.engine.destroy_tree(next(s for s in domain.engine.sptis if s.level == 4))
    calls = 1
    while domain.engine.idle():
        calls += 1
    assert calls == -(-4 // IDLE_ZEROES)
    assert domain.engine.stats()["sptis_clean"] == 120


def test_tables_are_recycled_ahead_of_need_piece_by_piece() -> None:
    domain = full()
    engine = domain.engine
    before, recycled = sptes(domain), engine.stats()["recycled"]
    more, calls = True, 0
    while more:
        more = engine.idle()
        calls += 1
        now = sptes(domain)
        assert before - now <= IDLE_DROPS + 1, "a piece of a table, and the SPTE above it when it was the last"
        before = now
        domain.audit()
        assert calls < 100
    assert engine.stats()["sptis_clean"] == LOW_WATER
    assert engine.stats()["recycled"] == recycled + LOW_WATER
    inline = engine.stats()["zeroed_inline"]
    for page in range(20):
        domain.check(page << 12, Access.STORE)
    assert engine.stats()["zeroed_inline"] == inline, "the critical path found a clean SPTI"
    assert not engine.idle() or engine.stats()["sptis_free"] < LOW_WATER


def test_a_table_that_is_being_recycled_can_be_used_again() -> None:
    domain = full()
    for table in range(ENOUGH + 4):
        domain.engine.idle()
        domain.check(table << 21, Access.STORE)
        domain.check((table << 21) + 0x5000, Access.LOAD)
        domain.audit()


@pytest.mark.parametrize("fill", ["eager", "demand"])
def test_under_critical_path_zeroing_nothing_is_zeroed_ahead(fill: str) -> None:
    domain = full(fill, {"zeroing": "critical-path"})
    for _ in range(200):
        if not domain.engine.idle():
            break
    else:
        raise AssertionError("there is always more to do")
    assert domain.engine.stats()["zeroed_idle"] == 0
    assert domain.engine.stats()["sptis_clean"] == 0


def test_under_eager_fill_only_orphans_go() -> None:
    domain = Domain("long4", "eager", sptis=3 + 10 + 2)
    for table in range(10):
        domain.map(table << 21, 300)
    domain.start()
    engine = domain.engine
    assert engine.stats()["sptis_free"] == 2 < LOW_WATER
    assert not engine.idle()
    domain.poke(domain.entry_at(5 << 21, 2), 0)
    domain.flush()
    assert engine.stats()["orphans"] == 1
    while engine.idle():
        domain.audit()
    assert engine.stats()["recycled"] == 1
    assert engine.stats()["orphans"] == 0
    assert engine.stats()["sptis_clean"] == 3
