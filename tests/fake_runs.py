"""Runners that need no QEMU. They are imported by worker processes, so they are module-level functions."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from harness.jobs import Job
from harness.machine.errors import MachineUnavailable
from harness.options import Progress
from harness.report.record import RunRecord

Watcher = Callable[[Progress], None]


def passes(job: Job, progress: Watcher) -> RunRecord:
    """Ends as expected, with a few counts."""
    progress(Progress(job.name, job.paging, "checking", "mapped", 10, 5, 0, 0.1))
    record = job.record(job.expected, "")
    record.checks["probe"], record.events["cr3_load"] = 1000, 50
    return record


def finds_a_mismatch(job: Job, progress: Watcher) -> RunRecord:
    record = passes(job, progress)
    record.verdict, record.mismatches, record.reason = "fail", 1, "1 mismatch"
    return record


def crashes_in_pae(job: Job, progress: Watcher) -> RunRecord:
    """The worker process itself dies, as if the kernel had killed it."""
    if job.paging == "pae":
        os.kill(os.getpid(), signal.SIGKILL)
    return passes(job, progress)


def is_buggy(job: Job, progress: Watcher) -> RunRecord:
    raise KeyError("a bug of ours")


def has_no_qemu(job: Job, progress: Watcher) -> RunRecord:
    raise MachineUnavailable("QEMU is not installed: install qemu-system-x86")


def earlier_is_slower(job: Job, progress: Watcher) -> RunRecord:
    time.sleep({"nopae": 0.6, "pae": 0.3}.get(job.paging, 0.0))
    return passes(job, progress)


def hangs_after_the_first(job: Job, progress: Watcher) -> RunRecord:
    """Runs of all but the first mode last for ever; leaves its process number behind, and cleans up at the end."""
    if job.paging == "nopae" or job.options.log_dir is None:
        return passes(job, progress)
    mark = Path(job.options.log_dir) / str(os.getpid())
    mark.write_text("running")
    try:
        while True:
            time.sleep(0.05)
    finally:
        mark.write_text("reaped")


def tells_its_cores(job: Job, progress: Watcher) -> RunRecord:
    """The reason is the list of cores that it may use; in pae its process dies."""
    record = crashes_in_pae(job, progress)
    record.reason = str(sorted(os.sched_getaffinity(0)))
    return record


def tells_its_options(job: Job, progress: Watcher) -> RunRecord:
    """The reason is the folder for traces of failing runs."""
    record = passes(job, progress)
    record.reason = str(job.options.keep_traces)
    return record


def runs_live(job: Job, progress: Watcher) -> RunRecord:
    """Has figures of live mode, and kinds of events that only live mode has."""
    record = passes(job, progress)
    record.events["cpuid"] = 2
    record.live = {"exits": {"exception_pf": 300, "cpuid": 2}, "exits_per_second": 40_000, "pool_sptis": 102}
    return record
