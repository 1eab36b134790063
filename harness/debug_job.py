"""One job under a debugger: the session, the place where gdb meets it, and what becomes of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from harness.debug.proxy import Proxy
from harness.debug.rendezvous import Rendezvous
from harness.debug.rsp import GdbServer
from harness.debug_run import DebugRun, StopAt
from harness.debug_scene import Stage
from harness.jobs import Job
from harness.kernel_run import KernelSession
from harness.report.record import RunRecord
from harness.runs import guarded, make_session
from harness.session import Session


def debug_job(
    job: Job,
    stop_at: StopAt,
    say: Callable[[str], None],
    invite: Callable[[list[str]], None],
    wait: float,
    checked: bool = True,
) -> tuple[RunRecord, bool]:
    """Runs `job` with gdb beside it; see `DebugRun`. Whether the user ended it comes with its record.

    invite: given the command that starts gdb on the session. Raises MachineUnavailable, ValueError, and OSError where
    the place to meet cannot be made; a machine that is lost ends in the record.
    """
    killed = False

    def run(sessions: list[Session]) -> RunRecord:
        nonlocal killed
        session = _session(job)
        sessions.append(session)
        with debug_session(session, stop_at, say, invite, wait, checked) as debugging:
            try:
                return debugging.run()
            finally:
                killed = debugging.killed
                session.conclude()
                session.keep_logs()
                if killed:
                    session.settle(failed=False)  # it has no verdict, and nobody misses its trace

    return guarded(run, job.record("error", "")), killed


@contextmanager
def debug_session(
    session: Session,
    stop_at: StopAt,
    say: Callable[[str], None],
    invite: Callable[[list[str]], None],
    wait: float,
    checked: bool = True,
) -> Iterator[DebugRun]:
    """Starts `session`, and all that it takes for a gdb to come; everything is gone at the end. See `debug_job`."""
    with ExitStack() as stack:
        place = stack.enter_context(Rendezvous())
        stack.enter_context(session)
        stage = Stage(session)
        place.write_start(stage.symbol_file)
        server = GdbServer(place.socket)
        stack.callback(server.close)
        proxy = Proxy(server, stage.debuggee, session.interception, stage.command, stage.hmp)
        yield DebugRun(session, server, proxy, stop_at, say, lambda: invite(place.command), wait, checked)


def _session(job: Job) -> Session:
    if job.guest is not None:
        return make_session(job.guest, job.paging, job.options)
    assert job.options.kernel is not None  # a job has one or the other
    return KernelSession(job.options.kernel, job.options, None)
