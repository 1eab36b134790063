"""A guest, a machine and an engine put together: the one place that knows all three."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

import numpy.typing as npt

from harness import __version__
from harness.catalogue import FIRMWARE, Guest, image_path
from harness.check.crosscheck import CrossCheck
from harness.check.guest_walks import ram_reader
from harness.check.memory import CheckedMemory, OverlayMemory
from harness.check.target import CheckReport, CheckTarget, Stop
from harness.engine import AuditFailure, EngineConfig, MachineMemory, ShadowEngine
from harness.engines import engine_class
from harness.guest_target import GuestTarget
from harness.intercept.follow import control_state
from harness.intercept.interception import Interception, Outcome, Ran
from harness.intercept.observe import Observer
from harness.machine.deadline import Deadline
from harness.machine.errors import BadImage, MachineError
from harness.machine.image import Image, load_image
from harness.machine.mailbox import MAGIC, Checkpoint
from harness.machine.qemu import Machine, MachineSpec
from harness.machine.ram import RamMap
from harness.options import Progress, RunOptions, Watcher
from harness.placement import identity_p2m, place
from harness.report.record import RunRecord
from harness.trace.format import Header
from harness.trace.keeping import settle_trace
from harness.trace.recorder import Recorder
from harness.verdict import judge_checks, judge_end
from harness.x86.access import Access
from harness.x86.control import ControlState
from harness.x86.walk import Path as WalkPath
from harness.x86.walk import tracer
from harness.xi.pool import FRAMES_PER_SPTI, pool_frames_for

KEPT_FAILURES: Final = 8  # mismatches kept in full in a record
POOL_BASE: Final = 0xC0000  # 3 GiB: beyond every RAM, and a root in PAE format must lie below 4 GiB
POOL_LEAST: Final = 96 * 4  # frames: eager filling shadows whole trees, so a tiny guest needs more than 5 %
AUDIT_AFTER: Final = 4  # every so many checkpoints the engine is audited after the check as well as before it
CHECK_EVENTS: Final = 500  # a guest without checkpoints is checked every so many events
# A guest that came to one of these does not go on.
ENDS: Final = frozenset((Outcome.EXITED, Outcome.SHUTDOWN, Outcome.HALTED, Outcome.STUCK))
CHECK_SECONDS: Final = 2.0  # or this long after the last time, whichever comes first


def machine_spec(guest: Guest, paging: str, options: RunOptions) -> MachineSpec:
    """The machine for a guest of the catalogue."""
    return MachineSpec(
        cpu=options.cpu or guest.cpu_for(paging),
        ram_mib=options.memory_mib or guest.memory_for(paging),
        bios=FIRMWARE,
    )


def launch(spec: MachineSpec, fill: Callable[[RamMap], None]) -> Machine:
    """A machine that boots from the harness's firmware. Raises BadImage if that is not built, and what Machine does."""
    if not FIRMWARE.is_file():
        raise BadImage(f"{FIRMWARE}: it is not built: run `make guests`")
    return Machine(spec, fill)


