"""Recording a run: its engine, memory and event log, each in a cover that writes down what passes.

An engine is driven by what it is told and by what it reads. So every call is written with its answer, and of machine
memory what the engine reads and a replay would not have: a copy of the memory holds what the trace says so far, each
read is compared with it, and what differs is written in front of the call that reads it.
"""

from __future__ import annotations

import os
import re
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from harness.check.target import CheckReport, Stop
from harness.engine import EngineConfig, MachineMemory, ShadowEngine
from harness.intercept.events import EventLog
from harness.trace.format import FINAL, PACK, STALE, Header, Kind, tailed
from harness.trace.recorded_engine import RecordedEngine
from harness.trace.recorded_memory import record_memory
from harness.trace.writer import TraceWriter

SUFFIX: Final = ".xitrace"
MOST_RUN: Final = 1 << 13  # words that the writer holds back


class RecordingLog(EventLog):
    """An event log that writes each event to a trace as well."""

    def __init__(self, writer: TraceWriter) -> None:
        super().__init__()
        self._writer = writer

    def add(self, kind: str, rip: int, value: int, text: str = "") -> None:
        EventLog.add(self, kind, rip, value, text)  # `super()` takes as long as the rest
        writer = self._writer
        if writer.event is not None or len(writer.run) >= MOST_RUN:
            writer.settle()
        writer.event = kind, rip, value, text


class Recorder:
    """The trace of one run, in a file without a name until it is kept. log: to be used from the first event on.

    A trace that cannot be written is lost, and the run goes on: `lost` says why.
    """

    def __init__(
        self,
        folder: Path,
        header: Header,
        make_engine: Callable[[EngineConfig, MachineMemory], ShadowEngine],
        memory: MachineMemory,
    ) -> None:
        """folder: where there is room for the trace. Raises what `make_engine` does."""
        self.header = header
        self._writer = TraceWriter(folder, header)
        self.log: EventLog = RecordingLog(self._writer)
        self._memory = record_memory(memory, self._writer)
        self._engine = RecordedEngine(make_engine(header.config, self._memory), header.config, self._writer)
        self._failures = 0  # of audits, as of the last CHECKED

    @property
    def engine(self) -> ShadowEngine:
        """The engine, to be used in place of what `make_engine` made."""
        return cast(ShadowEngine, self._engine)

    @property
    def lost(self) -> str:
        """Why the trace could not be written or kept, else empty."""
        return self._writer.lost

    def checkpoint(self, stop: Stop) -> None:
        """The guest stands at `stop`, and is not checked yet."""
        crc = self._settle()
        state = stop.state
        flags = STALE * stop.stale | FINAL * stop.final
        fields = stop.index, flags, crc, state.cr0, state.cr3, state.cr4, state.efer, state.pkru
        self._writer.put(tailed(Kind.CHECKPOINT, *fields, tail=stop.name.encode(errors="replace")))

    def checked(self, report: CheckReport) -> None:
        """The check at that checkpoint is over."""
        crc = self._settle()
        failures = self._engine.audit_failures
        fields = sum(report.checks.values()), len(report.mismatches), failures - self._failures, crc
        self._failures = failures
        self._writer.put(PACK[Kind.CHECKED](Kind.CHECKED, *fields))

    def _settle(self) -> int:
        """Brings the guest's tables in the trace up to date. The CRC-32 of the pool."""
        self._engine.begin()
        for mfn in self._engine.table_mfns():
            self._memory.page(mfn)
        return zlib.crc32(self._engine.pool[1].data)

    @property
    def path(self) -> Path:
        """Where the trace can be read while it is written (`harness.trace.reader.Trace.follow`), in this process."""
        return self._writer.path

    def flush(self) -> None:
        """Writes all records so far, for who reads them by `path`."""
        self._writer.flush()

    def finish(self, verdict: str, reason: str) -> None:
        """The run is over: nothing is written after this."""
        self._writer.end(verdict, reason, self.log.total)

    def keep(self, path: Path) -> None:
        """Writes the trace to `path`, after `finish`; where that cannot be, `lost` says why."""
        self._writer.keep(path)

    def keep_in(self, folder: Path) -> Path | None:
        """Writes the trace to a new file in `folder`, named after the run. None, and `lost` says why, if it cannot."""
        header = self.header
        name = f"{header.guest}-{header.paging}-{header.mode}-seed{header.seed}-"
        try:
            handle, path = tempfile.mkstemp(SUFFIX, re.sub(r"[^A-Za-z0-9._-]+", "-", name), folder)
        except OSError as error:
            self._writer.lose(error)
            return None
        os.close(handle)
        self.keep(Path(path))
        if self.lost:
            os.unlink(path)
            return None
        return Path(path)

    def close(self) -> None:
        """Nothing is left of what was not kept."""
        self._writer.close()
