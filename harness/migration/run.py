"""Live migration of a guest in live mode: pre-copy by the engine's dirty log, to a second QEMU.

The guest runs, and is checked, on the first machine as ever. From some exit on its memory is copied to the second
while it goes on (`harness.migration.precopy`); then it stands for a moment: the last frames and the registers
follow, all frames are compared, the first machine's memory is poisoned and its QEMU ended, and the guest goes on, and
is checked, on the second, whose engine starts with empty tables on another p2m.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from harness.catalogue import Guest
from harness.check.target import Stop
from harness.engine import EngineConfig, ShadowEngine
from harness.intercept.interception import Outcome
from harness.live.session import LiveSession
from harness.machine.errors import DeadlineExceeded, MachineError, MachineUnavailable
from harness.machine.ram import POISON
from harness.migration.destination import Destination
from harness.migration.precopy import Limits, PreCopy
from harness.migration.report import SHOWN, MigrationReport
from harness.migration.state import VcpuState
from harness.options import Mode, RunOptions, Watcher
from harness.report.record import RunRecord

PULL_AFTER: Final = 0.005  # seconds that the guest may run on when a round has been copied
LEAST_EXITS: Final = 2  # of a round
END_SECONDS: Final = 5.0  # for the source's QEMU to end
_SEED: Final = 0x316  # this use of the run's seed


@dataclass(frozen=True, slots=True)
class Start:
    """When a migration begins: `exits` exits after the guest has left the checkpoint `after` (its name, or its number
    counted from 1; None: after its entry)."""

    after: str | int | None
    exits: int

    @classmethod
    def of(cls, after: str | int | None, exits: int | None, seed: int) -> Start:
        """What was asked for; by the seed where nothing was."""
        if after is None and exits is None:
            rng = np.random.default_rng([_SEED, seed])
            return cls(int(rng.integers(1, 3)), int(rng.integers(0, 16)))
        return cls(after, exits or 0)

    @property
    def words(self) -> list[str]:
        """As the command takes it."""
        return [*([] if self.after is None else ["--after", str(self.after)]), "--exits", str(self.exits)]

    @property
    def text(self) -> str:
        place = "its entry" if self.after is None else f"checkpoint {self.after}"
        return f"{self.exits} exits after {place}" if self.exits else f"after {place}"


@dataclass(frozen=True, slots=True)
class MigrationPlan:
    """after, exits: see `Start`; None, None: by the seed."""

    after: str | int | None = None
    exits: int | None = None
    limits: Limits = field(default_factory=Limits)


def run_migration(
    guest: Guest,
    paging: str,
    options: RunOptions,
    plan: MigrationPlan | None = None,
    progress: Watcher | None = None,
    make_engine: Callable[[EngineConfig, Any], ShadowEngine] | None = None,
) -> tuple[RunRecord, MigrationReport]:
    """Runs a guest, migrates it, and judges: as `harness.runs.run_guest`, and what the migration was like.

    A guest that ended before it could be migrated, and a copy that is not like the original, fail. Raises only
    MachineUnavailable (no usable QEMU) and ValueError (unknown engine, options that do not go with a migration).
    """
    if options.mode != Mode.LIVE or options.stress:
        raise ValueError("what is migrated is a guest in live mode whose frames stay where they are")
    source = LiveSession(guest, paging, options, progress, make_engine)
    migration = Migration(source, plan or MigrationPlan())
    record, report = source.record, migration.report
    try:
        migration.run()
    except MachineUnavailable:
        raise
    except MachineError as error:
        record.verdict = "timeout" if isinstance(error, DeadlineExceeded) else "error"
        record.reason = str(error)
    report.verdict, report.reason = record.verdict, record.reason
    return record, report


class Migration:
    """One migration of the guest of `source`, a session that has not been entered yet.

    report: filled in as it goes. The run's record stays that of `source`.
    """

    def __init__(self, source: LiveSession, plan: MigrationPlan) -> None:
        seed = source.options.seed
        self.source = source
        self.start = Start.of(plan.after, plan.exits, seed)
        self.limits = plan.limits
        self.report = MigrationReport(source.guest.name, source.paging, seed, began=self.start.text)
        source.record.repro = [self._command()]
        self._exit_at = 0.0  # when the exit came after which the guest was stopped
        self._copy: PreCopy

    def _command(self) -> str:
        """What migrates this guest again, to paste."""
        report, limits, engine = self.report, self.limits, self.source.options.engine
        words = ["xi-harness", "migrate", report.guest, "--paging", report.paging, "--seed", str(report.seed)]
        words += [*self.start.words, "--rounds-limit", str(limits.rounds), "--threshold", str(limits.threshold)]
        words += ["--rate", f"{limits.rate:g}", *([] if engine == "xi" else ["--engine", engine])]
        return shlex.join(words)

    def run(self) -> None:
        """The whole run, to the guest's end. Raises whatever sessions raise."""
        source = self.source
        with source:
            try:
                if not self._reach_start():
                    self._fail(f"the guest ended before the migration could begin ({self.start.text})")
                    return
                with Destination(source) as destination:
                    try:
                        self._migrate(destination)
                    finally:
                        if self.report.done:
                            destination.conclude()
                            destination.keep_logs()
            finally:
                if not self.report.done:
                    source.conclude()
                    source.keep_logs()
                self._judge()

    def _migrate(self, destination: Destination) -> None:
        stop = self._copy_while_it_runs(destination)
        if self.source.ended:
            self._fail("the guest ended while it was copied")
            return
        self._switch_over(destination, stop)
        if self.report.unequal:
            return
        if stop is None:
            stop = destination.run_to_checkpoint()
        while stop is not None:
            destination.check()
            stop = destination.run_to_checkpoint()

    # ---- on the source

    def _reach_start(self) -> bool:
        """Runs and checks the guest as far as the migration's start. Whether it came there."""
        source, start = self.source, self.start
        while start.after is not None:
            stop = source.run_to_checkpoint()
            if stop is None:
                return False
            source.check()
            if start.after in (stop.name, stop.index):
                break
        left = start.exits

        def count() -> Outcome | None:
            nonlocal left
            left -= 1
            return Outcome.PAUSED if left <= 0 else None

        if left:
            source.live.between.append(count)
            while source.run_to_checkpoint() is not None:
                source.check()
            source.live.between.remove(count)
        return not source.ended

    def _copy_while_it_runs(self, destination: Destination) -> Stop | None:
        """Copies until the guest is to be stopped. The checkpoint at which it stands then, if it is at one."""
        source, report = self.source, self.report
        copy = self._copy = PreCopy(source.engine, source.domain.view, destination.domain.view, self.limits)
        report.rounds = copy.rounds
        live = source.live
        copy.begin()
        live.between.append(self._at_exit)
        live.meanwhile.append(self._beside_the_guest)
        try:
            while (stop := source.run_to_checkpoint()) is not None:
                self._exit_at = time.perf_counter()
                copy.rounds[-1].exits += 1
                if stop.final:
                    report.ended = "this is the guest's last checkpoint"
                    return stop
                report.passed += 1
            return None
        finally:
            live.between.remove(self._at_exit)
            live.meanwhile.remove(self._beside_the_guest)

    def _at_exit(self) -> Outcome | None:
        copy = self._copy
        copy.rounds[-1].exits += 1
        # The first exit of a round may be the store that the last one's end had made fault: were its page protected
        # again at once, it would never be done.
        if not copy.copied or copy.rounds[-1].exits < LEAST_EXITS:
            return None
        self._exit_at = time.perf_counter()
        self.report.ended = copy.next_round()
        return Outcome.PAUSED if self.report.ended else None

    def _beside_the_guest(self) -> None:
        """Copies until the guest comes out; once all is copied, sees to it that it does come out."""
        copy, live, ended = self._copy, self.source.live, self.source.machine.ended
        vcpu, idle, deadline = live.vcpu, live.engine.idle, self.source.deadline
        while not copy.copied:
            copy.copy_some()
            idle()
            if vcpu.came or ended() or deadline.passed:
                return
        limit = time.perf_counter() + PULL_AFTER
        while not (vcpu.came or ended()):
            idle()
            if time.perf_counter() > limit:
                live.kick()
                self.report.pulled += 1
                return

    # ---- from one to the other

    def _switch_over(self, destination: Destination, stop: Stop | None) -> None:
        """The guest stands, on the source. After this it stands on the destination, unless the copy is not like it."""
        report, source, copy = self.report, self.source, self._copy
        copy.finish()
        report.last_frames = copy.last_frames
        state = VcpuState.take(source.vcpu)
        stood = time.perf_counter() - self._exit_at

        began = time.perf_counter()
        report.compared, unequal = copy.unequal()
        report.unequal, report.first_unequal = len(unequal), unequal[:SHOWN].tolist()
        if report.unequal:
            return
        self._end_source()
        source.close()
        destination.wake(source)
        again = time.perf_counter()
        report.checking_us = (again - began) * 1e6

        destination.adopt(source, state)
        destination.stop = stop
        report.done = True

        def entered() -> None:
            if not report.stopped_us:
                report.stopped_us = (stood + time.perf_counter() - again) * 1e6

        destination.live.meanwhile.append(entered)

    def _end_source(self) -> None:
        """Poisons the source's memory, so that nobody lives on it unnoticed, and ends its QEMU."""
        machine, layout = self.source.machine, self.source.layout
        machine.ram.bytes[layout.first_mfn << 12 :] = POISON
        machine.monitor.command("quit")
        if machine.wait_exit(END_SECONDS) is None:
            machine.raise_lost("the source's QEMU was told to quit and goes on running")
        machine.console.finish()

    # ---- the verdict

    def _fail(self, reason: str) -> None:
        self.report.ended = self.report.ended or reason
        self.report.reason = reason

    def _judge(self) -> None:
        """The run's verdict, when the migration did not succeed."""
        report, record = self.report, self.source.record
        if report.unequal:
            report.reason = f"the copy is not like the original: {report.outcome}"
        if report.reason and not report.done:
            ended = f" (the guest: {record.verdict})" if self.source.ended else ""
            record.verdict, record.reason = "fail", report.reason + ended
