"""A whole comparison of small things: the engines that are installed, on the smallest of each workload."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.compare import run as running
from harness.compare.measurement import FAULT, Comparison, Measurement, Subject
from harness.compare.plan import Plan, Recorded, Request, make_plan
from harness.compare.run import Run
from harness.compare.runner import Case
from harness.machine.errors import MachineError
from harness.workload import recording
from harness.workload.workload import WorkloadError
from harness.x86.access import Access
from tests.compare.fakes import Scripted, faults
from tests.trace.guest import PAGES, RecordedGuest

SMALL = "fork:spaces=1,tables=1,fill=16,rounds=2"


def nobody(label: str, title: str, number: int, of: int) -> None:
    pass


def compared(*workloads: str, engines: tuple[str, ...] = ("xi", "xen302", "kvm", "eager")) -> Comparison:
    one = Run(make_plan(Request(engines, workloads, rounds=1)), "the command", nobody)
    one.run()
    return one.comparison()


@pytest.fixture(scope="module")
def small() -> Comparison:
    return compared(SMALL)


def test_every_engine_is_measured_on_the_same_work(small: Comparison) -> None:
    assert small.labels == ["xi", "xen302", "kvm", "eager"] and not small.left
    assert small.command == "the command" and small.rounds == 1 and not small.interrupted
    assert small.machine["processors"] >= 1 and small.machine["clock_ns"] > 0
    assert len({tuple(one.facts.items()) for one in small.measurements}) == 1
    for one in small.measurements:
        assert one.operations[FAULT].calls > 0 and one.operations["load_cr3"].calls > 0
        assert one.whole.words is not None and one.whole.words > 0
        assert one.peak is not None and one.peak.used > 0
        assert {"gva_to_gpa", "spti_make_shadow"} <= one.operations.keys()


def test_counts_are_the_same_in_the_next_run(small: Comparison) -> None:
    def counts(one: Measurement) -> dict[str, object]:
        return {name: (each.calls, each.work, each.words_at) for name, each in one.operations.items()}

    again = compared(SMALL)
    assert [counts(one) for one in again.measurements] == [counts(one) for one in small.measurements]
    assert [one.peak for one in again.measurements] == [one.peak for one in small.measurements]


def test_a_file_is_replayed_through_every_engine(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path).live()
    path = guest.save().path
    found = compared(f"trace:{path}", engines=("xi", "kvm"))
    assert [one.workload for one in found.measurements] == [f"trace:{path}"] * 2
    assert all(one.operation(FAULT) for one in found.measurements)


def test_a_guest_is_recorded_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = RecordedGuest(tmp_path)
    guest.access(PAGES[0], Access.LOAD)
    trace = guest.save().path
    asked: list[tuple[str, str]] = []

    def record(name: str, paging: str, folder: Path) -> Path:
        assert folder.is_dir()
        asked.append((name, paging))
        return trace

    monkeypatch.setattr(recording, "record", record)
    found = compared("trace:churn/long4", engines=("xi",))
    assert asked == [("churn", "long4")]
    assert [one.workload for one in found.measurements] == ["trace:churn/long4"]


def test_a_guest_that_cannot_be_recorded_is_told_and_nobody_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(*arguments: object) -> Path:
        raise MachineError("there is no QEMU here")

    monkeypatch.setattr(recording, "record", record)
    found = compared("trace:churn/long4", engines=("xi",))
    (left,) = found.left
    assert (left.workload, left.reason, left.wrong) == ("trace:churn/long4", "there is no QEMU here", False)


def planned(*cases: Case | Recorded, domains: bool = False) -> Plan:
    return Plan("xi", 1, False, cases, domains)


class Wrong(Scripted):
    def run(self, make: object, mark: object = None) -> None:
        raise WorkloadError("xi is wrong at 0x1000")


def test_what_is_wrong_is_told_beside_what_is_not() -> None:
    one = Run(planned(Case(Wrong(faults(0)), "first", "", 0, True, [Subject("xi")], 1)), "", nobody)
    one.run()
    assert [left.reason for left in one.comparison().left] == ["xi is wrong at 0x1000"]
    assert one.comparison().left[0].wrong


def test_wrong_domains_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_domains(*arguments: object) -> None:
        raise WorkloadError("the shadow of 0x1000 leads to another's frame")

    monkeypatch.setattr(running, "measure_domains", measure_domains)
    one = Run(planned(domains=True), "", nobody)
    one.run()
    (left,) = one.comparison().left
    assert left.workload == "domains" and left.wrong


def test_what_was_measured_before_an_interruption_can_be_had() -> None:
    plan = make_plan(Request(["xi"], [SMALL, "dirty:spaces=1,tables=1,fill=8,rounds=1"], rounds=1))

    def watch(label: str, title: str, number: int, of: int) -> None:
        assert 0 < number <= of == plan.runs
        if title.startswith("dirty"):
            raise KeyboardInterrupt

    one = Run(plan, "", watch)
    with pytest.raises(KeyboardInterrupt):
        one.run()
    found = one.comparison(interrupted=True)
    assert found.interrupted and [each.workload for each in found.measurements] == [SMALL]
    assert one.cases == 1
