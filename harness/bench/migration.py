"""What a migration costs: the rounds of copying, and the time that the guest stands."""

from __future__ import annotations

import statistics
import time
from typing import Final

import numpy as np

from harness.bench.figures import PAGING, ROUNDS, Measured
from harness.catalogue import load_catalogue
from harness.machine.errors import MachineError
from harness.migration.report import MigrationReport
from harness.migration.run import MigrationPlan, run_migration
from harness.options import Mode, RunOptions
from harness.x86.bits import PAGE_SIZE

GUEST: Final = "churn"
PLAN: Final = MigrationPlan(after=1, exits=0)  # from its first checkpoint on
COPIES: Final = 5


def full_copy_seconds(frames: int) -> float:
    """Seconds to copy so many frames at once: how long the guest would stand without rounds, at the least."""
    source = np.ones((frames, PAGE_SIZE // 8), np.uint64)
    target = np.zeros_like(source)
    seconds = []
    for _ in range(COPIES):
        began = time.perf_counter()
        target[:] = source
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _migrate(seed: int) -> MigrationReport:
    record, report = run_migration(load_catalogue()[GUEST], PAGING, RunOptions(seed=seed, mode=Mode.LIVE), PLAN)
    if record.verdict != "pass" or not report.done:
        raise MachineError(f"the migration of {GUEST} with seed {seed}: {record.verdict}: {record.reason}")
    return report


def figures_of(reports: list[MigrationReport], floors: list[float]) -> Measured:
    """floors: seconds of a full copy, one for each of `reports`.

    The first round protects everything and copies everything; the figures of a round's start are those of the later
    ones, in which the log tells what is protected again.
    """
    later = [one for report in reports for one in report.rounds[1:]]
    first = [report.rounds[0] for report in reports]
    stopped = statistics.median(report.stopped_us for report in reports)
    floor = statistics.median(floors) * 1e6
    figures = {
        "migration.rounds": statistics.fmean(len(report.rounds) for report in reports),
        "migration.frames_per_round": statistics.fmean(one.copied for one in later) if later else 0.0,
        "migration.stopped_us": stopped,
        "migration.stopped_ratio": stopped / floor,
        "migration.first_start_us": statistics.median(one.protection_us for one in first),
        "migration.first_start_sptes": statistics.fmean(one.protected for one in first),
        "migration.round_start_us": statistics.median([one.protection_us for one in later] or [0.0]),
        "migration.round_start_sptes": statistics.fmean([one.protected for one in later] or [0.0]),
    }
    raw = {
        "migration.full_copy_us": [round(seconds * 1e6, 1) for seconds in floors],
        "migration.reports": [report.to_json() for report in reports],
    }
    return figures, raw


def measure() -> Measured:
    """Migrations of `churn` with different seeds, against copying all of its frames while it stands."""
    reports: list[MigrationReport] = []
    floors: list[float] = []
    for seed in range(1, ROUNDS + 1):
        reports.append(_migrate(seed))
        floors.append(full_copy_seconds(reports[-1].compared))
    return figures_of(reports, floors)
