"""What a session needs of an interception, whichever it is: observe (gdbstub) or live (the guest on the shadow)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from harness.intercept.events import EventLog
from harness.intercept.points import Point
from harness.machine.deadline import Deadline
from harness.x86.control import ControlState


class Outcome(Enum):
    """Why `run` came back."""

    STOP = "stop"  # at its checkpoint, or the address asked for
    EXITED = "exited"  # QEMU is ending
    DEADLINE = "deadline"  # the guest was interrupted and is stopped
    EVENTS = "events"  # `max_events` more events were handled
    SHUTDOWN = "shutdown"  # live: a triple fault, which the monitor intercepts
    HALTED = "halted"  # live: HLT with interrupts off
    STUCK = "stuck"  # live: one access faults for ever
    PAUSED = "paused"  # somebody wanted the guest to stand where it is: `attention`, a point, a hook of live mode
    STEPPED = "stepped"  # `step` is done


@dataclass(frozen=True, slots=True)
class Ran:
    """registers: the guest's, by the names of the gdbstub; none once QEMU has ended."""

    outcome: Outcome
    registers: dict[str, int]


class Interception(Protocol):
    """Events of one guest, told to one engine.

    state: the control registers as the guest has them. misses: what the self-check found unannounced, in words.
    false_breakpoints, late_alias_tables: see `harness.intercept.observe`; 0 in live mode. attention: asked before the
    guest runs on, after each event and after `poke`, but not while points are `lifted`: whether it is to stand
    (PAUSED); None without a debugger. hit: the debugger's point
    because of which `run` or `step` came back last, None when it was for another reason.
    """

    state: ControlState
    log: EventLog
    misses: list[str]
    false_breakpoints: int
    late_alias_tables: int
    run_seconds: float
    attention: Callable[[], bool] | None
    hit: Point | None

    def run(self, deadline: Deadline, max_events: int | None = None) -> Ran:
        """Lets the guest run, event after event, until a checkpoint, its end, or the deadline."""

    def step(self, deadline: Deadline) -> Ran:
        """Lets the guest execute one instruction, with whatever it makes happen: STEPPED, STOP where it was the one at
        a checkpoint, or an end; DEADLINE or PAUSED when a halted processor executed none until then. An instruction
        that faults is over at the first one of the handler. A watchpoint of the debugger's that it hit is in `hit`."""

    def poke(self) -> None:
        """From any thread: `run` is to ask `attention` soon, even if the guest never leaves by itself."""

    def set_point(self, point: Point) -> None:
        """A point of the debugger's, from now on. The guest stands. Raises MachineError if QEMU refuses it."""

    def clear_point(self, point: Point) -> None:
        """Takes away one that was set; nothing happens for one that was not."""

    def lifted(self) -> AbstractContextManager[None]:
        """No point of the debugger's is set inside: what a check executes and touches is none of the guest's."""

    def self_check(self, registers: dict[str, int]) -> int:
        """Compares what was announced with what is. How many changes were not; each is in `misses`, and repaired."""

    def refresh(self) -> None:
        """Takes over what changed in the engine outside an event (the faults that a check drives)."""
