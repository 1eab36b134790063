"""A worker process: does jobs one after another, so that what breaks in one run stays there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from harness.jobs import Job, Runner
from harness.report.error_log import keep_traceback
from harness.report.record import RunRecord

if TYPE_CHECKING:
    from harness.options import Progress

PROGRESS_INTERVAL: Final = 0.1  # seconds between two progress messages of one run
# numpy's libraries would start a thread per core in each worker; on a small machine they only get in the way.
SINGLE_THREADED: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class Step:
    """A run got further."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class Done:
    """A run ended. unavailable: the reason why no run can work on this machine, else empty."""

    record: RunRecord
    unavailable: str = ""


Message = Step | Done


def serve(pipe: Connection, runner: Runner, cores: frozenset[int]) -> None:
    """The worker's life: take a Job, send Steps and one Done, until the pipe ends or None arrives.

    cores: those that it, and each QEMU that it starts, are held to; all when empty.
    SIGTERM unwinds the stack, so that the run's ExitStack reaps its QEMU. The worker has a session of its own:
    a Ctrl-C in the terminal reaches only the parent, which then ends the workers in order. It gets SIGTERM also
    when the parent dies without a word (prctl(2), PR_SET_PDEATHSIG).
    """
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, _unwind)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if cores:
        with contextlib.suppress(OSError):  # a core may have gone since they were counted: then the system chooses
            os.sched_setaffinity(0, cores)
    try:
        while (job := pipe.recv()) is not None:
            pipe.send(_do(job, runner, pipe))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has gone: nobody is left to tell


def _do(job: Job, runner: Runner, pipe: Connection) -> Done:
    from harness.machine.errors import MachineUnavailable  # noqa: PLC0415 - keeps the start of a worker short

    last = 0.0

    def forward(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_INTERVAL:
            last = now
            pipe.send(Step(progress))

    try:
        return Done(runner(job, forward))
    except MachineUnavailable as error:
        return Done(job.record("error", str(error)), unavailable=str(error))
    except Exception as error:
        return Done(job.record("error", keep_traceback(error, traceback.format_exc())))


def _unwind(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    signal.signal(number, signal.SIG_IGN)  # once is enough: a second must not interrupt the cleaning up
    raise SystemExit(128 + number)


class Worker:
    """A worker process as its parent sees it."""

    def __init__(self, context: Any, runner: Runner, cores: frozenset[int] = frozenset()) -> None:
        """context: a multiprocessing context of the spawn method. cores: see `serve`."""
        self.cores = cores
        self.pipe, child = context.Pipe()
        self.process: SpawnProcess = context.Process(
            target=serve, args=(child, runner, cores), name="xi-harness worker", daemon=False
        )
        # Until the worker ignores it, a Ctrl-C in the terminal would make it die with a traceback.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        child.close()
        self.job: int | None = None
        self.deadline = 0.0

    def give(self, number: int, job: Job, seconds: float) -> None:
        """Starts job `number`; it may take `seconds` in all. Raises OSError when the worker is dead."""
        self.job, self.deadline = number, time.monotonic() + seconds
        self.pipe.send(job)

    def stop(self, seconds: float) -> None:
        """Ends the process within about `seconds`: politely, then with SIGKILL to its whole session."""
        if self.job is None and self.process.is_alive():
            try:
                self.pipe.send(None)
            except OSError:
                self.process.terminate()
        else:
            self.process.terminate()
        self.process.join(seconds)
        if self.process.exitcode != 0 and self.process.pid:
            # Whatever it left running is in the session that it made, whose number is its own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join(seconds)
        self.pipe.close()
