"""Who runs what when, and what becomes of what was noted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from harness.compare import runner
from harness.compare.measurement import FILL, INJECT, OTHER, TABLE_WRITE, Measurement, Subject
from harness.compare.runner import Case, measure
from harness.work import Work
from tests.compare.fakes import TABLE, Counting, Plain, Scripted, engines, faults

COUNTING, PLAIN = Subject("counting"), Subject("plain")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = engines(counting=Counting, plain=Plain, unsteady=Unsteady, raises=Raises)
    monkeypatch.setattr(runner, "engine_class", known)


class Unsteady(Plain):
    """The first of its kind is called once more than the others: its workload depends on it."""

    made = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        Unsteady.made += 1
        self.again = Unsteady.made == 1

    def table_written(self, gfn: int) -> None:
        pass


class Raises(Plain):
    name = "raises"

    def load_cr3(self, cr3: int) -> None:
        raise IndexError("no such table")


class AsksTwice(Scripted):
    def run(self, make: Any, mark: Any = None) -> None:
        def twice(config: Any, memory: Any) -> Any:
            engine = make(config, memory)
            if getattr(engine, "again", False):
                self._script = [*self._script, *faults(0)]
            return engine

        script = self._script
        super().run(twice, mark)
        self._script = script


def case(workload: Scripted, *subjects: Subject, rounds: int = 2, inside: bool = False) -> Case:
    chosen = subjects or (COUNTING,)
    return Case(workload, workload.name, "size", 4, True, chosen, rounds, chosen if inside else ())


def quiet(label: str, title: str) -> None:
    pass


def measured(workload: Scripted, *subjects: Subject, **more: Any) -> Sequence[Measurement]:
    done, left = measure(case(workload, *subjects, **more), 0.0, quiet)
    assert not left
    return done


def test_subjects_take_turns_the_first_being_the_last_too() -> None:
    told: list[tuple[str, str]] = []
    one = case(Scripted(faults(0)), COUNTING, PLAIN, rounds=2, inside=True)
    measure(one, 0.0, lambda *words: told.append(words))
    turns = ["counting", "plain", "plain", "counting"]
    assert [label for label, _ in told] == [*turns, "counting", "plain", "counting"]
    assert {title for _, title in told} == {"faults size=4"}
    assert one.runs == len(told) + 1  # at most: not all tell of their inside


def test_of_some_the_time_is_taken_once() -> None:
    told: list[str] = []
    workload = Scripted(faults(0))
    one = Case(workload, "faults", "", 0, True, (COUNTING, PLAIN), 3, once=(PLAIN,))
    found, _ = measure(one, 0.0, lambda label, _: told.append(label))
    assert told == ["counting", "plain", "counting", "counting"]
    assert one.runs == len(told)
    assert [len(each.whole.rounds_us) for each in found] == [3, 1]


def test_only_what_is_marked_as_measured_counts() -> None:
    workload = Scripted(faults(0, 1, 2), warm_up=faults(0, 0, 0))
    (one,) = measured(workload)
    assert one.operations["shadow_fault"].calls == 3
    assert "load_cr3" not in one.operations  # of the check at the end
    assert one.whole.calls == 3
    assert len(workload.made) == 2


def test_the_operations_of_an_engine_that_tells() -> None:
    script = [*faults(0, 0, 1, 2, 3, 8), ("load_cr3", (6,)), ("idle", ()), ("table_written", (9,))]
    (one,) = measured(Scripted(script), inside=True)
    found = one.operations
    calls = {name: figures.calls for name, figures in found.items()}
    assert calls == {
        "shadow_fault": 6,
        FILL: 3,
        TABLE_WRITE: 1,
        INJECT: 1,
        OTHER: 1,
        "shadow_resync_all": 4,
        "resync_spte": 6,
        "gva_to_gpa": 6,
        "table_written": 2,
        "load_cr3": 1,
        "idle": 1,
    }
    assert found["shadow_fault"].work == Work(10, 24, 6, 0, 1)
    assert found["shadow_fault"].words == 40
    assert found["shadow_fault"].words_at[-1] == found[TABLE_WRITE].words == 15
    assert found["shadow_fault"].pages_per_call == pytest.approx(1 / 6)
    assert found["gva_to_gpa"].work == Work(0, 24, 0, 0, 0)
    assert found["shadow_resync_all"].work == Work(18, 0, 0, 0, 0)
    assert found["resync_spte"].words_per_call == 6  # of its three calls, each of which did two
    assert found["table_written"].inside and not found["shadow_fault"].inside
    assert one.whole.calls == 8  # not the idle moment
    assert one.whole.work == Work(38, 24, 6, 0, 1)
    assert one.held is not None and one.held.tables == TABLE * 6 and one.held.reserved == 0x1000
    assert one.counters["shadow_fault"] == 6


def test_an_engine_that_tells_nothing_is_measured_from_outside() -> None:
    (one,) = measured(Scripted([*faults(0, 1), ("load_cr3", (6,))]), PLAIN, inside=True)
    assert set(one.operations) == {"shadow_fault", FILL, TABLE_WRITE, "shadow_resync_all", "load_cr3"}
    fault = one.operations["shadow_fault"]
    assert fault.work is None and fault.words is None and fault.words_per_call is None and fault.words_at == ()
    assert fault.p50_us is not None and fault.p50_us > 0
    assert one.operations["shadow_resync_all"].calls == 1
    assert one.held is None and one.peak is None


def test_of_the_rounds_each_calls_fastest_counts() -> None:
    (one,) = measured(Scripted(faults(*range(20))), rounds=3)
    fault = one.operations["shadow_fault"]
    assert len(fault.rounds_us) == 3
    assert fault.total_us is not None
    assert 0 < fault.total_us <= min(fault.rounds_us)
    assert fault.us_at[0] <= (fault.p50_us or 0) <= fault.us_at[-1]
    assert fault.spread is not None and fault.spread >= 1


def test_most_held_is_found_between_the_calls() -> None:
    (one,) = measured(Scripted([("idle", ())] * 23 + [*faults(*[0] * 12)]))
    assert one.peak is not None and one.peak.tables == 9 * TABLE
    assert one.held is not None and one.held.tables == 5 * TABLE


def test_policies_reach_the_engine_and_what_the_workload_asks_for_stays() -> None:
    workload = Scripted(faults(0))
    measured(workload, Subject("counting", (("colour", "red"),)))
    assert {tuple(engine.config.options.items()) for engine in workload.made} == {
        (("mode", "quick"), ("colour", "red"))
    }


def test_the_pool_is_as_large_as_the_engine_says() -> None:
    workload = Scripted(faults(0))
    measured(workload, COUNTING, PLAIN, rounds=1)
    assert {(engine.name, engine.config.pool_frames) for engine in workload.made} == {("counting", 16), ("plain", 32)}


def test_an_engine_that_is_wrong_is_left_out_and_the_others_are_not() -> None:
    workload = Scripted(faults(0), wrong=("plain",))
    done, left = measure(case(workload, COUNTING, PLAIN), 0.0, quiet)
    assert [one.label for one in done] == ["counting"]
    (one,) = left
    assert (one.label, one.workload, one.reason, one.wrong) == (
        "plain",
        "faults size=4",
        "plain is wrong at 0x1000",
        True,
    )
    assert [engine.name for engine in workload.made].count("plain") == 1


def test_an_engine_that_raises_is_left_out_with_what_it_said_and_where() -> None:
    done, left = measure(case(Scripted([("load_cr3", (1,))]), Subject("raises")), 0.0, quiet)
    assert not done
    assert left[0].reason.startswith("IndexError: no such table (test_runner.py:")
    assert left[0].reason.endswith(", in load_cr3)")


def test_an_engine_that_does_not_do_the_same_each_time_cannot_be_compared() -> None:
    Unsteady.made = 0
    done, left = measure(case(AsksTwice(faults(0)), Subject("unsteady")), 0.0, quiet)
    assert not done
    assert left[0].reason == "it was called 2 times in one run and 1 times in another"


def test_an_unknown_engine_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="unknown engine 'xen'"):
        measure(case(Scripted(faults(0)), Subject("xen")), 0.0, quiet)
