"""What a user can choose for a run, and how a run tells how far it is. Imports nothing heavy."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROBE_BUDGET: Final = 800  # probes a checkpoint


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a user can choose for a run. None: the catalogue's, or the project's, default.

    time_limit in seconds of wall time; probe_budget in probes a checkpoint; kernel, append, initrd: a foreign
    kernel instead of a guest of the catalogue.
    """

    seed: int = 1
    engine: str = "xi"
    time_limit: float | None = None
    log_dir: Path | None = None
    probe_budget: int = PROBE_BUDGET
    kernel: Path | None = None
    append: str | None = None
    initrd: Path | None = None
    memory_mib: int | None = None
    cpu: str | None = None
    paging: str | None = None

    def command(self, guest: str, paging: str) -> str:
        """The command that runs `guest` in mode `paging` (or the kernel: both are ignored) again, to paste."""
        words = ["xi-harness", "run"] + ([] if self.kernel else [guest])
        chosen = (
            ("--kernel", self.kernel),
            ("--append", self.append),
            ("--initrd", self.initrd),
            ("--paging", self.paging if self.kernel else paging),
            ("--seed", self.seed),
            ("--engine", None if self.engine == "xi" else self.engine),
            ("--memory", self.memory_mib),
            ("--cpu", self.cpu),
            ("--time-limit", None if self.time_limit is None else f"{self.time_limit:g}"),
        )
        for name, value in chosen:
            if value is not None:
                words += [name, str(value)]
        return shlex.join(words)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, for who watches."""

    guest: str
    paging: str
    phase: str
    checkpoint: str
    checks: int
    events: int
    mismatches: int
    seconds: float


Watcher = Callable[[Progress], None]
