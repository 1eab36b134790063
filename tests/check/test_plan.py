"""The plan is reproducible, within its budget, and gives every edge its turn."""

from __future__ import annotations

import numpy as np
import pytest

from harness.check.layout import Layout
from harness.check.plan import Plan, Planner
from harness.check.ranges import Ranges, find_ranges
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.modes import LONG4, NOPAE, PAGED_MODES, PagingMode
from tests.check.guest_tables import DATA, FRAMES, Guest, P, U, W, arena


def scattered(mode: PagingMode, count: int) -> tuple[Guest, Ranges]:
    """A guest with `count` ranges of one page, every other page."""
    guest = Guest(mode)
    for i in range(count):
        guest.map(arena(mode) + (2 * i << 12), DATA + i % 64, P | W | U)
    return guest, find_ranges(guest.state, guest.ram, Layout(FRAMES), np.random.default_rng(1))


def pages(plan: Plan) -> set[int]:
    return set(plan.pages.tolist())


@pytest.mark.parametrize("mode", PAGED_MODES, ids=lambda mode: mode.name)
def test_edges_neighbours_and_strangers_are_all_there(mode: PagingMode) -> None:
    _, ranges = scattered(mode, 8)
    plan = Planner(1, 1200).plan(mode, ranges, 1)
    base = arena(mode)
    assert pages(plan) >= {base + (i << 12) for i in range(-1, 16)}
    assert len(plan.pages) * len(plan.accesses) <= 1200
    assert plan.accesses == ALL_ACCESSES
    if mode.canonical:
        assert any(not mode.is_canonical(page) for page in pages(plan))
        assert 1 << (mode.va_bits - 1) in pages(plan)
    else:
        assert all(page < 1 << 32 for page in pages(plan))


def test_each_page_comes_once_and_is_a_page() -> None:
    _, ranges = scattered(LONG4, 30)
    plan = Planner(3).plan(LONG4, ranges, 1)
    assert len(pages(plan)) == len(plan.pages)
    assert not (plan.pages & np.uint64(0xFFF)).any()


def test_every_edge_has_its_turn_when_there_are_too_many() -> None:
    guest, ranges = scattered(LONG4, 250)
    planner = Planner(1, 600)
    seen: set[int] = set()
    for checkpoint in range(1, 8):
        seen |= pages(planner.plan(LONG4, ranges, checkpoint))
    assert seen >= set(ranges.first.tolist())
    assert guest.root


def test_what_changed_comes_before_what_was_there() -> None:
    guest, ranges = scattered(LONG4, 250)
    planner = Planner(1, 300)
    planner.plan(LONG4, ranges, 1)
    changed = {arena(LONG4) + (2 * i << 12) for i in (3, 77, 190)}
    for va in changed:
        guest.map(va, DATA + 70, P | U)
    ranges = find_ranges(guest.state, guest.ram, Layout(FRAMES), np.random.default_rng(1))
    assert changed <= set(planner.plan(LONG4, ranges, 2).pages[:3].tolist())


def test_seed_and_checkpoint_decide_the_samples() -> None:
    _, ranges = scattered(NOPAE, 4)
    first, again, other = (Planner(seed).plan(NOPAE, ranges, 1) for seed in (5, 5, 6))
    assert first.pages.tolist() == again.pages.tolist() != other.pages.tolist()


def test_without_a_probe_server_only_loads_are_planned() -> None:
    assert Planner(1, can_probe=False).accesses == (Access.LOAD,)


def test_a_budget_below_one_page_is_refused() -> None:
    with pytest.raises(ValueError, match="budget of 5"):
        Planner(1, 5)
