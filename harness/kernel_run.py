"""Running a kernel that knows nothing of the harness: no mailbox, no probe server, SeaBIOS beneath it.

The machine runs free until the kernel has turned paging on; from there every event is observed. Now and then
the guest is stopped wherever it is and checked by the oracles that need no help from it.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from harness.catalogue import Guest
from harness.check.target import Stop
from harness.intercept.observe import Outcome, control_state
from harness.machine.deadline import Deadline
from harness.machine.errors import DeadlineExceeded, MachineError, MachineUnavailable, StubClosed
from harness.machine.image import Image
from harness.machine.qemu import Machine, MachineSpec
from harness.report.record import RunRecord
from harness.session import RunOptions, Session, Watcher
from harness.x86 import bits

MEMORY_MIB: Final = 256
TIME_LIMIT: Final = 60.0
SLICE: Final = 0.005  # seconds between two looks whether paging is on
SETTLE: Final = 1.0  # seconds with paging on, but below: a kernel that lives in the lower half
CHECK_EVENTS: Final = 2000  # events between two cross-checks
CHECK_SECONDS: Final = 2.0  # or this long, whichever comes first


def kernel_spec(options: RunOptions) -> MachineSpec:
    """The machine for `options.kernel`."""
    return MachineSpec(
        cpu=options.cpu or ("max,-la57" if options.paging == "long4" else "max"),
        ram_mib=options.memory_mib or MEMORY_MIB,
        kernel=options.kernel,
        initrd=options.initrd,
        append=options.append,
    )


class KernelSession(Session):
    """A session for a foreign kernel: entered once paging is on and the loader's part is over."""

    msr_writes = False

    def __init__(self, path: Path, options: RunOptions, watcher: Watcher | None) -> None:
        options = replace(options, kernel=path, time_limit=options.time_limit or TIME_LIMIT)
        image = Image(path, 0, (), {})
        guest = Guest(path.name, "a foreign kernel", (options.paging or "any",))
        super().__init__(guest, options.paging or "any", options, watcher, image=image)

    def _repro(self) -> str:
        options = self.options
        words = ["xi-harness", "run", "--kernel", str(options.kernel), "--seed", str(options.seed)]
        for name, value in (("--append", options.append), ("--initrd", options.initrd), ("--paging", options.paging)):
            if value is not None:
                words += [name, str(value)]
        return shlex.join(words)

    def _launch(self) -> Machine:
        return Machine(kernel_spec(self.options))

    def _reach_entry(self) -> None:
        """Lets the machine run in short slices until the kernel proper runs. Raises DeadlineExceeded or StubClosed.

        That is: paging is on, and the code runs in the upper half of the address space (a decompressor runs in the
        lower one, amidst compressed bytes that look like anything), or it has been on for SETTLE seconds.
        """
        gdb = self.machine.gdb
        settled: Deadline | None = None
        while True:
            gdb.resume()
            try:
                reply = gdb.wait_stop(Deadline(SLICE))
            except DeadlineExceeded:
                reply = gdb.interrupt(Deadline(5.0))
            if reply.exited:
                raise StubClosed("the machine ended before the kernel had turned paging on")
            registers = gdb.read_registers()
            if registers["cr0"] & bits.CR0_PG:
                settled = settled or Deadline(SETTLE)
                upper = 1 << (63 if registers["efer"] & bits.EFER_LMA else 31)
                if registers["rip"] & upper or settled.passed:
                    return
            self._deadline.check("a kernel that turns paging on")

    # Code that a kernel brings in, moves or patches after it was scanned is found by the self-check only: that is
    # reported and repaired, but no fault of the kernel's.
    forgives_misses = True

    def check_here(self, registers: dict[str, int]) -> None:
        """Self-check, audit and cross-check where the guest happens to stand."""
        record = self.record
        record.checkpoints += 1
        record.interception_misses += self.observer.self_check(registers)
        record.misses = self.observer.misses[:8]
        # In the middle of things a kernel may have stores pending that it has not flushed: that is "stale".
        state = control_state(registers)
        self.stop = Stop(record.checkpoints, f"event {self.observer.log.total}", state, True, False)
        self.check()

    def run_to_end(self) -> RunRecord:
        """Runs until the time limit or the machine's end, checking on the way; gives the record."""
        record, observer = self.record, self.observer
        while True:
            slice_ = self._deadline.sooner(CHECK_SECONDS)
            ran = observer.run(slice_, CHECK_EVENTS)
            if ran.outcome is Outcome.EXITED:
                self._judge_exit()
                break
            if not record.paging or record.paging == "any":
                record.paging = observer.state.mode.name
            self.check_here(ran.registers)
            if self._deadline.passed:
                record.verdict = "pass"
                record.reason = f"time limit of {self._deadline.seconds:g} s reached, everything checked agreed"
                break
        return self.conclude()

    def _judge_exit(self) -> None:
        self.ended = True
        record = self.record
        reason = self.machine.monitor.shutdown_reason()
        status = self.machine.wait_exit(5.0)
        self.machine.console.finish()
        if status != 0:
            record.verdict, record.reason = "error", f"QEMU ended with status {status}"
        elif reason == "guest-shutdown":
            record.verdict, record.reason = "pass", "the kernel powered the machine off"
        else:
            record.verdict, record.reason = "crash", f"the machine was reset ({reason or 'no reason given'})"


@dataclass(frozen=True, slots=True)
class _Failed:
    """What is known of a run whose session never came up."""

    path: Path
    options: RunOptions

    def record(self, error: MachineError) -> RunRecord:
        record = RunRecord(self.path.name, self.options.paging or "any", engine=self.options.engine)
        record.seed = self.options.seed
        record.reason = str(error)
        return record


def run(path: Path, options: RunOptions, progress: Watcher | None = None) -> RunRecord:
    """Runs the kernel at `path`. What it or QEMU does becomes a verdict; raises only MachineUnavailable."""
    session: KernelSession | None = None
    began = time.monotonic()
    try:
        session = KernelSession(path, options, progress)
        with session:
            try:
                record = session.run_to_end()
            finally:
                session.keep_logs()
            return record
    except MachineUnavailable:
        raise
    except MachineError as error:
        record = session.record if session is not None else _Failed(path, options).record(error)
        late = isinstance(error, DeadlineExceeded)
        record.verdict, record.reason = ("timeout" if late else "error"), str(error)
        record.seconds = time.monotonic() - began
        return record
