"""The whole catalogue in live mode, in observe mode and native: the same work, without checks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

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
Leg = Callable[[Guest, str], tuple[float, int]]


class _Forgiving(Session):
    """Observe mode without checks, which bring every alias of a table in: a store through one may be seen late."""

    forgives_misses = True


def live_leg(guest: Guest, paging: str) -> tuple[float, int]:
    """(seconds in the guest and its interception, checkpoints) of one run in live mode."""
    with LiveSession(guest, paging, RunOptions(mode=Mode.LIVE)) as session:
        return _finish(session, 0.0)


def observe_leg(guest: Guest, paging: str) -> tuple[float, int]:
    """As `live_leg`, in observe mode, from the guest's entry on."""
    with _Forgiving(guest, paging, RunOptions()) as session:
        return _finish(session, session.interception.run_seconds)


def _finish(session: Session, before: float) -> tuple[float, int]:
    record = session.finish()
    if record.verdict != "pass":
        raise MachineError(f"{record.guest} {record.paging} {record.mode}: {record.verdict}: {record.reason}")
    return session.interception.run_seconds - before, record.checkpoints


def native_leg(guest: Guest, paging: str) -> tuple[float, int]:
    """As `live_leg`, on plain QEMU, from the guest's entry on."""
    with NativeLeg(guest, paging, RunOptions()) as leg:
        gdb, entry = leg.machine.gdb, leg.image.entry
        gdb.checked(breakpoint_packet(entry))
        gdb.resume()
        gdb.wait_stop(Deadline(ENTRY_SECONDS))
        gdb.checked(breakpoint_packet(entry, insert=False))
        checkpoints, began = 0, time.perf_counter()
        while leg.run_to_checkpoint() is not None:
            checkpoints += 1
        return time.perf_counter() - began, checkpoints


LEGS: Final[dict[str, Leg]] = {"live": live_leg, "observe": observe_leg, "native": native_leg}


def wall_ratios() -> Measured:
    """Wall time in live mode against the two others, over all guests that come to a good end by themselves.

    Counted is the guest's running with its interception, from its entry to its end; not QEMU's start, and none of what
    is looked at or checked at a checkpoint. Raises MachineError when a guest does not do the same in all three.
    """
    seconds = dict.fromkeys(LEGS, 0.0)
    runs: dict[str, dict[str, float]] = {}
    for guest, paging in select([], [], every=True):
        if guest.expected_for(paging) != "pass":
            continue
        taken = {name: leg(guest, paging) for name, leg in LEGS.items()}
        if len({checkpoints for _, checkpoints in taken.values()}) != 1:
            raise MachineError(f"{guest.name} {paging} is not the same work in all modes: {taken}")
        for name, (one, _) in taken.items():
            seconds[name] += one
        runs[f"{guest.name} {paging}"] = {name: round(one, 4) for name, (one, _) in taken.items()}
    figures = {f"live.wall_ratio_{name}": seconds["live"] / seconds[name] for name in ("observe", "native")}
    return figures, {"live.wall_seconds": seconds, "live.wall_runs": runs}
