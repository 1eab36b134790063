"""The exit status says what went wrong, and nothing checked is not success."""

from __future__ import annotations

import pytest

from harness.report.record import RunRecord
from harness.report.summary import ExitStatus, Totals, exit_status
from tests.report.records import failed, passed

LOST = passed(verdict="error", reason="QEMU ended")
SKIPPED = passed(verdict="skip")
CRASH = passed(verdict="crash", expected="crash")


@pytest.mark.parametrize(
    ("records", "status"),
    [
        ([passed(), CRASH], ExitStatus.OK),
        ([passed(), SKIPPED], ExitStatus.OK),
        ([passed(), failed()], ExitStatus.CHECK_FAILED),
        ([passed(), passed(verdict="pass", expected="crash")], ExitStatus.CHECK_FAILED),
        ([passed(), LOST], ExitStatus.MACHINE),
        ([LOST, failed()], ExitStatus.CHECK_FAILED),
        ([SKIPPED], ExitStatus.MACHINE),
        ([], ExitStatus.MACHINE),
    ],
)
def test_exit_status(records: list[RunRecord], status: ExitStatus) -> None:
    assert exit_status(records) is status


def test_totals_are_sums_over_the_runs() -> None:
    totals = Totals.of([passed(), failed(), CRASH])
    assert (totals.runs, totals.unexpected) == (3, 1)
    assert totals.checks["probe"] == 3 * 34_567
    assert totals.events == 3 * 1200
    assert totals.faults == 3 * 9
    assert (totals.mismatches, totals.audit_failures, totals.interception_misses) == (1, 1, 1)
    assert totals.verdicts == {"pass": 1, "fail": 1, "crash": 1}
