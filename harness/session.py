"""A guest, a machine and an engine put together: the one place that knows all three."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from harness.catalogue import FIRMWARE, Guest, image_path
from harness.check.crosscheck import CrossCheck
from harness.check.guest_walks import ram_reader
from harness.check.memory import OverlayMemory
from harness.check.target import CheckReport, Stop
from harness.engine import AuditFailure, EngineConfig, ShadowEngine
from harness.guest_target import GuestTarget
from harness.intercept.observe import Observer, Outcome, control_state
from harness.machine import qemu
from harness.machine.deadline import Deadline
from harness.machine.errors import BadImage, MachineError, MachineUnavailable
from harness.machine.image import WRITABLE, Image, load_image
from harness.machine.mailbox import MAGIC, Checkpoint
from harness.machine.qemu import Machine, MachineSpec
from harness.placement import identity_p2m, place
from harness.report.record import RunRecord
from harness.verdict import judge_checks, judge_end
from harness.x86.access import Access
from harness.x86.bits import PAGE_SIZE
from harness.x86.control import ControlState
from harness.x86.walk import Path as WalkPath
from harness.x86.walk import tracer

ENGINE_GROUP: Final = "xi_harness.engines"
KEPT_FAILURES: Final = 8  # mismatches kept in full in a record
POOL_PERCENT: Final = 5  # of the domain's memory: XI's reserve
POOL_BASE: Final = 0xC0000  # 3 GiB: beyond every RAM, and a root in PAE format must lie below 4 GiB
POOL_LEAST: Final = 96 * 4  # frames: eager filling shadows whole trees, so a tiny guest needs more than 5 %
AUDIT_AFTER: Final = 4  # every so many checkpoints the engine is audited after the check as well as before it
PROBE_BUDGET: Final = 800  # probes a checkpoint


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a user can choose for a run. None: the catalogue's, or the project's, default.

    time_limit in seconds of wall time; probe_budget in probes a checkpoint; kernel, append, initrd: a foreign
    kernel instead of a guest of the catalogue.
    """

    seed: int = 1
    engine: str = "xi"
    time_limit: float | None = None
    log_dir: Path | None = None
    probe_budget: int = PROBE_BUDGET
    kernel: Path | None = None
    append: str | None = None
    initrd: Path | None = None
    memory_mib: int | None = None
    cpu: str | None = None
    paging: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, for who watches."""

    guest: str
    paging: str
    phase: str
    checkpoint: str
    checks: int
    events: int
    mismatches: int
    seconds: float


Watcher = Callable[[Progress], None]


@cache
def engine_class(name: str) -> Callable[[EngineConfig, Any], ShadowEngine]:
    """The engine that the entry point `name` gives. Raises ValueError that lists the installed ones."""
    points = {point.name: point for point in entry_points(group=ENGINE_GROUP)}
    if name not in points:
        raise ValueError(f"unknown engine {name!r} (installed: {', '.join(sorted(points)) or 'none'})")
    loaded: Callable[[EngineConfig, Any], ShadowEngine] = points[name].load()
    return loaded


def machine_spec(guest: Guest, paging: str, options: RunOptions) -> MachineSpec:
    """The machine for a guest of the catalogue."""
    return MachineSpec(
        cpu=options.cpu or guest.cpu_for(paging),
        ram_mib=options.memory_mib or guest.memory_for(paging),
        bios=FIRMWARE,
    )


def command_line(guest: Guest | None, paging: str, options: RunOptions) -> list[str]:
    """QEMU's command line for a run, as `--dry-run` prints it. Raises MachineUnavailable without a QEMU."""
    from harness.kernel_run import kernel_spec  # noqa: PLC0415 - it builds upon this module

    spec = machine_spec(guest, paging, options) if guest is not None else kernel_spec(options)
    binary, _ = qemu.find_qemu()
    return qemu.command_line(spec, Path("SCRATCH"), binary)


