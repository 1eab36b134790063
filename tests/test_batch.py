"""A batch gives one record per job, in order, whatever happens to its workers."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from harness.batch import Batch
from harness.catalogue import Guest
from harness.jobs import Job, Runner
from harness.options import Progress, RunOptions
from harness.report.record import RunRecord
from tests import fake_runs

MODES = ("nopae", "pae", "long4", "long5")
GUEST = Guest("basic", "a guest", MODES, time_limit=5.0)
JOBS = [Job(GUEST, mode, RunOptions()) for mode in MODES]


class Log:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int]] = []

    def started(self, number: int, job: Job) -> None:
        self.lines.append(("started", number))

    def progressed(self, number: int, progress: Progress) -> None:
        self.lines.append((progress.phase, number))

    def finished(self, number: int, record: RunRecord) -> None:
        self.lines.append((record.verdict, number))

    def tick(self) -> None:
        pass


def _run(runner: Runner, workers: int = 2, jobs: list[Job] = JOBS) -> tuple[list[RunRecord], Log]:
    batch, log = Batch(jobs, workers, runner), Log()
    batch.run(log)
    return batch.records, log


def test_results_stand_in_the_order_of_the_jobs() -> None:
    records, log = _run(fake_runs.earlier_is_slower)
    assert [record.paging for record in records] == list(MODES)
    assert log.lines.index(("pass", 1)) < log.lines.index(("pass", 0))


def test_every_job_is_seen_to_start_to_go_on_and_to_end() -> None:
    _, log = _run(fake_runs.passes)
    for number in range(len(MODES)):
        mine = [what for what, which in log.lines if which == number]
        assert mine == ["started", "checking", "pass"]


def test_a_worker_that_dies_costs_its_own_run_only() -> None:
    records, _ = _run(fake_runs.crashes_in_pae, workers=1)
    assert [record.verdict for record in records] == ["pass", "error", "pass", "pass"]
    assert "signal 9" in records[1].reason


def test_a_bug_becomes_an_error_and_its_traceback_a_file() -> None:
    records, _ = _run(fake_runs.is_buggy, jobs=JOBS[:1])
    found = re.search(r"KeyError: 'a bug of ours' \(traceback in (.*)\)", records[0].reason)
    assert found is not None
    path = Path(found[1])
    assert "is_buggy" in path.read_text()
    path.unlink()


def test_without_a_qemu_nothing_more_is_tried() -> None:
    records, log = _run(fake_runs.has_no_qemu, workers=1)
    assert [record.verdict for record in records] == ["error"] * 4
    assert [which for what, which in log.lines if what == "started"] == [0]


def test_a_worker_is_held_to_its_share_of_the_cores_and_so_is_the_one_that_replaces_it() -> None:
    first, *rest = sorted(os.sched_getaffinity(0))
    share = frozenset({rest[-1] if rest else first})
    batch = Batch(JOBS, 1, fake_runs.tells_its_cores, [share])
    batch.run(Log())
    assert [record.reason for record in batch.records if record.paging != "pae"] == [str(sorted(share))] * 3
    assert "signal 9" in batch.records[1].reason


def test_shares_that_do_not_fit_the_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 workers and 1 shares"):
        Batch(JOBS, 2, fake_runs.passes, [frozenset({0})])


def test_a_job_that_could_not_give_a_record_tells_its_mode_and_how_to_ask_again() -> None:
    record = Job(GUEST, "pae", RunOptions(mode="live", stress=True)).record("error", "gone")
    assert record.mode == "live"
    assert record.repro == ["xi-harness run basic --paging pae --mode live --seed 1 --stress"]


def test_a_run_that_ignores_its_limit_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.batch.GRACE_SECONDS", 1.0)
    options = RunOptions(time_limit=0.1, log_dir=tmp_path)
    records, _ = _run(fake_runs.hangs_after_the_first, jobs=[dataclasses.replace(JOBS[1], options=options)])
    assert records[0].verdict == "error"
    assert "killed" in records[0].reason
    (mark,) = tmp_path.iterdir()
    assert mark.read_text() == "reaped"  # it could clean up first
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.name), 0)
