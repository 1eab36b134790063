"""What a whole run of a tiny guest costs."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable

from harness.bench.figures import PAGING, Measured
from harness.catalogue import image_path, load_catalogue
from harness.machine.errors import MachineError
from harness.machine.image import load_image
from harness.machine.qemu import bare_command, scratch_directory
from harness.machine.ram import RamMap
from harness.options import RunOptions
from harness.placement import place
from harness.runs import run_guest
from harness.session import machine_spec
from harness.verdict import STATUS_PASS


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def bare_seconds(name: str, paging: str) -> float:
    """Wall seconds of a bare QEMU with the same guest, from start to its exit: no harness attached."""
    guest = load_catalogue()[name]
    image = load_image(image_path(guest, paging))
    spec = machine_spec(guest, paging, RunOptions())
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


def measure() -> Measured:
    """A tiny guest's whole run, against a bare QEMU from start to exit, taken in turns."""
    guest = load_catalogue()["basic"]
    runs, bares = [], []
    for _ in range(5):
        bares.append(bare_seconds("basic", PAGING))
        runs.append(_timed(lambda: run_guest(guest, PAGING)))
    run, bare = statistics.median(runs), statistics.median(bares)
    return {"boot.run_ratio": run / bare}, {"boot.run_seconds": runs, "boot.bare_seconds": bares}
