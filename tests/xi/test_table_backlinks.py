"""Backlinks of guest tables only: who has one, what is searched for instead, and what the audit sees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from harness.x86.access import Access
from harness.xi.table_backlinks import NODE_BYTES, TableBacklinks
from tests.xi.domain import RW, USED, Domain

VA = 0x40000000


def made() -> tuple[Domain, TableBacklinks, int]:
    """A guest with a table that is mapped three times, once in a large page, and data pages; the table's gfn."""
    domain = Domain("long4", options={"backlinks": "gpt-only"})
    table = domain.map(VA, 300) >> 12
    domain.map(VA + 0x1000, table)
    domain.map(VA + 0x2000, table)
    domain.map(VA + 0x800000, 0, USED, 2)
    domain.start()
    links = domain.engine.links
    assert isinstance(links, TableBacklinks)
    return domain, links, table


def test_only_what_leads_to_tables_has_backlinks() -> None:
    domain, links, table = made()
    assert len(links.lists[table]) == 3
    assert 300 not in links.lists
    before = domain.engine.stats()["searches"], domain.engine.stats()["sptes_visited"]
    assert len(links.nodes(table)) == 3
    after = domain.engine.stats()["searches"], domain.engine.stats()["sptes_visited"]
    assert after == (before[0], before[1] + 3)
    assert len(links.nodes(300)) == 2, "found by a search, alone and as a piece"
    assert domain.engine.stats()["searches"] > after[0]
    assert links.pages_held == -(-len(links.slot_of) * NODE_BYTES // 4096) == 1


def test_what_maps_a_page_that_becomes_a_table_is_searched_for_once() -> None:
    domain, links, _ = made()
    page = domain.frame()
    domain.map(VA + 0x3000, page)
    domain.flush()
    domain.poke(domain.entry_at(VA + 0xC00000, 2), page << 12 | USED)
    visited = domain.engine.stats()["visited_for_frames"]
    domain.flush()
    assert domain.engine.stats()["visited_for_frames"] > visited
    words = list(links.lists[page])
    assert len(words) == 2
    assert not any(domain.engine.q[word] & RW for word in words)
    visited = domain.engine.stats()["visited_for_frames"]
    domain.engine.table_written(page)
    assert all(domain.engine.q[word] & RW for word in words)
    domain.flush()
    assert domain.engine.stats()["visited_for_frames"] == visited, "write-protecting it again takes no search"
    domain.audit()


def test_a_page_that_is_no_table_any_more_loses_its_backlinks() -> None:
    domain, links, table = made()
    for number in list(domain.engine.gpts[table]):
        domain.engine.destroy(domain.engine.sptis[number])
    assert table not in links.lists
    domain.audit()


def test_moving_a_page_and_a_round_of_the_log_are_searches() -> None:
    domain, _, _ = made()
    domain.move(300)
    assert domain.check(VA, Access.STORE).frame == 300
    counters = domain.engine.counters
    assert counters.visited_for_log == 0
    domain.engine.dirty_log_start()
    once = counters.visited_for_log
    assert once > 0
    domain.check(VA, Access.STORE)
    domain.engine.dirty_log_read()
    assert counters.visited_for_log > once
    domain.audit()


def test_many_at_once_is_the_same_as_one_by_one() -> None:
    _, links, table = made()
    before = dict(links.slot_of)
    words = np.array([2048 * 60 + i for i in range(12)])
    links.link_many(words, np.array([table, 300] * 6))
    assert set(links.slot_of) - set(before) == set(words[::2].tolist())
    links.unlink_many(words)
    assert links.slot_of == before


def lose(links: TableBacklinks, table: int) -> None:
    links.unlink(links.nodes(table)[0])


def one_too_many(links: TableBacklinks, table: int) -> None:
    links._allocate(links.nodes(300)[0], 300)


def cross(links: TableBacklinks, table: int) -> None:
    word = links.nodes(table)[0]
    links.unlink(word)
    links._allocate(word, table + 1)


def miscount(links: TableBacklinks, table: int) -> None:
    links.tables[table] += 1


def forget_in_list(links: TableBacklinks, table: int) -> None:
    del links.lists[table][links.nodes(table)[0]]


def in_the_pool(links: TableBacklinks, table: int) -> None:
    links._pool.q[1024] = 1


@pytest.mark.parametrize("sabotage", [lose, one_too_many, cross, miscount, forget_in_list, in_the_pool])
def test_the_audit_sees(sabotage: Callable[[TableBacklinks, int], None]) -> None:
    domain, links, table = made()
    domain.audit()
    sabotage(links, table)
    assert "backlink-bijection" in {failure.invariant for failure in domain.engine.audit()}


def test_views_say_which_backlink_is_missing() -> None:
    domain, links, table = made()
    lose(links, table)
    wrong = [spte["wrong"] for spte in domain.engine.describe_backlinks(table)["sptes"]]
    assert sorted(wrong) == [[], [], ["on no list: it has no backlink"]]
