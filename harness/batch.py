"""A batch of runs, done by worker processes, its results in the order of the jobs."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Final, Protocol

from harness.jobs import Job, Runner, run_job
from harness.report.record import RunRecord
from harness.worker import SINGLE_THREADED, Done, Worker

if TYPE_CHECKING:
    from harness.options import Progress

# A run keeps its own time limit; these say when the parent stops believing that it does.
GRACE_FACTOR: Final = 3.0
GRACE_SECONDS: Final = 60.0
STOP_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.25


class Observer(Protocol):
    """What wants to know how a batch goes on. `number` is the job's place in the batch."""

    def started(self, number: int, job: Job) -> None: ...
    def progressed(self, number: int, progress: Progress) -> None: ...
    def finished(self, number: int, record: RunRecord) -> None: ...
    def tick(self) -> None:
        """Called several times a second, whatever happens."""


class Batch:
    """Runs `jobs` on `count` workers at a time. `results[i]` is job i's record, None while it has none.

    cores: for each of the workers those that it and its machine are held to; empty where they may use all.
    A worker that dies costs its own run only (verdict error) and is replaced. When one run finds that the
    machine is unavailable (no QEMU), the jobs not yet started get the same verdict without being tried.
    """

    def __init__(
        self, jobs: Sequence[Job], count: int, runner: Runner = run_job, cores: Sequence[frozenset[int]] = ()
    ) -> None:
        if count < 1:
            raise ValueError("a batch needs at least one worker")
        if cores and len(cores) != count:
            raise ValueError(f"{count} workers and {len(cores)} shares of the cores")
        self.jobs = list(jobs)
        self.results: list[RunRecord | None] = [None] * len(self.jobs)
        self._count = min(count, len(self.jobs))
        self._runner = runner
        self._waiting = deque(range(len(self.jobs)))
        self._workers: list[Worker] = []
        self._shares = deque(cores or [frozenset()] * count)  # those that no worker has
        self._context = multiprocessing.get_context("spawn")

    @property
    def records(self) -> list[RunRecord]:
        """The records that there are, in the order of the jobs."""
        return [record for record in self.results if record is not None]

    def run(self, observer: Observer) -> None:
        """Does all jobs. On KeyboardInterrupt (or SystemExit) ends the workers and their machines, then raises
        it again; the results so far stay."""
        for name in SINGLE_THREADED:
            os.environ.setdefault(name, "1")
        try:
            while self._waiting or any(worker.job is not None for worker in self._workers):
                self._hand_out(observer)
                self._collect(observer)
                observer.tick()
        finally:
            self._stop_all()

    def _hand_out(self, observer: Observer) -> None:
        idle = [worker for worker in self._workers if worker.job is None]
        while self._waiting and (idle or len(self._workers) < self._count):
            if idle:
                worker = idle.pop()
            else:
                worker = Worker(self._context, self._runner, self._shares.popleft())
                self._workers.append(worker)
            number = self._waiting.popleft()
            job = self.jobs[number]
            observer.started(number, job)
            try:
                worker.give(number, job, job.time_limit * GRACE_FACTOR + GRACE_SECONDS)
            except OSError:
                self._lost(worker, observer)

    def _collect(self, observer: Observer) -> None:
        """Takes what the workers have to say, waiting for it at most POLL_SECONDS."""
        busy = {worker.pipe: worker for worker in self._workers if worker.job is not None}
        for pipe in wait(list(busy), POLL_SECONDS):
            worker = busy[pipe]
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                self._lost(worker, observer)
                continue
            if isinstance(message, Done):
                self._finish(worker, message.record, observer)
                if message.unavailable:
                    self._give_up(message.unavailable, observer)
            elif worker.job is not None:
                observer.progressed(worker.job, message.progress)
        for worker in busy.values():
            if worker.job is not None and time.monotonic() > worker.deadline:
                self._lost(worker, observer, "the run did not end long after its time limit and was killed")

    def _finish(self, worker: Worker, record: RunRecord, observer: Observer) -> None:
        number, worker.job = worker.job, None
        if number is not None:
            self.results[number] = record
            observer.finished(number, record)

    def _lost(self, worker: Worker, observer: Observer, reason: str = "") -> None:
        number = worker.job
        worker.stop(STOP_SECONDS)
        self._workers.remove(worker)
        self._shares.append(worker.cores)
        if number is not None:
            status = worker.process.exitcode
            ended = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
            why = reason or f"the worker process died ({ended})"
            self._finish(worker, self.jobs[number].record("error", why), observer)

    def _give_up(self, reason: str, observer: Observer) -> None:
        while self._waiting:
            number = self._waiting.popleft()
            record = self.jobs[number].record("error", reason)
            self.results[number] = record
            observer.finished(number, record)

    def _stop_all(self) -> None:
        """All workers are told first and waited for afterwards, so that this takes as long as the slowest."""
        for worker in self._workers:
            if worker.job is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.stop(STOP_SECONDS)
        self._workers.clear()
