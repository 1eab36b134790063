"""The other programs: that each does to its engine what its family is about, and as much of it as its knobs say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest

from harness.workload.dirty import Dirty
from harness.workload.forking import Churn, Fork
from harness.workload.knobs import Knobs
from harness.workload.large import Divide
from harness.workload.moves import TABLE_OF, Moves
from harness.workload.program import Program
from harness.workload.promote import Promote
from harness.workload.reclaim import Reclaim
from harness.workload.refill import Refill
from harness.workload.workload import DONE, MEASURED
from harness.x86.bits import PAGE_SHIFT
from tests.workload.engines import Noted

KNOBS: Final = Knobs(spaces=3, tables=2, fill=16, writes=1, rounds=40, locality=0.5, direct="small")


class Measured:
    """What XI was asked for in the measured part of a run of `program`, and what its statistics gained there."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.calls: list[tuple[str, int]] = []
        self.gained: dict[str, int] = {}
        program.run(Noted, self._mark)

    def _mark(self, part: str) -> None:
        engine: Any = self.program.guest.engine
        stats = {name: value for name, value in engine.stats().items() if isinstance(value, int)}
        if part == MEASURED:
            self._before, self._start = stats, len(engine.calls)
        elif part == DONE:
            self.gained = {name: value - self._before[name] for name, value in stats.items()}
            self.calls = engine.calls[self._start :]

    def count(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)


def test_a_refill_is_one_fault_of_the_guest_and_one_invlpg() -> None:
    ran = Measured(Refill(KNOBS))
    assert ran.count("invlpg") == KNOBS.rounds
    assert ran.gained["faults_injected"] == KNOBS.rounds
    assert KNOBS.rounds <= ran.gained["faults_filled"] <= 2 * KNOBS.rounds  # the page; the store to its table perhaps
    assert ran.gained["made"] == 0


def test_more_writes_than_one_are_flushed_at_once() -> None:
    ran = Measured(Refill(replace(KNOBS, writes=8, locality=1)))
    assert ran.count("invlpg") == 0
    assert ran.count("load_cr3") == KNOBS.rounds + 1
    assert ran.gained["faults_injected"] == KNOBS.rounds


@pytest.mark.parametrize(("locality", "least", "most"), [(0.0, 40, 41), (1.0, 1, 1), (0.5, 12, 30)])
def test_locality_says_how_often_another_space_is_loaded(locality: float, least: int, most: int) -> None:
    ran = Measured(Refill(replace(KNOBS, locality=locality)))
    assert least <= ran.count("load_cr3") <= most


def test_a_load_finds_tables_that_were_written_while_they_were_not_loaded() -> None:
    knobs = replace(KNOBS, writes=8)
    ran = Measured(Reclaim(knobs))
    assert ran.count("load_cr3") == knobs.rounds
    assert ran.gained["table_writes"] > knobs.rounds
    assert ran.gained["faults_injected"] == 0
    assert knobs.rounds < ran.gained["resynced_entries"] <= knobs.rounds * knobs.writes
    assert ran.gained["accessed_set"] > knobs.rounds  # by the stores that follow


@pytest.mark.parametrize("mappings", [1, 4])
def test_each_frame_is_mapped_so_many_times(mappings: int) -> None:
    program = Refill(replace(KNOBS, mappings=mappings))
    table = program.guest.table_of(program.spaces[0], program.table_addresses[0])
    gfn = program.guest.entry(table, 0) >> PAGE_SHIFT & program.guest.frames_mask
    assert program.guest.references[gfn] == mappings
    led = sum(
        program.guest.entry(leaf, index) >> PAGE_SHIFT & program.guest.frames_mask == gfn
        for space in program.spaces
        for leaf in space.leaves.values()
        for index in range(KNOBS.fill)
    )
    assert led == mappings


def test_each_round_promotes_a_frame_that_is_mapped_so_many_times() -> None:
    """The kernel's own mapping is one of them."""
    protected = []
    for mappings in (1, 2, 3):
        ran = Measured(Promote(replace(KNOBS, mappings=mappings)))
        assert ran.gained["made"] == KNOBS.rounds
        protected.append(ran.gained["protected_sptes"])
    assert protected[0] >= KNOBS.rounds
    assert protected[1] - protected[0] == protected[2] - protected[1] == KNOBS.rounds


def test_a_promoted_frame_was_no_table_before() -> None:
    program = Promote(KNOBS)
    assert len(set(program.candidates)) == KNOBS.rounds
    tables = {table for space in program.spaces for level in space.below for table in level.values()}
    assert not tables & set(program.candidates)


def test_a_fork_makes_a_space_and_ends_it() -> None:
    knobs = replace(KNOBS, rounds=3, writes=4)
    program = Fork(knobs)
    held = sum(1 for count in program.guest.references if count)
    ran = Measured(program)
    assert len(program.spaces) == KNOBS.spaces
    assert ran.gained["made"] >= 3 * (1 + KNOBS.tables)
    # Stores of the child are copied and those of the parent too, unless the child's copy has left the page to it.
    assert knobs.rounds * 4 <= ran.gained["faults_injected"] <= knobs.rounds * 8
    assert sum(1 for count in program.guest.references if count) == held


def test_a_churn_lets_parent_or_child_go_on() -> None:
    knobs = replace(KNOBS, spaces=1, tables=3, rounds=4, writes=8)
    program = Churn(knobs)
    first = program.spaces[0]
    ran = Measured(program)
    assert len(program.spaces) == 1
    assert program.spaces[0] is not first  # of generation 1 the child lives on
    assert ran.gained["faults_injected"] >= knobs.rounds * (8 + 2)
    assert ran.count("load_cr3") == 1 + 5 * knobs.rounds


def test_a_dirty_round_reads_the_log() -> None:
    ran = Measured(Dirty(replace(KNOBS, rounds=5, writes=12)))
    assert ran.gained["log_rounds"] == 6
    assert 0 < ran.gained["dirty_logged"] <= 5 * (12 + KNOBS.leaves * 4)


def test_moves_are_of_pages_and_now_and_then_of_tables() -> None:
    program = Moves(KNOBS)
    tables = {leaf for space in program.spaces for leaf in space.leaves.values()}
    ran = Measured(program)
    moved = [gfn for name, gfn in ran.calls if name == "xi_invld_mfn"]
    assert len(moved) == KNOBS.rounds + -(-KNOBS.rounds // TABLE_OF)
    assert sum(gfn in tables for gfn in moved) == -(-KNOBS.rounds // TABLE_OF)
    assert any(mfn != gfn for gfn, mfn in enumerate(program.guest.p2m))


@pytest.mark.parametrize("mode", ["nopae", "pae", "long4"])
def test_each_round_divides_a_large_page(mode: str) -> None:
    ran = Measured(Divide(replace(KNOBS, mode=mode)))
    assert KNOBS.rounds <= ran.gained["divided"] <= 2 * KNOBS.rounds
    assert ran.program.facts()["pages"] == KNOBS.leaves * (1024 if mode == "nopae" else 512)
