"""The benchmarks: costs as ratios to a floor that is measured in the same run.

A figure is worth something only beside what the machine could do at that moment, so every bench measures its
own floor (a raw gdbstub stop, a bare QEMU boot) between its measurements and reports both.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from harness.catalogue import FIRMWARE, image_path, load_catalogue
from harness.machine.deadline import Deadline
from harness.machine.errors import MachineError, StubClosed
from harness.machine.gdbstub import CONTINUE, STEP, breakpoint_packet, watch_packet
from harness.machine.image import load_image
from harness.machine.mailbox import Command
from harness.machine.qemu import Machine, MachineSpec, bare_command, scratch_directory
from harness.machine.ram import RamMap
from harness.placement import place
from harness.session import RunOptions, Session, machine_spec, run_guest
from harness.verdict import STATUS_PASS

Figures = dict[str, float]
Raw = dict[str, Any]

FLOOR_ROUNDS: Final = 300
LEAST_EVENTS: Final = 50  # a stretch between two checkpoints with fewer events is not measured
PAGING: Final = "long4"


@dataclass(frozen=True, slots=True)
class Bench:
    """name: what `bench NAME` takes. measure gives (figures, raw numbers)."""

    name: str
    description: str
    measure: Callable[[], tuple[Figures, Raw]]


def _raw_stops(session: Session) -> tuple[float, float]:
    """Seconds of a raw breakpoint stop (stop, step over it, continue) and of a raw watchpoint stop, on the guest
    of `session` while it stands at a checkpoint: its probe server, given batches of nothing, is the loop."""
    box = session.target.mailbox
    if box is None:
        raise MachineError("a floor needs a guest with a probe server")
    gdb = session.machine.gdb
    limit = Deadline(30.0)
    box["count"] = 0

    def serve(step: bool) -> None:
        box["command"] = Command.PROBE
        gdb.resume()
        gdb.wait_stop(limit)
        if step:
            gdb.resume((), STEP)
            gdb.wait_stop(limit)

    began = time.perf_counter()
    for _ in range(FLOOR_ROUNDS):
        serve(step=True)
    breakpoint_stop = (time.perf_counter() - began) / FLOOR_ROUNDS
    # Now a store: the server writes `done` in the mailbox's first page each round, just before the breakpoint.
    page = session.image.symbols["xi_mailbox"]
    gdb.checked(watch_packet(page, 64))
    began = time.perf_counter()
    stops = 0
    while stops < FLOOR_ROUNDS:
        box["command"] = Command.PROBE
        gdb.resume()
        if gdb.wait_stop(limit).watch is not None:
            stops += 1
        else:
            began += _timed(lambda: (gdb.resume((), STEP), gdb.wait_stop(limit)))
    watch_total = time.perf_counter() - began
    gdb.checked(watch_packet(page, 64, insert=False))
    box["command"] = Command.RESUME
    # Leave the guest where the session believes it to be: at the checkpoint's breakpoint, stepped over.
    while not _back_at_checkpoint(session):
        pass
    return breakpoint_stop, watch_total / FLOOR_ROUNDS


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _back_at_checkpoint(session: Session) -> bool:
    """Whether the guest stands just behind its checkpoint's breakpoint; if not, takes it one stop nearer."""
    gdb = session.machine.gdb
    rip, stop = gdb.read_registers()["rip"], session.image.symbols["xi_stop"]
    if rip == stop + 1:
        return True
    gdb.resume((), STEP if rip == stop else CONTINUE)
    gdb.wait_stop(Deadline(5.0))
    return False


def _unobserved_seconds(name: str) -> float:
    """Seconds that the guest itself takes from its entry to its end, stopped at its checkpoints only."""
    guest = load_catalogue()[name]
    image = load_image(image_path(guest, PAGING))
    with Machine(machine_spec(guest, PAGING, RunOptions()), place(image, 1)) as machine:
        gdb, limit = machine.gdb, Deadline(60.0)
        gdb.checked(breakpoint_packet(image.entry))
        gdb.resume()
        gdb.wait_stop(limit)
        gdb.checked(breakpoint_packet(image.entry, insert=False), breakpoint_packet(image.symbols["xi_stop"]))
        began = time.perf_counter()
        with contextlib.suppress(StubClosed):
            gdb.resume()
            while not gdb.wait_stop(limit).exited:
                gdb.resume((), STEP)
                gdb.wait_stop(limit)
                gdb.resume()
        return time.perf_counter() - began