class Session:
    """A booted, observed and checked guest. A context manager; leaving it reaps QEMU.

    engine and observer are there for who wants to look closer (or, in mutation tests, to break them). recorder: of the
    trace, if `options` want one. trouble: number of the last event before the first mismatch, broken invariant or miss
    was found.
    """

    msr_writes = True  # see `harness.intercept.breakpoints.CodeScanner`
    forgives_misses = False  # whether interception misses leave the verdict as it is
    checked_elsewhere = False  # whether somebody else compares what the guest did

    def __init__(
        self,
        guest: Guest,
        paging: str,
        options: RunOptions | None = None,
        watcher: Watcher | None = None,
        make_engine: Callable[[EngineConfig, Any], ShadowEngine] | None = None,
        image: Image | None = None,
    ) -> None:
        """Raises BadImage or ValueError for a wrong guest; MachineUnavailable without a QEMU. Launches nothing."""
        self.options = options or RunOptions()
        self.guest, self.paging = guest, paging
        self.image = image or load_image(image_path(guest, paging))
        self._make_engine = make_engine or engine_class(self.options.engine)
        self._watcher = watcher
        self._stack = ExitStack()
        self._began = time.monotonic()
        limit = self.options.time_limit or guest.time_limit_for(paging)
        self._deadline = Deadline(limit)
        self._tracer: tuple[ControlState, Callable[[int], WalkPath]] | None = None
        self.stop: Stop | None = None
        self.interception: Interception
        self.memory: CheckedMemory
        self.target: CheckTarget
        self.mailbox: npt.NDArray[Any] | None = None
        self.ended = False
        self._booted = False
        self.recorder: Recorder | None = None
        self.trouble: int | None = None
        self.record = RunRecord(
            guest.name,
            paging,
            engine=self.options.engine,
            expected=guest.expected_for(paging),
            seed=self.options.seed,
            repro=[self.options.command(guest.name, paging)],
        )

    # ---- life

    @property
    def deadline(self) -> Deadline:
        """When the run's time is over."""
        return self._deadline

    def start(self) -> None:
        """Launches QEMU, lets the firmware run, and begins to observe at the guest's entry."""
        options = self.options
        self._power_on()
        ram = self.machine.ram
        frames = ram.size >> 12
        memory = self.memory = OverlayMemory(ram.bytes)
        self._read = ram_reader(ram.bytes)
        config = EngineConfig(
            frames=frames,
            pool_frames=(options.pool_spti or 0) * FRAMES_PER_SPTI or max(POOL_LEAST, pool_frames_for(frames)),
            pool_base_mfn=POOL_BASE,
            p2m=identity_p2m(frames),
            options=dict(options.policies),
        )
        self.engine = self._new_engine(config, memory)
        # What the guest writes while it serves probes lies in its image's writable part: mailbox and stack.
        self._ambient = tuple((page, Access.STORE) for page in self.image.writable_pages)
        self.observer = Observer(self.machine, self.engine, self.translate, self.msr_writes)
        self._intercept(self.observer)
        box = self._mailbox_address()
        target = self.target = GuestTarget(self.machine, self.observer, box)
        self.mailbox = target.mailbox
        self.check_engine = self._make_check()
        self._reach_entry()
        self.observer.attach()
        if box is not None:
            self.observer.stop_at(self.image.symbols["xi_stop"])
        self.record.timings["boot"] = time.monotonic() - self._began
        self._booted = True

    def _power_on(self) -> None:
        self.machine = self._stack.enter_context(self._launch())
        self.record.timings["launch"] = time.monotonic() - self._began

    def _launch(self) -> Machine:
        return launch(machine_spec(self.guest, self.paging, self.options), place(self.image, self.options.seed))

    def _new_engine(self, config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
        """The engine, recorded where that is wanted."""
        options = self.options
        if options.trace_folder is None:
            return self._make_engine(config, memory)
        header = Header(
            guest=self.guest.name,
            paging=self.paging,
            mode=self.record.mode,
            seed=options.seed,
            engine=options.engine,
            command=options.command(self.guest.name, self.paging),
            created_by=f"xi-harness {__version__}",
            config=config,
            memory_frames=memory.frames,
        )
        self.recorder = Recorder(options.trace_folder, header, self._make_engine, memory)
        return self.recorder.engine

    def _intercept(self, interception: Interception) -> None:
        """The interception to be used; it has seen nothing yet."""
        self.interception = interception
        if self.recorder is not None:
            interception.log = self.recorder.log

    def _mailbox_address(self) -> int | None:
        """Guest-physical address of the guest's mailbox; None for a guest without checkpoints."""
        symbols = self.image.symbols
        return self.image.physical(symbols["xi_mailbox"]) if {"xi_mailbox", "xi_stop"} <= symbols.keys() else None

    def _make_check(self) -> CrossCheck:
        """The check of the engine, once memory and target are there too."""
        return CrossCheck(
            self.engine,
            self.memory,
            self.target,
            seed=self.options.seed,
            budget=self.options.probe_budget,
            image=[gfn for segment in self.image.segments for gfn in segment.frames],
        )

    def _reach_entry(self) -> None:
        self.observer.run_to(self.image.entry, self._deadline)

    def translate(self, state: ControlState, va: int) -> int | None:
        """The physical address of `va` by the guest's own tables, None where they do not map it."""
        if self._tracer is None or self._tracer[0] != state:
            self._tracer = (state, tracer(state, self._read))
        path = self._tracer[1](va)
        return path.gpa if path.gpa >= 0 else None

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace_: TracebackType | None
    ) -> None:
        self.close()

    # ---- running

    def run_to_checkpoint(self, name: str | None = None) -> Stop | None:
        """Lets the guest run to its next checkpoint (called `name`, if given); None when it ended before that, or
        (`ended` is False then) the interception paused it.

        At every checkpoint the interception checks itself and the engine is audited. A guest without checkpoints of
        its own is stopped now and then, wherever it is.
        """
        own = self.mailbox is not None
        while not self.ended:
            limit = self._deadline if own else self._deadline.sooner(CHECK_SECONDS)
            self.stop = None
            ran = self.interception.run(limit, None if own else CHECK_EVENTS)
            stop = self._take(ran)
            if ran.outcome is Outcome.PAUSED:
                return None
            if stop is not None and name in (None, stop.name):
                return stop
        return None

    def step(self) -> Stop | None:
        """Lets the guest execute one instruction; the checkpoint where it stands if that was the one at it.

        It may end with it (`ended`), or stand before it is done because of a debugger's point.
        """
        self.stop = None
        return self._take(self.interception.step(self._deadline))

    def _take(self, ran: Ran) -> Stop | None:
        """What has become of the guest: the stop where it stands, or its end; neither when it only paused."""
        own = self.mailbox is not None
        if ran.outcome in ENDS or self._deadline.passed:
            self._end(ran.outcome, ran.registers)
        elif ran.outcome not in (Outcome.PAUSED, Outcome.STEPPED):
            self.stop = self._arrive(ran.registers) if own else self._interrupted(ran.registers)
            if self.recorder is not None:
                self.recorder.checkpoint(self.stop)
            return self.stop
        return None

    def _interrupted(self, registers: dict[str, int]) -> Stop:
        """A stop in the middle of things. The guest may have changes pending that it has not flushed: "stale"."""
        self.record.checkpoints += 1
        name = f"event {self.interception.log.total}"
        self._look(name, registers)
        return Stop(self.record.checkpoints, name, control_state(registers), True, False)

    def _look(self, where: str, registers: dict[str, int]) -> None:
        """The interception's self-check, and the engine's audit."""
        record = self.record
        began = time.monotonic()
        record.interception_misses += self.interception.self_check(registers)
        record.misses = self.interception.misses[:KEPT_FAILURES]
        self._audit(where)
        record.timings["audit"] = record.timings.get("audit", 0.0) + time.monotonic() - began
        self._note_trouble()
        self._tell("checking", where)

    def _note_trouble(self) -> None:
        if self.trouble is None and self.record.troubled:
            self.trouble = self.interception.log.total - 1

    def _arrive(self, registers: dict[str, int]) -> Stop:
        record, box = self.record, self.mailbox
        if box is None or int(box["magic"]) != MAGIC:
            raise MachineError("the guest stopped at its checkpoint symbol without a valid mailbox")
        flags = Checkpoint(int(box["flags"]))
        name = bytes(box["name"]).split(b"\0")[0].decode("latin-1")
        state = replace(control_state(registers), pkru=int(box["pkru"]))
        self.interception.state = replace(self.interception.state, pkru=state.pkru)
        self.engine.set_pkru(state.pkru)
        record.checkpoints += 1
        self._look(name, registers)
        stale, final = bool(flags & Checkpoint.STALE), bool(flags & Checkpoint.FINAL)
        return Stop(record.checkpoints, name, state, stale, final, self._ambient)

    def _audit(self, where: str) -> None:
        try:
            failures = self.engine.audit()
        except Exception as error:  # an engine broken enough breaks its own audit, and that is a finding
            failures = [AuditFailure("audit", f"it could not be finished: {type(error).__name__}: {error}")]
        self.record.audit_failures += len(failures)
        room = KEPT_FAILURES - len(self.record.audit)
        self.record.audit += [f"at {where}: {f.invariant}: {f.detail}" for f in failures[: max(0, room)]]

    def check(self) -> CheckReport:
        """Cross-checks the guest at the checkpoint where it stands. Raises RuntimeError if it is at none."""
        if self.stop is None or self.ended:
            raise RuntimeError("the guest is at no checkpoint")
        began = time.monotonic()
        report = self.check_engine.checkpoint(self.stop)
        if not self.stop.stale:
            # The check's own stores let tables go out of sync; from here on the guest's are to be seen again.
            self.engine.resync_all()
        self.interception.refresh()
        record = self.record
        for oracle, count in report.checks.items():
            record.checks[oracle] = record.checks.get(oracle, 0) + count
        for exception, count in report.exceptions.items():
            record.exceptions[exception] = record.exceptions.get(exception, 0) + count
        record.mismatches += len(report.mismatches)
        record.failures += report.mismatches[: max(0, KEPT_FAILURES - len(record.failures))]
        if self.stop.final or self.stop.index % AUDIT_AFTER == 0:
            self._audit(f"{self.stop.name}, after the check")
        self._note_trouble()
        if self.recorder is not None:
            self.recorder.checked(report)
        record.timings["check"] = record.timings.get("check", 0.0) + time.monotonic() - began
        self._tell("running", self.stop.name)
        return report

    def _tell(self, phase: str, checkpoint: str) -> None:
        if self._watcher is not None:
            record = self.record
            self._watcher(
                Progress(
                    self.guest.name,
                    self.paging,
                    phase,
                    checkpoint,
                    sum(record.checks.values()),
                    self.interception.log.total,
                    record.mismatches,
                    time.monotonic() - self._began,
                )
            )

    def _end(self, outcome: Outcome, registers: dict[str, int]) -> None:
        self.ended = True
        if outcome is not Outcome.EXITED:
            self._look("the end", registers)
            self._judge_standing(outcome, registers)
            return
        self._audit("the end")
        status = self.machine.wait_exit(5.0)
        if status is None:
            self.machine.raise_lost("QEMU closed its gdbstub and goes on running")
        self.machine.console.finish()
        self._judge_exit(status)
        if not (sum(self.record.checks.values()) or self.checked_elsewhere):
            self.record.reason = f"{self.record.reason} (it ended before anything was checked)".strip()

    def _judge_standing(self, outcome: Outcome, registers: dict[str, int]) -> None:
        """The verdict on a guest that has not ended by itself."""
        del outcome
        self._judge_timeout(registers)

    def _judge_timeout(self, registers: dict[str, int]) -> None:
        self.record.verdict = "timeout"
        self.record.reason = f"still running after {self._deadline.seconds:g} s, at {registers.get('rip', 0):#x}"
        self.record.tap = self.machine.console.tap()[1]

    def _judge_exit(self, status: int | None) -> None:
        judge_end(self.record, self.machine.console, status)

    def finish(self) -> RunRecord:
        """Runs to the end without further checks, and gives the run's record."""
        while self.run_to_checkpoint() is not None:
            pass
        return self.conclude()

    def conclude(self) -> RunRecord:
        """The record as it stands, with counts and statistics filled in."""
        record = self.record
        if not self._booted:
            return record
        for kind, count in self.interception.log.counts.items():
            record.events[kind] = count
        record.stats = dict(self.engine.stats())
        record.stats["false_breakpoints"] = self.interception.false_breakpoints
        record.stats["late_alias_tables"] = self.interception.late_alias_tables
        record.events["page_fault"] = int(record.stats.get("faults", record.stats.get("shadow_fault", 0)))
        record.recent_events = self.interception.log.recent()
        record.seconds = time.monotonic() - self._began
        judge_checks(record, self.forgives_misses)
        if record.verdict == "fail" and record.stats.get("eager_truncated"):
            record.reason += f" (the pool was too small for {record.stats['eager_truncated']} tables: a likely cause)"
        return record

    def settle(self, record: RunRecord | None = None, failed: bool | None = None) -> None:
        """Once the run has its verdict: keeps the trace if it was asked for or the run failed, and tells how to look
        into a run that failed. record: another than the session's own. failed: None is as the record says."""
        record = record or self.record
        if failed is None:
            misses = bool(record.interception_misses) and not self.forgives_misses
            failed = not record.as_expected or bool(record.mismatches or record.audit_failures) or misses
        if self.recorder is not None:
            settle_trace(self.recorder, self.options, record, failed)
            self.recorder = None
        if failed and self._booted:
            event = self.interception.log.total - 1 if self.trouble is None else self.trouble
            record.repro.append(self.options.debug_command(self.guest.name, self.paging, event if event >= 0 else None))

    def keep_logs(self) -> None:
        """Writes console, command line and stderr below `options.log_dir`, if there is one."""
        folder = self.options.log_dir
        if folder is None or not self._booted:
            return
        folder = folder / f"{self.guest.name}.{self.paging}"
        record, machine = self.record, self.machine
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "console.txt").write_text(machine.console.text, encoding="utf-8")
            (folder / "qemu-stderr.txt").write_text(machine.stderr_text, encoding="utf-8")
            (folder / "qemu-command.txt").write_text(shlex.join(machine.command) + "\n", encoding="utf-8")
            record.log_dir = str(folder)
        except OSError as error:
            record.log_dir = f"{folder} could not be written: {error.strerror}"
