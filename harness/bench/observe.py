"""What an intercepted event costs in observe mode."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from harness.bench.figures import PAGING, ROUNDS, Measured
from harness.catalogue import image_path, load_catalogue
from harness.machine.deadline import Deadline
from harness.machine.errors import MachineError, StubClosed
from harness.machine.gdbstub import STEP, breakpoint_packet, watch_packet
from harness.machine.image import load_image
from harness.machine.mailbox import Command
from harness.machine.qemu import Machine
from harness.options import RunOptions
from harness.placement import place
from harness.session import Session, machine_spec

WATCH_ROUNDS: Final = 200


def _raw_run(name: str, breakpoints: Iterable[int]) -> tuple[float, int]:
    """(seconds, stops) of the guest from its entry to its end with nothing but `breakpoints` set: at each stop a step
    over it and a continue, and nothing is read."""
    guest = load_catalogue()[name]
    image = load_image(image_path(guest, PAGING))
    stops = 0
    with Machine(machine_spec(guest, PAGING, RunOptions()), place(image, 1)) as machine:
        gdb, limit = machine.gdb, Deadline(60.0)
        gdb.checked(breakpoint_packet(image.entry))
        gdb.resume()
        gdb.wait_stop(limit)
        gdb.checked(breakpoint_packet(image.entry, insert=False), *map(breakpoint_packet, breakpoints))
        began = time.perf_counter()
        with contextlib.suppress(StubClosed):
            gdb.resume()
            while not gdb.wait_stop(limit).exited:
                stops += 1
                gdb.resume((), STEP)
                gdb.wait_stop(limit)
                gdb.resume()
        return time.perf_counter() - began, stops


def _raw_watch_stop(session: Session) -> float:
    """Seconds of one raw watchpoint stop, on the guest of `session` while it stands at a checkpoint: its probe server,
    given batches of nothing, writes to its mailbox in a loop."""
    box = session.mailbox
    if box is None:
        raise MachineError("this needs a guest with a probe server")
    gdb, limit = session.machine.gdb, Deadline(30.0)
    page, stop = session.image.symbols["xi_mailbox"], session.image.symbols["xi_stop"]
    # Its stores to `command` and `done`; the breakpoint in its loop is out of the way meanwhile.
    gdb.checked(breakpoint_packet(stop, insert=False), watch_packet(page, 64))
    box["count"] = 0
    began = time.perf_counter()
    for _ in range(WATCH_ROUNDS):
        box["command"] = Command.PROBE
        gdb.resume()
        if gdb.wait_stop(limit).watch is None:
            raise MachineError("the probe server stopped for another reason than its store")
    seconds = time.perf_counter() - began
    gdb.checked(watch_packet(page, 64, insert=False), breakpoint_packet(stop))
    # Back to where the session believes the guest to be: at the checkpoint, just stepped over.
    box["command"] = Command.PROBE
    gdb.resume()
    gdb.wait_stop(limit)
    gdb.resume((), STEP)
    gdb.wait_stop(limit)
    box["command"] = Command.RESUME
    return seconds / WATCH_ROUNDS


@dataclass(slots=True)
class _Observed:
    """One observed run. seconds: spent in the guest and its interception; watch_stops: seconds of raw ones."""

    seconds: float
    counts: dict[str, int]
    breakpoints: frozenset[int]
    watch_stops: list[float]


def _observed_run(name: str) -> _Observed:
    with Session(load_catalogue()[name], PAGING, RunOptions()) as session:
        began = session.observer.run_seconds
        watch_stops = []
        while session.run_to_checkpoint() is not None:
            watch_stops.append(_raw_watch_stop(session))
        observer = session.observer
        breakpoints = observer.code.addresses | {session.image.symbols["xi_stop"]}
        return _Observed(observer.run_seconds - began, dict(observer.log.counts), breakpoints, watch_stops)


def measure() -> Measured:
    """The mean cost of an intercepted event on `churn`, against raw stops at the same places of the same guest.

    Three runs in turn: observed; with the same breakpoints and nothing done at them; and free. What the guest takes
    by itself is taken off both. (QEMU 7.2 drops all translated code at each stop at a breakpoint, so a raw stop costs
    what the guest's code costs to translate again: a floor from an empty loop would be none.) The raw stop for a store
    to a table is that of a watchpoint, in a loop.
    """
    events = stops = 0
    observed = raw = own = 0.0
    watch_stops: list[float] = []
    counts: dict[str, int] = {}
    for _ in range(ROUNDS):
        run = _observed_run("churn")
        counts = run.counts
        seconds, hit = _raw_run("churn", run.breakpoints)
        events += sum(counts.values())
        stops += hit
        observed += run.seconds
        raw += seconds
        own += _raw_run("churn", [])[0]
        watch_stops += run.watch_stops
    breakpoint_stop = (raw - own) / stops
    watch_stop = statistics.median(watch_stops)
    share = counts.get("table_write", 0) / sum(counts.values())
    floor = share * watch_stop + (1 - share) * breakpoint_stop
    event = (observed - own) / events
    return (
        {"observe.event_ratio": event / floor, "observe.event_ratio_to_watch_stop": event / watch_stop},
        {
            "observe.event_us": event * 1e6,
            "observe.guest_own_us": own / events * 1e6,
            "observe.floor_breakpoint_us": breakpoint_stop * 1e6,
            "observe.floor_watch_us": watch_stop * 1e6,
            "observe.floor_mix_us": floor * 1e6,
            "observe.events": counts,
        },
    )
