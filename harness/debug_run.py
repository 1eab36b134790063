"""One debugging session: a run as any other, in which gdb may look at the guest whenever it stands."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from harness.check.target import Stop
from harness.debug.proxy import INTERRUPTED, STOPPED, TRAPPED, Proxy, Resume, StopReason
from harness.debug.rsp import GdbServer
from harness.report.failure import failure_block
from harness.report.record import RunRecord
from harness.session import Session

MISMATCH: Final = "mismatch"
LOOK_SECONDS: Final = 0.2  # between two looks whether a gdb has come and whether QEMU still lives

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StopAt:
    """Where the guest is to stand for the first time. entry: before its first instruction. event: once this event
    (numbered from 0, as reports number them) was handled. checkpoint: when it has come to the one of this name, before
    that is checked. mismatch: when a check has found something."""

    event: int | None = None
    checkpoint: str | None = None
    mismatch: bool = False

    @classmethod
    def parse(cls, text: str | None) -> StopAt:
        """From the command line: a number is an event, `mismatch` that, anything else a checkpoint's name. Raises
        ValueError for an empty one."""
        if text is None:
            return cls()
        if not text:
            raise ValueError("--stop-at: an event's number, a checkpoint's name, or mismatch")
        if text == MISMATCH:
            return cls(mismatch=True)
        return cls(event=int(text)) if text.isdecimal() else cls(checkpoint=text)

    @property
    def entry(self) -> bool:
        return self == StopAt()

    def __str__(self) -> str:
        if self.event is not None:
            return f"event #{self.event}"
        return f"checkpoint {self.checkpoint!r}" if self.checkpoint else "the first mismatch"


class Ended(Exception):
    """The user ended the run from gdb."""


class DebugRun:
    """Drives `session`, which has been started, to its end, and lets gdb have the guest in between.

    say: for the user's terminal, one line each. wait: seconds in which a gdb must have come where nobody was before.
    invite: called when the guest stands for nobody yet (it prints the command to paste, or starts gdb). checked:
    whether checkpoints are checked.
    """

    def __init__(
        self,
        session: Session,
        server: GdbServer,
        proxy: Proxy,
        stop_at: StopAt,
        say: Say,
        invite: Callable[[], None],
        wait: float,
        checked: bool = True,
    ) -> None:
        self.session, self.server, self.proxy = session, server, proxy
        self._stop_at = stop_at
        self._reached = False
        self._say, self._invite = say, invite
        self._wait = wait
        self._checked = checked
        self._known = 0  # problems that gdb has been told of
        self.killed = False
        session.interception.attention = self._wanted
        server.on_wanted = session.interception.poke

    def run(self) -> RunRecord:
        """To the end: the guest's, or the user's. Raises what a session raises; gdb is told before."""
        try:
            if self._stop_at.entry:
                self._first("at its entry")
            self._go()
        except Ended:
            self.killed = True
            self._say("ended from gdb")
        except BaseException as error:
            self.proxy.lost(f"the run is over: {error or type(error).__name__}")
            raise
        record = self.session.conclude()
        if self.session.ended:
            status = 0 if record.as_expected else 1
            self.proxy.exited(status, f"the guest has ended: {record.verdict} {record.reason}".rstrip() + "\n")
        if not (self._reached or self._stop_at.entry):
            self._say(f"{self._stop_at} was never reached")
        return record

    # ---- the guest runs

    def _wanted(self) -> bool:
        return self.server.wanted or self._event_reached()

    def _event_reached(self) -> bool:
        event = self._stop_at.event
        return event is not None and not self._reached and self.session.interception.log.total > event

    def _go(self) -> None:
        session = self.session
        while not session.ended:
            stop = session.run_to_checkpoint()
            if stop is not None:
                self._checkpoint(stop)
            elif not session.ended:
                self._paused()

    def _paused(self) -> None:
        hit = self.session.interception.hit
        if hit is not None:
            self._stand(StopReason(TRAPPED, hit))
        elif self._event_reached():
            last = self.session.interception.log.recent(1)
            self._first(f"after event {last[0] if last else ''}")
        else:  # a gdb has come, pressed Ctrl-C, or gone
            self._stand(StopReason(INTERRUPTED))

    def _checkpoint(self, stop: Stop) -> None:
        wanted = self._stop_at.checkpoint
        if not self._reached and wanted is not None and wanted == stop.name:
            self._first(f"at checkpoint {stop.name!r}, which is not checked yet")
        self._check()

    def _check(self) -> None:
        """The check of the checkpoint where the guest stands, without gdb's points; what it finds is shown."""
        session = self.session
        if not self._checked or session.ended or session.stop is None:
            return
        self.server.attending = True  # nobody is to poke an interception that runs probes
        try:
            with session.interception.lifted():
                session.check()
        finally:
            self.server.attending = False
        record = session.record
        problems = record.mismatches + record.audit_failures + record.interception_misses
        if problems > self._known and (self.server.connected or self._stop_at.mismatch):
            self._known = problems
            text = failure_block(session.conclude())
            if self._stop_at.mismatch and not self._reached:
                self._first(f"a check has found something\n{text}")
            else:
                self._stand(StopReason(STOPPED, text=f"{text}\n"))

    # ---- the guest stands

    def _first(self, where: str) -> None:
        """The place that `stop_at` names: if nobody is there yet, somebody is waited for."""
        self._reached = True
        self._say(f"{self.session.guest.name} {self.session.paging} stands {where}")
        if not self.server.connected:
            self._invite()
            if not self._came():
                return
        self._stand(StopReason(STOPPED, text=f"xi-harness: the guest stands {where}\n"))

    def _came(self) -> bool:
        """Whether a gdb has come within the time that it has."""
        began = time.monotonic()
        while not self.server.connected and time.monotonic() - began < self._wait and self._alive():
            time.sleep(LOOK_SECONDS)
        self.session.deadline.prolong(time.monotonic() - began)
        if not self.server.connected and self._alive():
            self._say(f"no gdb came within {self._wait:g} s: the guest goes on")
        return self.server.connected

    def _alive(self) -> bool:
        return not self.session.machine.ended()

    def _stand(self, reason: StopReason) -> None:
        """gdb has the guest, until it lets it go on."""
        session = self.session
        while True:
            began = time.monotonic()
            resume = self.proxy.serve(reason, self._alive)
            session.deadline.prolong(time.monotonic() - began)
            if resume is Resume.KILL:
                raise Ended
            if resume is Resume.DETACH:
                self._say("gdb has detached: the guest goes on")
            elif resume is Resume.GONE and self._alive():
                self._say("gdb is gone: the guest goes on")
            if resume is not Resume.STEP:
                return
            stop = session.step()
            if session.ended:
                return
            reason = StopReason(TRAPPED, session.interception.hit)
            if stop is not None:
                self._check()
