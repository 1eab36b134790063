"""The native leg: the guest on plain QEMU, on its own page tables, stopped nowhere but at its checkpoints."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from harness.catalogue import Guest, image_path
from harness.check.target import Stop
from harness.engine import Bytes
from harness.guest_target import serve
from harness.intercept.follow import control_state
from harness.intercept.interception import Outcome, Ran
from harness.machine.deadline import Deadline
from harness.machine.errors import DeadlineExceeded, MachineError, StubClosed
from harness.machine.exception_log import ExceptionLog, Faults
from harness.machine.gdbstub import ALL_REGISTERS, STEP, breakpoint_packet
from harness.machine.image import load_image
from harness.machine.mailbox import MAGIC, MAILBOX, Checkpoint
from harness.options import RunOptions
from harness.placement import place
from harness.session import launch, machine_spec
from harness.twin.witness import ENDED, SHUTDOWN, TIMEOUT
from harness.x86.control import ControlState

LOG_SECONDS: Final = 0.25  # the exception log is read so often while the guest runs
STEP_SECONDS: Final = 10.0
EXIT_SECONDS: Final = 5.0


class NativeLeg:
    """`harness.twin.witness.WitnessedMachine` for a guest that nothing intercepts. A context manager, which reaps QEMU.

    Its #PFs are those of QEMU's own log.
    """

    name = "native"

    def __init__(self, guest: Guest, paging: str, options: RunOptions) -> None:
        """Raises BadImage for a guest that is none. Launches nothing."""
        self.image = load_image(image_path(guest, paging))
        self._spec = machine_spec(guest, paging, options)
        self._seed = options.seed
        self._deadline = Deadline(options.time_limit or guest.time_limit_for(paging))
        self._stack = ExitStack()
        self._checkpoints = 0
        self.ending = ""

    def __enter__(self) -> Self:
        with self._stack as stack:
            log = stack.enter_context(ExceptionLog())
            spec = replace(self._spec, extra=(*self._spec.extra, *log.arguments))
            self.machine = stack.enter_context(launch(spec, place(self.image, self._seed)))
            log.opened()
            self._log = log
            self._faults: list[Faults] = []  # what was read while the guest ran
            symbols = self.image.symbols
            self._stop = symbols.get("xi_stop")
            self._box: npt.NDArray[Any] | None = None
            if self._stop is not None and "xi_mailbox" in symbols:
                self._box = self.machine.ram.view(self.image.physical(symbols["xi_mailbox"]), MAILBOX)
                self.machine.gdb.checked(breakpoint_packet(self._stop))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def memory(self) -> Bytes:
        return self.machine.ram.bytes

    @property
    def can_probe(self) -> bool:
        return self._box is not None

    @property
    def console(self) -> str:
        return self.machine.console.text

    # ---- running

    def run_to_checkpoint(self) -> Stop | None:
        if self.ending:
            return None
        ran = self._run(self._deadline)
        if ran.outcome is Outcome.EXITED:
            self._end()
        elif ran.outcome is Outcome.DEADLINE:
            self.ending = TIMEOUT
        else:
            return self._arrive(ran)
        return None

    def _arrive(self, ran: Ran) -> Stop:
        box = self._box
        if box is None or ran.registers["rip"] != self._stop or int(box["magic"]) != MAGIC:
            raise MachineError(f"the guest stopped at {ran.registers['rip']:#x}, which is no checkpoint")
        self._checkpoints += 1
        flags = Checkpoint(int(box["flags"]))
        name = bytes(box["name"]).split(b"\0")[0].decode("latin-1")
        state = control_state(ran.registers, int(box["pkru"]))
        return Stop(self._checkpoints, name, state, bool(flags & Checkpoint.STALE), bool(flags & Checkpoint.FINAL))

    def _run(self, deadline: Deadline) -> Ran:
        """Lets the guest run to its checkpoint symbol, its end, or the deadline."""
        gdb = self.machine.gdb
        try:
            gdb.resume()
            while True:
                try:
                    reply = gdb.wait_stop(deadline.sooner(LOG_SECONDS))
                    break
                except DeadlineExceeded:
                    self._faults.append(self._log.take())
                if deadline.passed:
                    reply = gdb.interrupt(Deadline(STEP_SECONDS))
                    return Ran(Outcome.EXITED if reply.exited else Outcome.DEADLINE, {})
            if reply.exited:
                return Ran(Outcome.EXITED, {})
            # A breakpoint's own instruction must be stepped: continuing would hit it again.
            (registers,) = gdb.resume((ALL_REGISTERS,), STEP)
            gdb.wait_stop(Deadline(STEP_SECONDS))
            return Ran(Outcome.STOP, gdb.parse_registers(registers))
        except StubClosed:
            return Ran(Outcome.EXITED, {})

    def _end(self) -> None:
        status = self.machine.wait_exit(EXIT_SECONDS)
        if status is None:
            self.machine.raise_lost("QEMU closed its gdbstub and goes on running")
        elif status < 0:
            self.machine.raise_lost("QEMU was killed")
        self.machine.console.finish()
        self.ending = ENDED.format(status) if status or self.machine.powered_off else SHUTDOWN

    # ---- what it testifies

    def run_probes(self, probes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._box is None:
            raise MachineError("this guest has no probe server")
        return serve(self._box, probes, self._run)

    def plant(self, writes: list[tuple[int, bytes]]) -> None:
        self.machine.gdb.write_physical(writes)

    def wrote(self, gfns: set[int]) -> None:
        """Nobody is concerned: no shadow follows these tables."""

    def take_faults(self) -> Faults:
        taken = np.concatenate((*self._faults, self._log.take()))
        self._faults = []
        return taken

    def take_states(self) -> set[ControlState]:
        """None: nothing stops the guest when it loads a register. Those at its faults are in the log."""
        return set()
