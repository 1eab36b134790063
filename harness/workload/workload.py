"""What a workload is: work for one engine, the same for every engine that is made for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from harness.engine import EngineConfig, MachineMemory, ShadowEngine

MakeEngine = Callable[[EngineConfig, MachineMemory], ShadowEngine]
Mark = Callable[[str], None]
Value = str | int | float

# What a workload tells by `Mark`: which part of it begins. MEASURED may begin more than once.
WARM_UP: Final = "warm-up"  # the engine was made; it comes to where the guest has run for a while
MEASURED: Final = "measured"  # what the workload is about: operations from here on count
ASIDE: Final = "aside"  # something that is not the guest's work, until MEASURED goes on
DONE: Final = "done"  # the engine is checked: nothing from here on counts

FRAMES_PER_TABLE: Final = 4  # that an engine gets which does not say how many it needs: as many as XI


class WorkloadError(Exception):
    """The engine gave a wrong answer, or none: its figures would mean nothing."""


class Workload(Protocol):
    """name: of the family, or of the trace. description: one line. knobs: what decides the run, by name. facts: how
    large the guest is when the measured part begins: pages (mapped by its processes), tables (guest page tables),
    spaces, frames; as far as they are known."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def knobs(self) -> Mapping[str, Value]: ...

    @property
    def facts(self) -> Mapping[str, int]: ...

    def run(self, make: MakeEngine, mark: Mark = ...) -> None:
        """All of it, through an engine that `make` makes; `mark` is told which part begins.

        Raises WorkloadError when the engine is wrong: at an access, or in the checks at the end.
        """


def unmarked(part: str) -> None:
    """The `Mark` of who does not measure."""
    del part


def pool_frames(make: MakeEngine, tables: int) -> int:
    """4 KiB frames for a pool of `tables` shadow tables.

    Engines are compared with room for the same number of shadow tables, not with the same memory: XI's tables take four
    frames each, with what belongs to them, and other engines have that elsewhere. An engine class says how many its
    tables take in an attribute ``frames_per_table``; without one it gets as many as XI.
    """
    return tables * int(getattr(make, "frames_per_table", FRAMES_PER_TABLE))