def observe() -> tuple[Figures, Raw]:
    """The mean cost of an intercepted event on `churn`, against raw stops of the same kinds.

    The guest's own work is measured in an unobserved run and taken off. A raw stop at a breakpoint includes the step
    over it, as every debugger has to make it; against the cheaper stop of a watchpoint there is a figure of its own.
    """
    guest = load_catalogue()["churn"]
    events = 0
    seconds = 0.0
    floors: list[tuple[float, float]] = []
    with Session(guest, PAGING, RunOptions()) as session:
        observer = session.observer
        while True:
            before, spent = observer.log.total, observer.run_seconds
            if session.run_to_checkpoint() is None:
                break
            if observer.log.total - before >= LEAST_EVENTS:
                events += observer.log.total - before
                seconds += observer.run_seconds - spent
                floors.append(_raw_stops(session))
        counts = dict(observer.log.counts)
    if not events:
        raise MachineError("churn made no events to measure")
    own = statistics.median(_unobserved_seconds("churn") for _ in range(3))
    breakpoint_stop = statistics.median(floor[0] for floor in floors)
    watch_stop = statistics.median(floor[1] for floor in floors)
    share = counts.get("table_write", 0) / sum(counts.values())
    floor = share * watch_stop + (1 - share) * breakpoint_stop
    event = (seconds - own) / events
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


def bare_seconds(name: str, paging: str) -> float:
    """Wall seconds of a bare QEMU with the same guest, from start to its exit: no harness attached."""
    image = load_image(image_path(load_catalogue()[name], paging))
    spec = MachineSpec(bios=FIRMWARE)
    scratch = scratch_directory()
    try:
        ram = RamMap(scratch / "ram", spec.ram_mib << 20)
        ram.reserve()
        place(image, 1)(ram)
        began = time.perf_counter()
        status = subprocess.run(
            bare_command(spec, scratch), stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        ).returncode
        seconds = time.perf_counter() - began
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if status != STATUS_PASS:
        raise MachineError(f"the bare run of {name} {paging} ended with status {status}")
    return seconds


def boot() -> tuple[Figures, Raw]:
    """A tiny guest's whole run, against a bare QEMU from start to exit, taken in turns."""
    guest = load_catalogue()["basic"]
    runs, bares = [], []
    for _ in range(5):
        bares.append(bare_seconds("basic", PAGING))
        runs.append(_timed(lambda: run_guest(guest, PAGING)))
    run, bare = statistics.median(runs), statistics.median(bares)
    return {"boot.run_ratio": run / bare}, {"boot.run_seconds": runs, "boot.bare_seconds": bares}


def probe() -> tuple[Figures, Raw]:
    """Probes a second, end to end: planning, predicting, running in the guest and comparing."""
    guest = load_catalogue()["basic"]
    probes, seconds = 0, 0.0
    with Session(guest, PAGING, RunOptions(probe_budget=20000)) as session:
        while session.run_to_checkpoint() is not None:
            began = time.perf_counter()
            probes += session.check().checks["probe"]
            seconds += time.perf_counter() - began
    return {"probe.per_second": probes / seconds}, {"probe.count": probes, "probe.seconds": seconds}


BENCHES: Final = {
    bench.name: bench
    for bench in (
        Bench("observe", "cost of an intercepted event against raw gdbstub stops", observe),
        Bench("boot", "a tiny guest's whole run against a bare QEMU", boot),
        Bench("probe", "probes a second, end to end", probe),
    )
}


FIGURES: Final = {bench.name: bench.description for bench in BENCHES.values()}


def run_bench(names: list[str] | None = None) -> dict[str, Any]:
    """Measures the named benches (all when none) and gives the JSON document: figures, and the raw numbers.

    Raises ValueError that lists the known names on an unknown one.
    """
    for name in names or ():
        if name not in BENCHES:
            raise ValueError(f"unknown bench {name!r} (known: {', '.join(BENCHES)})")
    figures: Figures = {}
    raw: Raw = {}
    for name in names or list(BENCHES):
        measured, numbers = BENCHES[name].measure()
        figures |= measured
        raw |= numbers
    return {"schema": 1, "figures": figures, "raw": raw}
