"""The search for what lets a page be written: how far it goes, and what it counts."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from harness.peers.counters import Counters
from harness.peers.pages import PagePool, ShadowPage
from harness.peers.write_search import WriteSearch
from harness.x86.bits import PTE_P, PTE_RW
from harness.xi.p2m import P2m
from harness.xi.roles import Kind, Role

FRAMES = 64
TABLES = 6
READ_ONLY = PTE_P
WRITABLE = PTE_P | PTE_RW


class Shadow:
    """A few tables of level 1 and one above them, all empty; machine frames are the guest's and 100."""

    def __init__(self) -> None:
        self.pool = PagePool(16, 0x1000, None)
        p2m = P2m(FRAMES, np.arange(100, 100 + FRAMES, dtype=np.int64), 200, range(0x1000, 0x1010))
        self.counters = Counters()
        self.search = WriteSearch(self.pool, p2m, self.counters)
        self.pages = [self.page(gfn, 1) for gfn in range(TABLES)]
        self.above = self.page(0, 2)

    def page(self, gfn: int, level: int) -> ShadowPage:
        page = self.pool.take(Role(Kind.GUEST, gfn, level, "long4", 0, 1), 40)
        assert page is not None
        return page

    def map(self, table: int, index: int, gfn: int, flags: int) -> int:
        """Puts a leaf into table `table`. Its word."""
        word = self.pages[table].base + index
        spte = 100 + gfn << 12 | flags
        self.search.change_many(self.pool.words[word : word + 1], np.array([spte], np.uint64))
        self.pool.q[word] = spte
        self.search.mapped(gfn, word)
        return word

    def protect(self, gfn: int) -> int:
        """Takes write access from `gfn`. How many SPTEs were looked at."""
        before = self.counters.sptes_visited
        self.search.take_all(gfn)
        assert not self.search.count[gfn]
        return self.counters.sptes_visited - before


def test_nothing_is_looked_at_when_nothing_is_writable() -> None:
    shadow = Shadow()
    shadow.map(0, 7, 30, READ_ONLY)
    assert shadow.protect(30) == 0


def test_the_back_pointer_answers_for_a_page_that_is_mapped_once() -> None:
    shadow = Shadow()
    word = shadow.map(3, 7, 30, WRITABLE)
    assert shadow.protect(30) == 1
    assert shadow.pool.q[word] == 130 << 12 | READ_ONLY
    assert (shadow.search.hits, shadow.search.searches) == (1, 0)


def test_then_the_rest_of_its_table() -> None:
    shadow = Shadow()
    for index in (400, 20, 7):
        shadow.map(3, index, 30, WRITABLE)
    assert shadow.protect(30) == 1 + 401, "up to the last that there is"
    assert (shadow.search.hits, shadow.search.searches) == (1, 0)


def test_then_every_table_of_level_1_in_turn() -> None:
    shadow = Shadow()
    shadow.map(2, 10, 30, WRITABLE)
    shadow.map(4, 7, 30, WRITABLE)
    assert shadow.protect(30) == 1 + 512 + 512 + 512 + 11
    assert (shadow.search.hits, shadow.search.searches) == (0, 1)
    assert not any((page.spt & np.uint64(PTE_RW)).any() for page in shadow.pages)


def test_a_back_pointer_may_be_old() -> None:
    shadow = Shadow()
    shadow.map(1, 5, 30, WRITABLE)
    word = shadow.map(4, 7, 30, READ_ONLY)
    assert shadow.protect(30) == 512 + 512 + 6, "its table in vain, then from the first on"
    shadow.map(1, 5, 30, WRITABLE)
    shadow.search.mapped(30, word)
    shadow.pool.give_back(shadow.pages[4])
    assert shadow.protect(30) == 512 + 6, "the table is gone"


def test_tables_above_are_not_searched() -> None:
    shadow = Shadow()
    shadow.above.spt[0] = 130 << 12 | WRITABLE  # as the number of another machine frame, a table's
    shadow.map(0, 0, 30, WRITABLE)
    shadow.search.back[30] = -1
    assert shadow.protect(30) == 1
    assert shadow.above.spt[0] & np.uint64(PTE_RW)


def test_a_count_that_is_wrong_is_noticed() -> None:
    shadow = Shadow()
    shadow.map(0, 0, 30, WRITABLE)
    shadow.search.count[30] += 1
    with pytest.raises(AssertionError, match="0x1e is writable 1 times more"):
        shadow.search.take_all(30)


def test_many_at_once_are_counted_as_one_by_one() -> None:
    shadow = Shadow()
    old = np.array([0, 130 << 12 | WRITABLE, 131 << 12 | READ_ONLY, 132 << 12 | WRITABLE], np.uint64)
    new = np.array([130 << 12 | WRITABLE, 130 << 12 | WRITABLE, 131 << 12 | WRITABLE, 0], np.uint64)
    shadow.search.change_many(np.zeros(4, np.uint64), old)
    assert shadow.search.count[[30, 31, 32]].tolist() == [1, 0, 1]
    shadow.search.change_many(old, new)
    assert shadow.search.count[[30, 31, 32]].tolist() == [2, 1, 0]


def test_nothing_is_known_after_all_was_freed() -> None:
    shadow = Shadow()
    shadow.map(0, 0, 30, WRITABLE)
    shadow.search.forget()
    assert not shadow.search.count.any()
    assert (shadow.search.back == -1).all()


@pytest.mark.parametrize("seed", range(20))
def test_all_are_found_wherever_they_are(seed: int) -> None:
    random, shadow = Random(seed), Shadow()
    for _ in range(200):
        shadow.map(random.randrange(TABLES), random.randrange(512), random.randrange(20, 24), random.choice((1, 3)))
    for gfn in range(20, 24):
        shadow.protect(gfn)
    assert not any((page.spt & np.uint64(PTE_RW)).any() for page in shadow.pages)
