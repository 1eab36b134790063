"""Whole runs: whatever a guest or its QEMU does ends in a record with a verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from harness.catalogue import Guest
from harness.kernel_run import KernelSession, kernel_spec
from harness.machine import qemu
from harness.machine.errors import DeadlineExceeded, MachineError, MachineUnavailable
from harness.options import Mode, RunOptions, Watcher
from harness.report.record import RunRecord
from harness.session import Session, machine_spec


def run_guest(
    guest: Guest, paging: str, options: RunOptions | None = None, progress: Watcher | None = None
) -> RunRecord:
    """Boots, follows, checks every checkpoint and judges, in the mode that `options` name.

    Raises only MachineUnavailable (no usable QEMU) and ValueError (unknown engine).
    """
    options = options or RunOptions()
    blank = RunRecord(
        guest.name,
        paging,
        mode=options.mode,
        engine=options.engine,
        expected=guest.expected_for(paging),
        seed=options.seed,
        repro=[options.command(guest.name, paging)],
    )
    if options.mode == Mode.BOTH:
        return guarded(lambda sessions: _run_both(guest, paging, options, progress, sessions), blank)
    return guarded(lambda sessions: _run_one(make_session(guest, paging, options, progress), sessions), blank)


def make_session(guest: Guest, paging: str, options: RunOptions, progress: Watcher | None = None) -> Session:
    """A session of the class that `options.mode` asks for; use it with `with`. Launches nothing yet.

    Raises BadImage for a guest that is none, ValueError for an unknown engine and for mode both, which is no one
    session.
    """
    if options.mode == Mode.BOTH:
        raise ValueError("mode both is two runs that are compared: there is no one session of it")
    if options.mode == Mode.LIVE:
        from harness.live.session import LiveSession  # noqa: PLC0415 - the monitor's side, only where it is used

        session: Session = LiveSession(guest, paging, options, progress)
        session.record.mode = options.mode
        return session
    return Session(guest, paging, options, progress)


def run_kernel(path: Path, options: RunOptions, progress: Watcher | None = None) -> RunRecord:
    """Runs any kernel that QEMU can load; see `harness.kernel_run`. Raises as `run_guest` does."""
    blank = RunRecord(path.name, options.paging or "any", engine=options.engine, seed=options.seed)
    return guarded(lambda sessions: _run_one(KernelSession(path, options, progress), sessions), blank)


def command_lines(guest: Guest | None, paging: str, options: RunOptions) -> list[list[str]]:
    """QEMU's command lines for a run, as `--dry-run` prints them: one, and in mode both that of each leg.

    Raises MachineUnavailable without a QEMU.
    """
    if guest is None:
        specs = [kernel_spec(options)]
    else:
        specs = [machine_spec(guest, paging, options)] if options.mode != Mode.LIVE else []
        if options.monitored:
            from harness.live.session import live_layout  # noqa: PLC0415 - see `make_session`

            specs.append(live_layout(guest, paging, options)[0])
    binary, _ = qemu.find_qemu()
    return [qemu.command_line(spec, Path("SCRATCH"), binary) for spec in specs]


def _run_both(
    guest: Guest, paging: str, options: RunOptions, progress: Watcher | None, sessions: list[Session]
) -> RunRecord:
    from harness.twin.compare import run_twin  # noqa: PLC0415 - see `make_session`
    from harness.twin.live_leg import LiveLeg  # noqa: PLC0415

    def live_leg(guest: Guest, paging: str, options: RunOptions) -> LiveLeg:
        leg = LiveLeg(guest, paging, options)
        sessions.append(leg.session)
        return leg

    return run_twin(guest, paging, options, progress, live_leg)


def _run_one(session: Session, sessions: list[Session]) -> RunRecord:
    sessions.append(session)
    with session:
        try:
            while session.run_to_checkpoint() is not None:
                session.check()
        finally:
            session.conclude()
            session.keep_logs()
    return session.record


def guarded(run: Callable[[list[Session]], RunRecord], blank: RunRecord) -> RunRecord:
    """Whatever becomes of `run` ends in a record, and its trace is kept or not as that asks for.

    run: puts the session whose trace is to be kept into the list. blank: the record of a run that never came to have
    a session, or is none of one session."""
    began = time.monotonic()
    sessions: list[Session] = []
    try:
        record = run(sessions)
    except MachineUnavailable:
        raise
    except MachineError as error:
        # The machine's own end, never confused with a failed check.
        own = sessions and blank.mode != Mode.BOTH
        record = _lost(sessions[0].record if own else blank, error, began)
    except Exception as error:
        for session in sessions:
            session.settle(failed=True)
            if session.record.trace:
                error.add_note(f"the run's trace is kept in {session.record.trace}")
        raise
    for session in sessions:
        session.settle(record)
    return record


def _lost(record: RunRecord, error: MachineError, began: float) -> RunRecord:
    record.verdict = "timeout" if isinstance(error, DeadlineExceeded) else "error"
    record.reason = str(error)
    record.seconds = time.monotonic() - began
    return record
