"""What each exit of a guest in live mode costs, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from harness.bench.no_op import NoOp
from harness.bench.sides import Sides
from harness.live.session import LiveSession
from harness.machine import monitor_abi as abi
from harness.machine.deadline import Deadline
from harness.machine.monitor_abi import ExitCode
from harness.x86.bits import VECTOR_PF
from harness.xi.engine import XiEngine

PAGE_FAULT: Final = ExitCode.EXCEPTION_BASE + VECTOR_PF
_EXITCODE: Final = abi.EXITCODE >> 3
_KINDS: Final = {
    int(ExitCode.INVLPG): "invlpg",
    int(ExitCode.WRITE_CR3): "cr3_load",
}
TURN: Final = 200  # exits between two exchanges of the sides: some 10 ms
SETTLED: Final = 20  # exits after an exchange until the caches hold what each side needs
ENGINE_CALLS: Final = ("shadow_fault", "load_cr3", "invlpg", "control", "needs", "set_pkru")


@dataclass(frozen=True, slots=True)
class Exit:
    """One exit, in seconds.

    kind: fault_fill (a #PF after which the guest makes its access again), gpt_write (one that let a guest's table go
    out of sync), invlpg, cr3_load, other. away: from the decision to run until the hand-over was seen: the hardware's
    part and the guest's own. handled: from there until the next decision to run; cpu: the same in the processor time of
    this thread, so without what the scheduler gave to others. decode: of `handled`, for fetching and decoding the
    instruction. engine: of it, in the engine. no_op: the no-op exit that was made next, 0 if none was. turn: how often
    the sides had been exchanged (`harness.bench.sides`).
    """

    kind: str
    away: float
    handled: float
    cpu: float
    decode: float
    engine: float
    no_op: float
    turn: int


class ExitClock:
    """Takes the time of each exit of `session`'s guest: all of them are in `exits`, but the last of each stretch.

    Nothing in the live path knows of it: it puts itself before `Vcpu.resume` and behind `Vcpu.wait` of this one
    session, which must stand at its guest's entry. no_ops: makes a no-op exit between any two of the guest in long
    mode, and exchanges the sides every TURN exits; there is none while they settle. split: tells the engine's and the
    decoder's part as well, by wrapping their methods, which costs a little.
    """

    def __init__(self, session: LiveSession, no_ops: bool = False, split: bool = False) -> None:
        self.exits: list[Exit] = []
        self._session = session
        self._counters = cast(XiEngine, session.engine).counters
        vcpu = session.vcpu
        self._vmcb, self._resume, self._wait = vcpu.vmcb, vcpu.resume, vcpu.wait
        self._no_op = NoOp(session) if no_ops else None
        self._sides = Sides(session.machine) if no_ops and not session.pinned else None
        self._since = 0  # the last exchange, in exits
        self._running = self._timed = False
        self._left = self._came = self._came_cpu = 0.0
        self._table_writes = self._refused = 0
        self._parts = {"engine": 0.0, "decode": 0.0}
        _replace(vcpu, "resume", self._before)
        _replace(vcpu, "wait", self._behind)
        if split:
            for name in ENGINE_CALLS:
                self._add_up(session.engine, name, "engine")
            self._add_up(session.live.instructions, "decode", "decode")

    def stop(self) -> None:
        """The guest stands for reasons of its own: what comes next is not the time of an exit."""
        self._timed = False

    def _before(self) -> None:
        """In the place of `Vcpu.resume`."""
        now, cpu = time.perf_counter(), time.thread_time()
        if self._timed:
            self._note(now - self._came, cpu - self._came_cpu)
        counters = self._counters
        self._table_writes, self._refused = counters.table_writes, counters.faults_injected
        self._parts["engine"] = self._parts["decode"] = 0.0
        self._running = True
        self._left = time.perf_counter()
        self._resume()

    def _behind(
        self,
        deadline: Deadline,
        idle: Callable[[], object] | None = None,
        come: Callable[[], bool] | None = None,
    ) -> None:
        """In the place of `Vcpu.wait`, which the monitor's commands use as well."""
        self._wait(deadline, idle, come)
        if self._running:
            self._running, self._timed = False, True
            self._code = self._vmcb[_EXITCODE]
            self._came_cpu = time.thread_time()
            self._came = time.perf_counter()

    def _note(self, handled: float, cpu: float) -> None:
        kind = _KINDS.get(self._code, "other")
        counters = self._counters
        if self._code == PAGE_FAULT and counters.faults_injected == self._refused:
            kind = "gpt_write" if counters.table_writes != self._table_writes else "fault_fill"
        away = self._came - self._left
        no_op, sides = 0.0, self._sides
        if self._no_op is not None and self._since >= SETTLED and self._session.engine.root.mode.name == "long4":
            no_op = self._no_op.run()
        turn = sides.turn if sides is not None else 0
        self.exits.append(Exit(kind, away, handled, cpu, self._parts["decode"], self._parts["engine"], no_op, turn))
        self._since += 1
        if sides is not None and self._since == TURN:
            sides.exchange()
            self._since = 0

    def _add_up(self, owner: object, name: str, part: str) -> None:
        method, parts, clock = getattr(owner, name), self._parts, time.perf_counter

        def timed(*arguments: Any) -> Any:
            began = clock()
            answer = method(*arguments)
            parts[part] += clock() - began
            return answer

        _replace(owner, name, timed)


def _replace(owner: object, name: str, method: Callable[..., object]) -> None:
    """`owner`'s own `name`, in the place of its class's."""
    setattr(owner, name, method)
