"""Recorded runs as workloads: what a real guest did, through any engine.

Every engine, the recorded one too, gets what the guest did and not the calls that one engine had of it
(`harness.trace.neutral`). A trace that was recorded in live mode shadows on demand, one of observe mode fills eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from harness.engine import EngineConfig, MachineMemory, ShadowEngine
from harness.trace import records as r
from harness.trace.neutral import NeutralReplay
from harness.trace.reader import Trace, open_trace
from harness.workload.verify import check_audit
from harness.workload.workload import (
    ASIDE,
    DONE,
    FRAMES_PER_TABLE,
    MEASURED,
    WARM_UP,
    MakeEngine,
    Mark,
    Value,
    WorkloadError,
    pool_frames,
    unmarked,
)

# What the harness asks of an engine, and not the guest; and what it asks to watch the guest, which a replay need not.
_LOOKS: Final = (r.Audit, r.Unexplained)
_WATCHES: Final = (r.WatchChanges, r.ExecutableChanges)


class TraceWorkload:
    """The trace in the file `path` (`harness.workload.workload.Workload`). All of it is measured, from the guest's
    first instruction on, but for what a check of the recorded run asked and for the audits and walks of the replay.

    Raises TraceError for a file that is no trace, or none that can be read.
    """

    def __init__(self, path: Path) -> None:
        self._trace = open_trace(path)
        header = self._trace.header
        self.name = f"trace:{header.guest}/{header.paging}"
        self.description = f"a recorded run of {header.guest} {header.paging} in mode {header.mode}"
        self.knobs: Mapping[str, Value] = {"mode": header.mode, "seed": header.seed, "recorded_with": header.engine}
        self.facts: Mapping[str, int] = {"frames": header.config.frames}

    def run(self, make: MakeEngine, mark: Mark = unmarked) -> None:
        """See `Workload`. Raises TraceError where the file is damaged."""
        replay = _MarkedReplay(self._trace, _with_room(make), mark)
        mark(WARM_UP)
        mark(MEASURED)
        replay.run()
        mark(DONE)
        self.facts = {**self.facts, "tables": len(replay.engine.guest_tables())}
        if replay.broken:
            raise WorkloadError(f"{self.name}, event {replay.event}: {replay.broken}")
        if replay.tally.wrong:
            first = replay.tally.first(1)[0]
            answers = "; ".join(f"{who}: {answer}" for who, answer in first.answers)
            raise WorkloadError(f"{self.name}, event {first.event}: {first.check}: {first.what}: {answers}")
        check_audit(replay.engine)


def _with_room(make: MakeEngine) -> MakeEngine:
    """`make` with a pool for as many shadow tables as the recorded run's had, whose size is given in those of XI."""

    def made(config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
        return make(replace(config, pool_frames=pool_frames(make, config.pool_frames // FRAMES_PER_TABLE)), memory)

    return made


class _MarkedReplay(NeutralReplay):
    """A replay that marks ASIDE what is not the guest's doing."""

    def __init__(self, trace: Trace, make: MakeEngine, mark: Mark) -> None:
        self._checked_stops = _checked_stops(trace)
        self._mark = mark
        super().__init__(trace, make, {})

    def handlers(self) -> dict[type, Callable[[Any], None]]:
        handlers = super().handlers()
        handlers |= {kind: self._aside(handlers[kind]) for kind in _LOOKS}
        return handlers | dict.fromkeys(_WATCHES, _nothing)

    def _aside(self, handler: Callable[[Any], None]) -> Callable[[Any], None]:
        def asked(record: r.Record) -> None:
            self._mark(ASIDE)
            handler(record)
            self._mark(MEASURED)

        return asked

    def _arrive(self, record: r.Checkpoint) -> None:
        self._mark(ASIDE)
        super()._arrive(record)
        if record.number not in self._checked_stops:
            self._mark(MEASURED)

    def _checked(self, record: r.Checked) -> None:
        super()._checked(record)
        self._mark(MEASURED)


def _nothing(record: r.Record) -> None:
    del record


def _checked_stops(trace: Trace) -> set[int]:
    """Numbers of the checkpoints at which the recorded run was checked: the engine's calls up to the end of the check
    are its probes."""
    found = set()
    number = -1
    for record in trace.records():
        if isinstance(record, r.Checkpoint):
            number = record.number
        elif isinstance(record, r.Checked):
            found.add(number)
    return found
