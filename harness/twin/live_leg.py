"""The live leg: the same guest on the engine's shadow tables, asked in the same way as natively."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from harness.catalogue import Guest
from harness.check.target import Stop
from harness.engine import Bytes
from harness.guest_target import serve
from harness.intercept.interception import Ran
from harness.live.session import LiveSession
from harness.machine.deadline import Deadline
from harness.machine.errors import MachineError
from harness.machine.exception_log import FAULT, Faults
from harness.options import RunOptions
from harness.report.record import RunRecord
from harness.twin.witness import ENDED, SHUTDOWN, TIMEOUT
from harness.x86.bits import PAGE_SIZE
from harness.x86.control import ControlState


class LiveLeg:
    """`harness.twin.witness.WitnessedMachine` for a guest in live mode. A context manager; leaving it reaps QEMU.

    Its #PFs are those that the controller injects, its probes those of the guest's own probe server: the monitor's
    probes would need no guest, and would tell less of what a guest can see.
    """

    name = "live"

    def __init__(self, guest: Guest, paging: str, options: RunOptions) -> None:
        """Raises BadImage or ValueError for a guest or an engine that is none. Launches nothing."""
        self.session = LiveSession(guest, paging, options)
        self.session.checked_elsewhere = True
        self.image = self.session.image
        self._faults: list[tuple[int, int, int]] = []  # taken by `take_faults`
        self._states: set[ControlState] = set()
        self._state: ControlState | None = None

    def __enter__(self) -> Self:
        self.session.__enter__()
        live = self.session.live
        live.faults = self._faults
        live.between.append(self._follow)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.session.__exit__(kind, value, trace)

    @property
    def memory(self) -> Bytes:
        return self.session.domain.view.bytes

    @property
    def can_probe(self) -> bool:
        return self.session.mailbox is not None

    @property
    def console(self) -> str:
        return self.session.machine.console.text

    @property
    def ending(self) -> str:
        status = self.session.machine.wait_exit(0.0)
        if status is not None:
            return ENDED.format(status)
        return {"timeout": TIMEOUT, "crash": SHUTDOWN}.get(self.session.record.verdict, self.session.record.reason)

    def run_to_checkpoint(self) -> Stop | None:
        stop = self.session.run_to_checkpoint()
        while stop is not None and not self.can_probe:  # a look at a guest that has no checkpoints of its own
            stop = self.session.run_to_checkpoint()
        if stop is None:
            for gfn, content in self.session.domain.away.items():  # nobody can give them back any more
                self.memory[gfn * PAGE_SIZE : (gfn + 1) * PAGE_SIZE] = np.frombuffer(content, np.uint8)
        return stop

    def run_probes(self, probes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.session.mailbox is None:
            raise MachineError("this guest has no probe server")
        return serve(self.session.mailbox, probes, self._serve)

    def _serve(self, deadline: Deadline) -> Ran:
        ran = self.session.live.run(deadline)
        if self.session.stress is not None:
            self.session.stress.settle()  # the mailbox may be among the frames that are away
        return ran

    def plant(self, writes: list[tuple[int, bytes]]) -> None:
        self.session.target.plant(writes)

    def wrote(self, gfns: set[int]) -> None:
        """The engine may have synchronised such a table while a probe ran, and must not take it for unchanged since."""
        engine = self.session.engine
        for gfn in sorted(gfns & engine.guest_tables().keys()):
            engine.table_written(gfn)

    def take_faults(self) -> Faults:
        faults = np.zeros(len(self._faults), FAULT)
        for name, values in zip(("rip", "code", "cr2"), zip(*self._faults, strict=True), strict=False):
            faults[name] = values
        self._faults.clear()
        return faults

    def _follow(self) -> None:
        state = self.session.live.state
        if state is not self._state:
            self._state = state
            self._states.add(state)

    def take_states(self) -> set[ControlState]:
        taken, self._states = self._states, set()
        return taken

    def conclude(self) -> RunRecord:
        """The session's own record: its audits and self-checks, and how the guest ended."""
        return self.session.conclude()
