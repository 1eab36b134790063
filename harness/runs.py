"""Whole runs: whatever a guest or its QEMU does ends in a record with a verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from harness.catalogue import Guest
from harness.kernel_run import KernelSession, kernel_spec
from harness.machine import qemu
from harness.machine.errors import DeadlineExceeded, MachineError, MachineUnavailable
from harness.options import RunOptions, Watcher
from harness.report.record import RunRecord
from harness.session import Session, machine_spec


def run_guest(
    guest: Guest, paging: str, options: RunOptions | None = None, progress: Watcher | None = None
) -> RunRecord:
    """Boots, observes, checks every checkpoint and judges.

    Raises only MachineUnavailable (no usable QEMU) and ValueError (unknown engine).
    """
    options = options or RunOptions()
    blank = RunRecord(guest.name, paging, engine=options.engine, expected=guest.expected_for(paging), seed=options.seed)
    return _run(lambda: Session(guest, paging, options, progress), blank)


def run_kernel(path: Path, options: RunOptions, progress: Watcher | None = None) -> RunRecord:
    """Runs any kernel that QEMU can load; see `harness.kernel_run`. Raises as `run_guest` does."""
    blank = RunRecord(path.name, options.paging or "any", engine=options.engine, seed=options.seed)
    return _run(lambda: KernelSession(path, options, progress), blank)


def command_line(guest: Guest | None, paging: str, options: RunOptions) -> list[str]:
    """QEMU's command line for a run, as `--dry-run` prints it. Raises MachineUnavailable without a QEMU."""
    spec = machine_spec(guest, paging, options) if guest is not None else kernel_spec(options)
    binary, _ = qemu.find_qemu()
    return qemu.command_line(spec, Path("SCRATCH"), binary)


def _run(make: Callable[[], Session], blank: RunRecord) -> RunRecord:
    """blank: the record of a run that never came to have a session."""
    began = time.monotonic()
    session: Session | None = None
    try:
        session = make()
        with session:
            try:
                while session.run_to_checkpoint() is not None:
                    session.check()
            finally:
                session.conclude()
                session.keep_logs()
        return session.record
    except MachineUnavailable:
        raise
    except MachineError as error:
        # The machine's own end, never confused with a failed check.
        record = blank if session is None else session.record
        record.verdict = "timeout" if isinstance(error, DeadlineExceeded) else "error"
        record.reason = str(error)
        record.seconds = time.monotonic() - began
        return record
