"""No backlinks at all: the five uses by searching, what is counted of it, and what the audit sees."""

from __future__ import annotations

import numpy as np
import pytest

from harness.x86.access import Access
from harness.xi.no_backlinks import NoBacklinks
from tests.xi import test_backlink_uses as uses
from tests.xi.domain import USED, Domain

VA = 0x40000000
OPTIONS = [{"backlinks": "none"}, {"backlinks": "gpt-only"}, {"backlinks": "none", "snapshots": "dynamic"}]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()))
@pytest.mark.parametrize("mode", uses.MODE_NAMES)
def test_all_five_uses(mode: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*args: object, **others: object) -> Domain:
        return Domain(*args, **others, options=options)  # type: ignore[arg-type, misc]

    monkeypatch.setattr(uses, "Domain", made)
    uses.test_1_a_page_that_becomes_a_table_is_made_read_only_at_every_alias(mode)
    for fill in ("eager", "demand"):
        uses.test_2_dirty_logging_sees_the_first_store_to_each_page(mode, fill)
        uses.test_4_a_changed_p2m_leaves_no_spte_behind(mode, fill)
    uses.test_2_a_round_of_logging_protects_every_alias_and_the_next_only_what_was_logged()
    uses.test_3_a_large_page_that_contains_a_table_is_divided(mode)
    uses.test_4_a_guest_table_can_move_too()
    uses.test_5_the_parents_of_a_torn_down_table_forget_it(mode)


def made() -> tuple[Domain, NoBacklinks]:
    domain = Domain("long4", "demand", options={"backlinks": "none"})
    for page in range(3):
        domain.map(VA + (page << 21), 300)
    domain.map(VA + 0x800000, 512, USED, 2)
    domain.start()
    for page in range(3):
        domain.check(VA + (page << 21), Access.STORE)
    domain.check(VA + 0x800000, Access.STORE)
    links = domain.engine.links
    assert isinstance(links, NoBacklinks)
    return domain, links


def test_every_spte_of_every_table_of_the_level_is_visited() -> None:
    domain, links = made()
    counters = domain.engine.counters
    start = counters.visited_for_frames
    assert len(links.nodes(300)) == 3
    assert counters.visited_for_frames == start + 3 * 512
    assert [level for _, level in links.mapping(700)] == [2]
    assert counters.visited_for_frames == start + 3 * 512 + (3 + 1 + 1) * 512, "level 1, 2 and 3"
    counters.visited_for_log = 0
    assert len(links.leaves()) == 4
    assert len(links.pages(np.array([300]))) == 3
    assert counters.visited_for_log == (5 + 3) * 512


def test_a_search_for_parents_ends_when_all_are_found() -> None:
    domain, links = made()
    (spti,) = (spti for spti in domain.engine.sptis if spti.role is not None and spti.level == 2)
    counters = domain.engine.counters
    before = counters.visited_for_parents
    assert len(links.nodes(links.parents(spti.index))) == 1 == links.references[spti.index]
    assert counters.visited_for_parents == before + 512
    assert links.nodes(links.parents(63)) == []
    assert counters.visited_for_parents == before + 512, "nothing leads to a free one"


def test_who_looks_on_is_counted_apart() -> None:
    domain, links = made()
    counters = domain.engine.counters
    before = counters.searches, counters.visited_for_frames
    assert len(links.aside().mapping(300)) == 3
    assert (counters.searches, counters.visited_for_frames) == before
    assert counters.visited_aside == 5 * 512


def test_the_audit_sees_a_wrong_count() -> None:
    domain, links = made()
    domain.audit()
    links.references[2] += 1
    assert "backlink-bijection" in {failure.invariant for failure in domain.engine.audit()}
