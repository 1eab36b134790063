"""What a user can choose for a run, and how a run tells how far it is. Imports nothing heavy."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

PROBE_BUDGET: Final = 800  # probes a checkpoint

LEAST_POOL: Final = 5  # SPTIs: with fewer XI cannot answer every fault (harness.xi.pool.minimum_sptis)
LARGEST_POOL: Final = 1 << 16  # SPTIs, 1 GiB: 5 % of 20 GiB

Policies = tuple[tuple[str, str], ...]


class Mode(StrEnum):
    """How a guest is run. BOTH is one run of two legs, native and live, that are compared with each other."""

    OBSERVE = "observe"
    LIVE = "live"
    BOTH = "both"


MODES: Final = tuple(mode.value for mode in Mode)
MONITORED: Final = frozenset({Mode.LIVE.value, Mode.BOTH.value})  # those in which a guest runs on the shadow tables


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a user can choose for a run. None: the catalogue's, or the project's, default.

    time_limit in seconds of wall time; probe_budget in probes a checkpoint; kernel, append, initrd: a foreign
    kernel instead of a guest of the catalogue. mode: one of MODES. policies: (name, value) pairs for the engine, or a
    mapping, which becomes pairs in order of their names. In live mode only: pool_spti, the shadow tables that the pool
    has room for; stress, frames move and are taken away while the guest runs, as the seed says. record: the file for
    the run's trace, whatever comes of it (in mode both the live leg's). keep_traces: the folder for the traces of runs
    that fail. With neither nothing is recorded.
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
    mode: str = Mode.OBSERVE.value
    policies: Policies = ()
    pool_spti: int | None = None
    stress: bool = False
    record: Path | None = None
    keep_traces: Path | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a mode that there is none of."""
        if self.mode not in MODES:
            raise ValueError(f"unknown mode {self.mode!r} (known: {', '.join(MODES)})")
        object.__setattr__(self, "policies", tuple(sorted(dict(self.policies).items())))

    @property
    def monitored(self) -> bool:
        """Whether a guest of this run stands under the monitor: Python and QEMU's processor both spin then."""
        return self.mode in MONITORED

    @property
    def trace_folder(self) -> Path | None:
        """Where a trace is written while the run goes on; None: nothing is recorded."""
        return self.keep_traces if self.record is None else self.record.absolute().parent

    def command(self, guest: str, paging: str) -> str:
        """The command that runs `guest` in mode `paging` (or the kernel: both are ignored) again, to paste."""
        return shlex.join(self._words("run", guest, paging, self.mode))

    def debug_command(self, guest: str, paging: str, event: int | None = None) -> str:
        """The command that runs it again under a debugger, up to where event number `event` has been handled. Of mode
        both that is its live leg."""
        mode = Mode.LIVE.value if self.mode == Mode.BOTH else self.mode
        stop = [] if event is None else ["--stop-at", str(event)]
        return shlex.join(self._words("debug", guest, paging, mode) + stop)

    def _words(self, command: str, guest: str, paging: str, mode: str) -> list[str]:
        words = ["xi-harness", command] + ([] if self.kernel else [guest])
        chosen = (
            ("--kernel", self.kernel),
            ("--append", self.append),
            ("--initrd", self.initrd),
            ("--paging", self.paging if self.kernel else paging),
            ("--mode", None if mode == Mode.OBSERVE else mode),
            ("--seed", self.seed),
            ("--engine", None if self.engine == "xi" else self.engine),
            *(("--policy", f"{name}={value}") for name, value in self.policies),
            ("--pool", self.pool_spti),
            ("--memory", self.memory_mib),
            ("--cpu", self.cpu),
            ("--time-limit", None if self.time_limit is None else f"{self.time_limit:g}"),
        )
        for name, value in chosen:
            if value is not None:
                words += [name, str(value)]
        return [*words, "--stress"] if self.stress else words


def parse_policies(words: Sequence[str]) -> Policies:
    """``NAME=VALUE`` words as (name, value) pairs. Raises ValueError, one line for the user."""
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ValueError(f"--policy {word!r}: it has the form NAME=VALUE, such as zeroing=critical-path")
        if pairs.setdefault(name, value) != value:
            raise ValueError(f"--policy {name}: both {pairs[name]} and {value}")
    return tuple(sorted(pairs.items()))


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
