"""What a gdb costs that is attached and does nothing: the same guest with one and without."""

from __future__ import annotations

import statistics
import subprocess
from typing import Final

from harness.bench.figures import PAGING, ROUNDS, Measured
from harness.catalogue import load_catalogue
from harness.debug_job import debug_session
from harness.debug_run import StopAt
from harness.machine.errors import MachineError
from harness.options import Mode, RunOptions
from harness.runs import make_session

GUEST: Final = "churn"
GDB_SECONDS: Final = 120.0


def _alone(options: RunOptions) -> float:
    """Seconds that the guest ran, interception included, without checks."""
    with make_session(load_catalogue()[GUEST], PAGING, options) as session:
        session.finish()
        return session.interception.run_seconds


def _attached(options: RunOptions) -> float:
    """The same with a gdb that has let it run at its entry and waits for its end."""
    gdbs: list[subprocess.Popen[bytes]] = []

    def invite(command: list[str]) -> None:
        quiet = ["gdb", "-nx", "-batch", *command[1:], "-ex", "continue"]
        gdbs.append(
            subprocess.Popen(quiet, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )

    session = make_session(load_catalogue()[GUEST], PAGING, options)
    try:
        with debug_session(session, StopAt(), lambda text: None, invite, GDB_SECONDS, checked=False) as debugging:
            debugging.run()
    finally:
        for gdb in gdbs:
            try:
                gdb.wait(GDB_SECONDS)
            except subprocess.TimeoutExpired:
                gdb.kill()
                gdb.wait()
    if not gdbs or not session.ended:
        raise MachineError(f"{GUEST} did not come to its end with a gdb attached")
    return session.interception.run_seconds


def measure() -> Measured:
    """`churn` in both modes, with and without a gdb in turns."""
    figures, raw = {}, {}
    for mode in (Mode.OBSERVE, Mode.LIVE):
        options = RunOptions(mode=mode.value)
        alone, attached = [], []
        for _ in range(ROUNDS):
            alone.append(_alone(options))
            attached.append(_attached(options))
        figures[f"debug.{mode.value}_ratio"] = statistics.median(attached) / statistics.median(alone)
        raw[f"debug.{mode.value}_seconds"] = {
            "alone": [round(one, 3) for one in alone],
            "attached": [round(one, 3) for one in attached],
        }
    return figures, raw
