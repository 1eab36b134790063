"""Workloads: what an engine is given to do when it is measured, or compared with another.

Synthetic ones (`families`) are guests in plain memory, decided by a seed and by knobs; their hardware is
`model_mmu.ModelMmu`, which walks the engine's shadow and faults as live mode does. `traces` are recordings of real
runs, and `domains` are two guests beside each other. No clock is read here: a workload tells which part of it counts,
and who measures does the rest.
"""

from __future__ import annotations

from harness.workload.families import SYNTHETIC
from harness.workload.knobs import Knobs
from harness.workload.synthetic import Family
from harness.workload.workload import (
    ASIDE,
    DONE,
    MEASURED,
    WARM_UP,
    MakeEngine,
    Mark,
    Workload,
    WorkloadError,
    unmarked,
)

__all__ = [
    "ASIDE",
    "DONE",
    "MEASURED",
    "SYNTHETIC",
    "WARM_UP",
    "Family",
    "Knobs",
    "MakeEngine",
    "Mark",
    "Workload",
    "WorkloadError",
    "unmarked",
]
