"""The whole catalogue in live mode, in observe mode and native: the same work, without checks."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from harness.bench.figures import Measured
from harness.catalogue import Guest, select
from harness.live.session import LiveSession
from harness.machine.deadline import Deadline
from harness.machine.errors import MachineError
from harness.machine.gdbstub import breakpoint_packet
from harness.options import Mode, RunOptions
from harness.session import Session
from harness.twin.native import NativeLeg

ENTRY_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What one run took from the guest's entry to its end, in seconds. wall: by the clock. busy: of processor time; if
    nobody else wanted the processors it would be the same by the clock, in live mode at most that: who waits spins.
    checkpoints: how many the guest came to."""

    wall: float
    busy: float
    checkpoints: int


class Meter:
    """Adds up what the calls of one method take by the clock, of this thread's processor time, and of QEMU's.

    busy tells what the last two mean together: their sum where Python and QEMU wait for each other, the smaller where
    both spin and one of them always spins in vain.
    """

    def __init__(self, pid: int, owner: object, name: str, busy: Callable[[float, float], float]) -> None:
        """Puts itself in the place of `owner`'s method `name`; QEMU is process `pid`."""
        self._pid, self._busy = pid, busy
        self._method: Callable[..., Any] = getattr(owner, name)
        self._stretches: list[tuple[float, float]] = []
        self._last: tuple[float, float] | None = None  # Python's, and QEMU's clock when the call began that it ended in
        self.wall = 0.0
        setattr(owner, name, self._timed)

    def _timed(self, *arguments: Any) -> Any:
        began, python, qemu = time.perf_counter(), time.thread_time(), self._qemu()
        answer = self._method(*arguments)
        self.wall += time.perf_counter() - began
        python = time.thread_time() - python
        try:
            self._stretches.append((python, self._qemu() - qemu))
        except OSError:  # it has ended, and its status was taken
            self._last = python, qemu
        return answer

    def _qemu(self) -> float:
        """Processor time of QEMU: the kernel's clock of another process (Linux: see clock_getcpuclockid(3))."""
        return time.clock_gettime(~self._pid << 3 | 2)

    def busy(self, qemu_in_all: float) -> float:
        """qemu_in_all: processor time of QEMU from its start to its end."""
        stretches = [*self._stretches]
        if self._last is not None:
            stretches.append((self._last[0], qemu_in_all - self._last[1]))
        return sum(self._busy(*stretch) for stretch in stretches)


def _sum(python: float, qemu: float) -> float:
    return python + qemu


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Forgiving(Session):
    """Observe mode without checks, which bring every alias of a table in: a store through one may be seen late."""

    forgives_misses = True


def live_leg(guest: Guest, paging: str) -> Taken:
    """One run in live mode. Raises MachineError when the guest does not pass."""
    before = _children_seconds()
    with LiveSession(guest, paging, RunOptions(mode=Mode.LIVE)) as session:
        meter = Meter(session.machine.process.pid, session.interception, "run", min)
        checkpoints = _finish(session)
    return Taken(meter.wall, meter.busy(_children_seconds() - before), checkpoints)


def observe_leg(guest: Guest, paging: str) -> Taken:
    """As `live_leg`, in observe mode."""
    before = _children_seconds()
    with _Forgiving(guest, paging, RunOptions()) as session:
        meter = Meter(session.machine.process.pid, session.interception, "run", _sum)
        checkpoints = _finish(session)
    return Taken(meter.wall, meter.busy(_children_seconds() - before), checkpoints)


def _finish(session: Session) -> int:
    record = session.finish()
    if record.verdict != "pass":
        raise MachineError(f"{record.guest} {record.paging} {record.mode}: {record.verdict}: {record.reason}")
    return record.checkpoints


def native_leg(guest: Guest, paging: str) -> Taken:
    """As `live_leg`, on plain QEMU."""
    before = _children_seconds()
    with NativeLeg(guest, paging, RunOptions()) as leg:
        gdb, entry = leg.machine.gdb, leg.image.entry
        gdb.checked(breakpoint_packet(entry))
        gdb.resume()
        gdb.wait_stop(Deadline(ENTRY_SECONDS))
        gdb.checked(breakpoint_packet(entry, insert=False))
        meter = Meter(leg.machine.process.pid, leg, "run_to_checkpoint", _sum)
        checkpoints = 0
        while leg.run_to_checkpoint() is not None:
            checkpoints += 1
    return Taken(meter.wall, meter.busy(_children_seconds() - before), checkpoints)


LEGS: Final[dict[str, Callable[[Guest, str], Taken]]] = {
    "live": live_leg,
    "observe": observe_leg,
    "native": native_leg,
}


def wall_ratios(names: list[str] | None = None) -> Measured:
    """Time in live mode against the two others, over all guests (or `names`) that are to pass.

    Counted is the guest's running with its interception, from its entry to its end; not QEMU's start, and none of what
    is looked at or checked at a checkpoint. Raises MachineError when a guest does not do the same in all three.
    """
    runs: dict[str, dict[str, Taken]] = {}
    for guest, paging in select(names or [], [], every=names is None):
        if guest.expected_for(paging) != "pass":
            continue
        taken = {name: leg(guest, paging) for name, leg in LEGS.items()}
        if len({one.checkpoints for one in taken.values()}) != 1:
            raise MachineError(f"{guest.name} {paging} is not the same work in all modes: {taken}")
        runs[f"{guest.name} {paging}"] = taken
    wall = {name: sum(taken[name].wall for taken in runs.values()) for name in LEGS}
    busy = {name: sum(taken[name].busy for taken in runs.values()) for name in LEGS}
    figures = {f"live.wall_ratio_{name}": wall["live"] / wall[name] for name in ("observe", "native")}
    figures |= {f"live.cpu_ratio_{name}": busy["live"] / busy[name] for name in ("observe", "native")}
    return figures, {
        "live.wall_seconds": wall,
        "live.busy_seconds": busy,
        "live.runs": {
            run: {name: {"wall": round(one.wall, 4), "busy": round(one.busy, 4)} for name, one in taken.items()}
            for run, taken in runs.items()
        },
    }
