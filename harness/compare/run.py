"""A whole comparison: what is planned, measured one case after the other."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from harness import __version__
from harness.compare.clock import own_costs
from harness.compare.domains import measure_domains
from harness.compare.measurement import Comparison, Domain, Left, Measurement
from harness.compare.plan import DOMAINS, Plan, Recorded
from harness.compare.runner import Case, measure
from harness.machine.errors import MachineError
from harness.trace.reader import TraceError
from harness.workload.domains import Domains
from harness.workload.workload import WorkloadError

ALL: Final = "every engine"  # the label of what could be measured with none

Watch = Callable[[str, str, int, int], None]
"""Told before each run of a workload: subject, case, which run of how many it is (at most)."""


class Run:
    """Measures `plan`. What is done so far can be had at any time, also when it was interrupted."""

    def __init__(self, plan: Plan, command: str, watch: Watch) -> None:
        """command: what was typed, for the report."""
        self._plan = plan
        self._command = command
        self._watch = watch
        self._began = time.monotonic()
        self._runs = 0
        self._machine: dict[str, Any] = {}
        self.measurements: list[Measurement] = []
        self.domains: list[Domain] = []
        self.left: list[Left] = []
        self.cases = 0

    def run(self) -> None:
        """Raises ValueError where an engine refuses its options."""
        told, cost = own_costs()
        self._machine = machine() | {"clock_ns": told, "inside_clock_ns": cost}
        for case in self._plan.cases:
            with TemporaryDirectory(prefix="xi-compare-") as folder:
                ready = self._recorded(case, Path(folder)) if isinstance(case, Recorded) else case
                if ready is not None:
                    measured, left = measure(ready, cost, self._tell)
                    self.measurements += measured
                    self.left += left
            self.cases += 1
        if self._plan.domains:
            self._measure_domains()

    def _recorded(self, case: Recorded, folder: Path) -> Case | None:
        """None, and why is told, when the guest cannot be recorded here."""
        from harness.workload.recording import record  # noqa: PLC0415 - QMP, which only this needs

        self._watch("a recording", case.name, self._runs, self._plan.runs)
        try:
            return case.case(record(case.guest, case.paging, folder))
        except (MachineError, TraceError, OSError, ValueError) as error:
            self.left.append(Left(ALL, case.name, str(error), False))
            return None

    def _measure_domains(self) -> None:
        try:
            self.domains += measure_domains(self._plan.rounds, Domains(), self._tell)
        except WorkloadError as error:
            self.left.append(Left(self._plan.base, DOMAINS, str(error), True))

    def _tell(self, label: str, title: str) -> None:
        self._runs += 1
        self._watch(label, title, self._runs, self._plan.runs)

    def comparison(self, interrupted: bool = False) -> Comparison:
        """All that was measured so far."""
        return Comparison(
            command=self._command,
            base=self._plan.base,
            rounds=self._plan.rounds,
            quick=self._plan.quick,
            machine=self._machine,
            measurements=tuple(self.measurements),
            domains=tuple(self.domains),
            left=tuple(self.left),
            seconds=time.monotonic() - self._began,
            interrupted=interrupted,
        )


def machine() -> dict[str, Any]:
    """Where this runs."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")
