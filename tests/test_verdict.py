"""From exit status, TAP and checks to a verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from harness.report.record import RunRecord
from harness.verdict import STATUS_FAIL, STATUS_PASS, judge_checks, judge_end


@dataclass
class Printed:
    """A console that printed this TAP."""

    plan: int | None = 2
    results: list[tuple[bool, str]] = field(default_factory=lambda: [(True, "a"), (True, "b")])
    bailed: bool = False

    def tap(self) -> tuple[int | None, list[tuple[bool, str]], bool]:
        return self.plan, self.results, self.bailed


@pytest.mark.parametrize(
    ("printed", "status", "verdict"),
    [
        (Printed(), STATUS_PASS, "pass"),
        (Printed(plan=3), STATUS_PASS, "fail"),
        (Printed(plan=None), STATUS_PASS, "fail"),
        (Printed(results=[(True, "a"), (False, "b")]), STATUS_PASS, "fail"),
        (Printed(), STATUS_FAIL, "fail"),
        (Printed(bailed=True), STATUS_FAIL, "fail"),
        (Printed(), 0, "crash"),
        (Printed(), 1, "error"),
        (Printed(), -9, "error"),
        (Printed(), None, "error"),
    ],
)
def test_how_a_guest_ended(printed: Printed, status: int | None, verdict: str) -> None:
    record = RunRecord("guest", "long4")
    judge_end(record, printed, status)  # type: ignore[arg-type]
    assert record.verdict == verdict
    assert bool(record.reason) == (verdict != "pass")


@pytest.mark.parametrize("field_name", ["mismatches", "audit_failures", "interception_misses"])
@pytest.mark.parametrize("ended", ["pass", "crash", "timeout"])
def test_a_finding_fails_the_run_however_it_ended(field_name: str, ended: str) -> None:
    record = RunRecord("guest", "long4", verdict=ended)
    setattr(record, field_name, 2)
    judge_checks(record)
    assert record.verdict == "fail"
    assert "2 " in record.reason


def test_misses_can_be_forgiven_but_are_told() -> None:
    record = RunRecord("vmlinuz", "long5", verdict="pass", interception_misses=3)
    judge_checks(record, forgive_misses=True)
    assert record.verdict == "pass"
    assert "3 changes were seen late" in record.reason
