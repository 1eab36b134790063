"""Totals over a list of runs, and the exit status that they mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from harness.report.record import RunRecord


class ExitStatus(IntEnum):
    """What the command's exit status says."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    MACHINE = 3
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all runs. events: `RunRecord.intercepted`. faults: on the shadow, handled by the engine.

    seconds: summed over runs, so more than the wall time when runs overlap.
    """

    runs: int
    unexpected: int
    verdicts: Counter[str]
    events: int
    faults: int
    checks: Counter[str]
    mismatches: int
    audit_failures: int
    interception_misses: int
    seconds: float

    @classmethod
    def of(cls, records: Sequence[RunRecord]) -> Self:
        checks: Counter[str] = Counter()
        for record in records:
            checks.update(record.checks)
        return cls(
            runs=len(records),
            unexpected=sum(not record.as_expected for record in records),
            verdicts=Counter(record.verdict for record in records),
            events=sum(record.intercepted for record in records),
            faults=sum(record.events.get("page_fault", 0) for record in records),
            checks=checks,
            mismatches=sum(record.mismatches for record in records),
            audit_failures=sum(record.audit_failures for record in records),
            interception_misses=sum(record.interception_misses for record in records),
            seconds=sum(record.seconds for record in records),
        )


def exit_status(records: Sequence[RunRecord]) -> ExitStatus:
    """The status of a command that ended with `records`.

    OK iff every run ended with the verdict that was expected of it. MACHINE when what went wrong is only that
    machines could not be run or were lost, and when there is nothing but skipped runs: nothing was
    checked then, and that must not look like success.
    """
    wrong = [record for record in records if not record.as_expected]
    if any(record.verdict != "error" for record in wrong):
        return ExitStatus.CHECK_FAILED
    if wrong or all(record.verdict == "skip" for record in records):
        return ExitStatus.MACHINE
    return ExitStatus.OK
