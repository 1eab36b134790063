"""What each pass notes of an engine's calls, and that it leaves the engine as it is."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from harness.compare.clock import (
    CALLS,
    FAULT_CODE,
    FILLED,
    INJECTED,
    LOOK_EVERY,
    OTHERWISE,
    WROTE,
    Inside,
    InsideTimes,
    Outside,
    Pass,
    own_costs,
)
from harness.engine import MMIO, RETRY, EngineConfig, PlainMemory
from tests.compare.fakes import TABLE, Counting, Plain, as_engine

CONFIG = EngineConfig(1, 8, 0x1000)


def made(noted: Pass, engine: type[Plain]) -> Any:
    return noted.make(as_engine(engine))(CONFIG, PlainMemory(np.zeros(4096, np.uint8)))


def outside() -> Outside:
    return Outside(True)


def inside(engine: type[Plain] = Counting) -> Inside:
    return Inside(Counting.operations if engine is Counting else {})


def names(noted: Outside | Inside) -> list[str]:
    return [CALLS[code] for code in noted.codes]


@pytest.mark.parametrize("noted", [Outside(False), outside(), inside(), InsideTimes(Counting.operations, 0.0)])
def test_a_measured_engine_answers_as_it_would(noted: Pass) -> None:
    engine = made(noted, Counting)
    noted.begin(engine)
    assert [engine.shadow_fault(page << 12, 7) for page in range(4)] == [RETRY, RETRY, 7, MMIO]
    engine.load_cr3(4)
    noted.end(engine, True)
    assert type(engine).__mro__[1] is Counting
    assert engine.asked == {"shadow_fault": 4, "table_written": 1, "load_cr3": 1, "resync_spte": 4}


@pytest.mark.parametrize("noted", [Outside(False), outside(), inside()])
def test_calls_from_outside_are_noted_in_their_order_and_not_what_the_engine_asks_of_itself(
    noted: Outside | Inside,
) -> None:
    engine = made(noted, Counting)
    engine.shadow_fault(0x5000, 1)
    noted.begin(engine)
    engine.shadow_fault(0x1000, 1)  # calls table_written in turn
    engine.idle()
    noted.end(engine, False)
    engine.load_cr3(2)
    noted.begin(engine)
    engine.table_written(3)
    engine.load_cr3(2)
    noted.end(engine, True)
    assert names(noted) == ["shadow_fault", "idle", "table_written", "load_cr3"]


def test_each_call_has_its_time() -> None:
    noted = Outside(False)
    engine = made(noted, Counting)
    noted.begin(engine)
    engine.load_cr3(0)
    engine.load_cr3(2000 // 4)
    short, long = noted.ns
    assert 0 < short < long


@pytest.mark.parametrize("noted", [Outside(False), InsideTimes({"gva_to_gpa": "load_cr3"}, 0.0)])
def test_time_in_which_the_processor_was_somebody_elses_does_not_count(noted: Outside | InsideTimes) -> None:
    class Sleeps(Plain):
        def load_cr3(self, cr3: int) -> None:
            time.sleep(0.05)

    engine = made(noted, Sleeps)
    noted.begin(engine)
    engine.load_cr3(0)
    ns = noted.ns if isinstance(noted, Outside) else noted.tallies["gva_to_gpa"].amounts
    assert 0 < ns[0] < 0.04e9


def test_a_call_that_raises_is_not_noted_and_ends() -> None:
    class Raises(Plain):
        def load_cr3(self, cr3: int) -> None:
            raise ValueError("the root is away")

    for noted in (Outside(False), Inside({})):
        engine = made(noted, Raises)
        noted.begin(engine)
        with pytest.raises(ValueError, match="the root is away"):
            engine.load_cr3(0)
        engine.idle()
        assert names(noted) == ["idle"]


def test_the_work_of_each_call() -> None:
    noted = outside()
    engine = made(noted, Counting)
    engine.shadow_fault(0, 1)
    noted.begin(engine)
    for page in (0, 1, 8):
        engine.shadow_fault(page << 12, 1)
    engine.load_cr3(4)
    noted.end(engine, True)
    visited, compared, written, copied, pages = (list(values) for values in noted.work)
    assert visited == [0, 10, 0, 12]
    assert compared == [4, 4, 4, 0]
    assert written == [1, 1, 1, 0]
    assert copied == [0, 0, 0, 0]
    assert pages == [0, 0, 1, 0]


def test_what_faults_came_to() -> None:
    noted = inside()
    engine = made(noted, Counting)
    noted.begin(engine)
    for page in range(4):
        engine.shadow_fault(page << 12, 7)
    engine.load_cr3(0)
    assert list(noted.kinds) == [FILLED, WROTE, INJECTED, OTHERWISE, OTHERWISE]


def test_an_engine_that_names_no_method_for_it_still_shows_a_table_write_that_it_asks_of_itself() -> None:
    noted = inside(Plain)
    engine = made(noted, Plain)
    noted.begin(engine)
    for page in range(2):
        engine.shadow_fault(page << 12, 7)
    noted.end(engine, True)
    assert list(noted.kinds) == [FILLED, WROTE]


def test_operations_inside_have_the_work_of_what_they_call_but_no_call_counts_twice() -> None:
    noted = inside()
    engine = made(noted, Counting)
    engine.load_cr3(8)
    noted.begin(engine)
    engine.load_cr3(6)
    noted.end(engine, True)
    engine.load_cr3(8)
    resync = noted.tallies["shadow_resync_all"]
    assert resync.calls == 4
    assert list(resync.amounts) == [0, 6, 12, 18]  # the innermost ends first
    assert list(resync.whole) == [False, False, False, True]
    assert resync.work == [18, 0, 0, 0, 0]
    assert noted.tallies["resync_spte"].calls == 3
    assert noted.done["resync_spte"] == 6


def test_what_is_held_is_looked_at_now_and_then_and_at_the_end() -> None:
    noted = outside()
    engine = made(noted, Counting)
    noted.begin(engine)
    for _ in range(LOOK_EVERY - 8):
        engine.idle()
    for _ in range(LOOK_EVERY):
        engine.shadow_fault(0, 1)
    noted.end(engine, True)
    assert [held.tables for held in noted.held] == [8 * TABLE, 5 * TABLE]
    assert noted.counters == {"shadow_fault": LOOK_EVERY, "idle": LOOK_EVERY - 8}


def test_nothing_is_known_of_an_engine_that_tells_nothing_but_its_counters() -> None:
    noted = Outside(False)
    engine = made(noted, Plain)
    noted.begin(engine)
    engine.shadow_fault(0x1000, 1)
    noted.end(engine, True)
    assert noted.work == () and noted.held == []
    assert noted.counters == {"shadow_fault": 1, "table_written": 1}


def test_times_inside_leave_out_the_clocks_of_what_was_called_in_turn() -> None:
    with_clocks, without = InsideTimes(Counting.operations, 0.0), InsideTimes(Counting.operations, 1e9)
    for noted in (with_clocks, without):
        engine = made(noted, Counting)
        noted.begin(engine)
        engine.load_cr3(4)
        engine.shadow_fault(0, 1)
    assert min(with_clocks.tallies["shadow_resync_all"].amounts) > 0
    assert list(without.tallies["shadow_resync_all"].amounts)[1:] == [0, 0]  # a second for each clock within
    assert without.tallies["gva_to_gpa"].amounts[0] > 0
    assert without.tallies["shadow_resync_all"].calls == 3


def test_an_engine_may_come_from_a_function() -> None:
    def make(config: EngineConfig, memory: PlainMemory) -> Plain:
        return Plain(config, memory)

    noted = Outside(False)
    engine: Any = noted.make(make)(CONFIG, PlainMemory(np.zeros(4096, np.uint8)))  # type: ignore[arg-type]
    noted.begin(engine)
    engine.shadow_fault(0, 1)
    assert list(noted.codes) == [FAULT_CODE]


def test_the_clock_has_a_cost() -> None:
    told, lost = own_costs(500)
    assert 0 < told < 1e6
    assert 0 <= lost < 1e6