class Session:
    """A booted, observed and checked guest. A context manager; leaving it reaps QEMU.

    engine and observer are there for who wants to look closer (or, in mutation tests, to break them).
    """

    msr_writes = True  # see `harness.intercept.breakpoints.CodeScanner`
    forgives_misses = False  # whether interception misses leave the verdict as it is

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
        self.ended = False
        self.record = RunRecord(
            guest.name,
            paging,
            engine=self.options.engine,
            expected=guest.expected_for(paging),
            seed=self.options.seed,
            repro=[self._repro()],
        )

    def _repro(self) -> str:
        words = ["xi-harness", "run", self.guest.name, "--paging", self.paging, "--seed", str(self.options.seed)]
        if self.options.engine != "xi":
            words += ["--engine", self.options.engine]
        return shlex.join(words)

    # ---- life

    def start(self) -> None:
        """Launches QEMU, lets the firmware run, and begins to observe at the guest's entry."""
        options = self.options
        self.machine = self._stack.enter_context(self._launch())
        self.record.timings["launch"] = time.monotonic() - self._began
        ram = self.machine.ram
        frames = ram.size >> 12
        self.memory = OverlayMemory(ram.bytes)
        self._read = ram_reader(ram.bytes)
        config = EngineConfig(
            frames=frames,
            pool_frames=max(POOL_LEAST, frames * POOL_PERCENT // 100 // 4 * 4),
            pool_base_mfn=POOL_BASE,
            p2m=identity_p2m(frames),
        )
        self.engine = self._make_engine(config, self.memory)
        # What the guest writes while it serves probes lies in its image's writable part: mailbox and stack.
        self._ambient = tuple(
            (page, Access.STORE)
            for segment in self.image.segments
            if segment.flags & WRITABLE
            for page in range(segment.vaddr & -PAGE_SIZE, segment.vaddr + segment.size, PAGE_SIZE)
        )
        self.observer = Observer(self.machine, self.engine, self._translate, self.msr_writes)
        symbols = self.image.symbols
        box = self.image.physical(symbols["xi_mailbox"]) if {"xi_mailbox", "xi_stop"} <= symbols.keys() else None
        self.target = GuestTarget(self.machine, self.observer, box)
        self.check_engine = CrossCheck(
            self.engine,
            self.memory,
            self.target,
            seed=options.seed,
            budget=options.probe_budget,
            image=[gfn for segment in self.image.segments for gfn in segment.frames],
        )
        self._reach_entry()
        self.observer.attach()
        if box is not None:
            self.observer.stop_at(symbols["xi_stop"])
        self.record.timings["boot"] = time.monotonic() - self._began

    def _launch(self) -> Machine:
        if not FIRMWARE.is_file():
            raise BadImage(f"{FIRMWARE}: it is not built: run `make guests`")
        return Machine(machine_spec(self.guest, self.paging, self.options), place(self.image, self.options.seed))

    def _reach_entry(self) -> None:
        self.observer.run_to(self.image.entry, self._deadline)

    def _translate(self, state: ControlState, va: int) -> int | None:
        if self._tracer is None or self._tracer[0] != state:
            self._tracer = (state, tracer(state, self._read))
        path = self._tracer[1](va)
        return path.gpa if path.gpa >= 0 else None

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Session:
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
        """Lets the guest run to its next checkpoint (called `name`, if given); None when it ended before that.

        At every checkpoint the interception checks itself and the engine is audited.
        """
        while not self.ended:
            ran = self.observer.run(self._deadline)
            if ran.outcome is Outcome.STOP:
                self.stop = self._arrive(ran.registers)
                if name is None or self.stop.name == name:
                    return self.stop
            else:
                self._end(ran.outcome, ran.registers)
        return None

    def _arrive(self, registers: dict[str, int]) -> Stop:
        record, box = self.record, self.target.mailbox
        if box is None or int(box["magic"]) != MAGIC:
            raise MachineError("the guest stopped at its checkpoint symbol without a valid mailbox")
        flags = Checkpoint(int(box["flags"]))
        name = bytes(box["name"]).split(b"\0")[0].decode("latin-1")
        state = replace(control_state(registers), pkru=int(box["pkru"]))
        self.observer.state = replace(self.observer.state, pkru=state.pkru)
        self.engine.set_pkru(state.pkru)
        record.checkpoints += 1
        began = time.monotonic()
        record.interception_misses += self.observer.self_check(registers)
        record.misses = self.observer.misses[:KEPT_FAILURES]
        self._audit(name)
        record.timings["audit"] = record.timings.get("audit", 0.0) + time.monotonic() - began
        stale, final = bool(flags & Checkpoint.STALE), bool(flags & Checkpoint.FINAL)
        stop = Stop(record.checkpoints, name, state, stale, final, self._ambient)
        self._tell("checking", name)
        return stop

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
        self.observer.refresh()
        record = self.record
        for oracle, count in report.checks.items():
            record.checks[oracle] = record.checks.get(oracle, 0) + count
        for exception, count in report.exceptions.items():
            record.exceptions[exception] = record.exceptions.get(exception, 0) + count
        record.mismatches += len(report.mismatches)
        record.failures += report.mismatches[: max(0, KEPT_FAILURES - len(record.failures))]
        if self.stop.final or self.stop.index % AUDIT_AFTER == 0:
            self._audit(f"{self.stop.name}, after the check")
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
                    self.observer.log.total,
                    record.mismatches,
                    time.monotonic() - self._began,
                )
            )

    def _end(self, outcome: Outcome, registers: dict[str, int]) -> None:
        self.ended = True
        record = self.record
        if outcome is Outcome.DEADLINE:
            rip = registers.get("rip", 0)
            record.verdict = "timeout"
            record.reason = f"still running after {self._deadline.seconds:g} s, at {rip:#x}"
            record.tap = self.machine.console.tap()[1]
            return
        status = self.machine.wait_exit(5.0)
        if status is None:
            self.machine.raise_lost("QEMU closed its gdbstub and goes on running")
        self.machine.console.finish()
        judge_end(record, self.machine.console, status)

    def finish(self) -> RunRecord:
        """Runs to the end without further checks, and gives the run's record."""
        while self.run_to_checkpoint() is not None:
            pass
        return self.conclude()

    def conclude(self) -> RunRecord:
        """The record as it stands, with counts and statistics filled in."""
        record = self.record
        for kind, count in self.observer.log.counts.items():
            record.events[kind] = count
        record.stats = dict(self.engine.stats())
        record.stats["false_breakpoints"] = self.observer.false_breakpoints
        record.stats["late_alias_tables"] = self.observer.late_alias_tables
        record.events["page_fault"] = int(record.stats.get("faults", 0))
        record.recent_events = self.observer.log.recent()
        record.seconds = time.monotonic() - self._began
        judge_checks(record, self.forgives_misses)
        if record.verdict == "fail" and record.stats.get("eager_truncated"):
            record.reason += f" (the pool was too small for {record.stats['eager_truncated']} tables: a likely cause)"
        return record

    def keep_logs(self) -> None:
        """Writes console, command line and stderr below `options.log_dir`, if there is one."""
        folder = self.options.log_dir
        if folder is None:
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


