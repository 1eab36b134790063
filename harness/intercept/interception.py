"""What a session needs of an interception, whichever it is: observe (gdbstub) or live (the guest on the shadow)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from harness.intercept.events import EventLog
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
    PAUSED = "paused"  # live: a hook wanted the guest to stand where it is


@dataclass(frozen=True, slots=True)
class Ran:
    """registers: the guest's, by the names of the gdbstub; none once QEMU has ended."""

    outcome: Outcome
    registers: dict[str, int]


class Interception(Protocol):
    """Events of one guest, told to one engine.

    state: the control registers as the guest has them. misses: what the self-check found unannounced, in words.
    false_breakpoints, late_alias_tables: see `harness.intercept.observe`; 0 in live mode.
    """

    state: ControlState
    log: EventLog
    misses: list[str]
    false_breakpoints: int
    late_alias_tables: int
    run_seconds: float

    def run(self, deadline: Deadline, max_events: int | None = None) -> Ran:
        """Lets the guest run, event after event, until a checkpoint, its end, or the deadline."""

    def self_check(self, registers: dict[str, int]) -> int:
        """Compares what was announced with what is. How many changes were not; each is in `misses`, and repaired."""

    def refresh(self) -> None:
        """Takes over what changed in the engine outside an event (the faults that a check drives)."""
