"""Demand fill with as few SPTIs as can be: what is enough, what is not, and everything at once."""

from __future__ import annotations

import pytest

from harness.engine import RETRY
from harness.x86.access import Access
from harness.xi import pool
from harness.xi.pool import PAGES_AT_ONCE, minimum_sptis
from tests.xi.domain import Domain
from tests.xi.storm import Storm

MODES = ("unpaged", "nopae", "pae", "long4", "long5")
GIB = 1 << 30


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a domain have a pool that is too small for some guest."""
    monkeypatch.setattr(pool, "MINIMUM_SPTIS", 1)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("sptis", [minimum_sptis(), 12])
@pytest.mark.parametrize("mode", MODES)
def test_a_storm_in_a_small_pool(mode: str, sptis: int, seed: int) -> None:
    storm = Storm(mode, sptis, seed)
    storm.rage()
    assert storm.engine.stats()["log_rounds"] > 0
    assert storm.engine.stats()["remapped"] > 0


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("mode", MODES)
def test_the_tables_of_one_path_are_enough_for_every_fault(mode: str) -> None:
    recycled = 0
    for seed in range(2):
        storm = Storm(mode, minimum_sptis(mode), seed)
        storm.rage(60)
        recycled += storm.engine.stats()["recycled"]
    assert recycled > 0


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("mode", MODES)
def test_with_one_table_less_a_fault_cannot_be_answered(mode: str) -> None:
    domain = Domain(mode, "demand", sptis=minimum_sptis(mode) - 1, scramble=True)
    (va,) = pages_apart(domain, 1)
    domain.start()
    with pytest.raises(AssertionError, match="minimum_sptis"):
        domain.check(va, Access.LOAD)


def test_a_pool_is_refused_that_is_too_small_for_some_guest() -> None:
    assert minimum_sptis() == max(minimum_sptis(mode) for mode in MODES)
    with pytest.raises(ValueError, match="the longest path needs"):
        Domain("pae", "demand", sptis=minimum_sptis() - 1)
    Domain("pae", "demand", sptis=minimum_sptis())


def pages_apart(domain: Domain, count: int, first: int = 0) -> list[int]:
    """`count` mapped pages with as little in common on their paths as the mode allows."""
    step = GIB if domain.mode.va_bits == 32 else 1 << domain.mode.levels[0].shift if domain.mode.levels else GIB
    out = []
    for number in range(first, first + count):
        va = (number * step) % (4 * GIB) + (number // 4 << 23) if domain.mode.va_bits == 32 else number * step
        if domain.mode.levels:
            domain.map(va, 300 + number)
        out.append(va)
    return out


def faults_until_all_are_there(domain: Domain, pages: list[int], limit: int) -> int | None:
    """The processor tries an instruction that touches `pages`, in order, again and again, with idle moments between.
    How many faults it takes until nothing is missing; None when `limit` are not enough."""
    for faults in range(limit):
        missing = [va for va in pages if domain.hardware(va, Access.LOAD).frame is None]
        if not missing:
            return faults
        assert domain.engine.shadow_fault(missing[0], Access.LOAD) == RETRY
        while domain.engine.idle():
            pass
    return None


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("pages", [1, 2, 3, PAGES_AT_ONCE])
@pytest.mark.parametrize("mode", MODES[1:])
def test_an_instruction_ends_when_all_its_pages_fit_and_not_otherwise(mode: str, pages: int) -> None:
    for less, ends in ((0, True), (1, False)):
        domain = Domain(mode, "demand", sptis=minimum_sptis(mode, pages) - less)
        others, own = pages_apart(domain, 2 * pages, pages), pages_apart(domain, pages)
        domain.start()
        if minimum_sptis(mode, pages) - less < minimum_sptis(mode):
            with pytest.raises(AssertionError, match="minimum_sptis"):
                faults_until_all_are_there(domain, own, 20 * pages)
            continue
        for va in (*others, *own[1:]):
            domain.check(va, Access.LOAD)
        taken = faults_until_all_are_there(domain, own, 20 * pages)
        assert (taken is not None) == ends
        assert taken is None or taken <= 2 * pages
        domain.audit()


def test_idle_moments_leave_a_guest_what_it_needs() -> None:
    """However small the pool, recycling ahead of need stops before an instruction could starve."""
    for sptis in range(minimum_sptis(), minimum_sptis(pages=PAGES_AT_ONCE) + 8):
        reserve = pool.idle_reserve(sptis)
        assert 0 <= reserve <= pool.LOW_WATER
        assert not reserve or sptis - reserve >= minimum_sptis(pages=PAGES_AT_ONCE)
    assert pool.idle_reserve(200) == pool.LOW_WATER