def open_session(guest: Guest | Path, paging: str, options: RunOptions | None = None) -> Session:
    """A session for a guest of the catalogue or for an ELF file; use it with `with`."""
    if isinstance(guest, Path):
        guest = Guest(guest.stem, "", (paging,), image=guest)
    return Session(guest, paging, options)


def run_guest(
    guest: Guest, paging: str, options: RunOptions | None = None, progress: Watcher | None = None
) -> RunRecord:
    """Boots, observes, checks every checkpoint and judges. What a guest or its QEMU does becomes a verdict.

    Raises only MachineUnavailable (no usable QEMU) and ValueError (unknown engine).
    """
    options = options or RunOptions()
    session: Session | None = None
    try:
        session = Session(guest, paging, options, progress)
        with session:
            while session.run_to_checkpoint() is not None:
                session.check()
            record = session.conclude()
            session.keep_logs()
            return record
    except MachineUnavailable:
        raise
    except MachineError as error:
        return _lost(guest, paging, options, session, error)


def _lost(guest: Guest, paging: str, options: RunOptions, session: Session | None, error: MachineError) -> RunRecord:
    """The record of a run that the machine ended: its own verdict, never confused with a failed check."""
    record = (
        session.record if session is not None else RunRecord(guest.name, paging, expected=guest.expected_for(paging))
    )
    if session is not None and hasattr(session, "observer"):
        session.conclude()
        session.keep_logs()
    record.seed = options.seed
    record.verdict, record.reason = "error", str(error)
    return record


def run_kernel(path: Path, options: RunOptions, progress: Watcher | None = None) -> RunRecord:
    """Runs any kernel that QEMU can load; see `harness.kernel_run`."""
    from harness.kernel_run import run  # noqa: PLC0415 - it builds upon this module

    return run(path, options, progress)
