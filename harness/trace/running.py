"""Running a trace: its records one after another, what the engine raises, and what differs."""

from __future__ import annotations

import gc
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from harness.engine import EngineConfig, MachineMemory, ShadowEngine
from harness.intercept.events import EventLog
from harness.trace import records as r
from harness.trace.memory import Pending, ReplayMemory
from harness.trace.reader import Trace, TraceError
from harness.trace.tally import ANSWERS, Difference, Tally
from harness.trace.walks import shadow_rows
from harness.x86.control import ControlState
from harness.x86.walk import Path as WalkPath
from harness.x86.walk import describe, tracer

MakeEngine = Callable[[EngineConfig, MachineMemory], ShadowEngine]
Watch = Callable[["Running"], None]

LOOK_EVERY: Final = 1024  # records between two calls of `Running.watch`


class Running:
    """Runs `trace` through the engine that `make_engine` makes of its configuration, options replaced by `options`.
    What becomes of each record says the subclass (`handlers`).

    follow: the trace is still being written, `run` goes as far as it is by then. watch: called now and then while it
    runs.

    engine, memory, state: as they are at the last record that was handled. events: the log of events; rip: of the last
    one that had one. number: of records handled. pending: the guest's changes that it has not flushed. raises: what the
    call that comes, or is made just now, raised when it was recorded. ended: whether all of the trace was handled.
    damaged: whether it can be read up to here only. broken: why the replay cannot go on, if it cannot. seconds: spent
    in `run`. calls: by the class of the record. tally: what was compared, and what differs.
    """

    exact = True  # whether all the engine does must be as it was recorded

    def __init__(self, trace: Trace, make_engine: MakeEngine, options: dict[str, str], follow: bool = False) -> None:
        """Raises TraceError for a machine that there cannot be, ValueError where the engine refuses its options."""
        header = trace.header
        self.trace = trace
        self.options = options
        try:
            self.memory = ReplayMemory(header.memory_frames, header.config)
        except (ValueError, IndexError, OverflowError, OSError, MemoryError) as error:
            what = f"{header.memory_frames} frames of machine memory"
            raise TraceError(f"{trace.path}: {what} cannot be had here: {error}") from error
        config = replace(header.config, options=options)
        self.engine = make_engine(config, self.memory)
        self.phys_bits = config.phys_bits
        self.state = ControlState()
        self.events = EventLog()
        self.rip = 0
        self.number = 0
        self.tally = Tally()
        self.pending = Pending()
        self.pending.enter(self.state.mode)
        self.calls: Counter[type] = Counter()
        self.raises = ""
        self.seconds = 0.0
        self.ended = False
        self.damaged = False
        self.broken = ""
        self.watch: Watch | None = None
        self._follow = follow
        self._records: Iterator[r.Record | None] = trace.follow() if follow else trace.records()
        self._held: r.Record | None = None
        self._tracer: tuple[ControlState, Callable[[int], WalkPath]] | None = None

    def handlers(self) -> dict[type, Callable[[Any], None]]:
        """What is done with a record, by its class."""
        raise NotImplementedError

    @property
    def event(self) -> int:
        """Number of the last event that was handled, -1 before the first."""
        return self.events.total - 1

    @property
    def settled(self) -> bool:
        """Whether everything that came of that event was handled: the trace says that the next one follows, or none."""
        return self.ended or self._held is not None

    # ---- running

    def run(self, stop_at: int | None = None) -> None:
        """Goes on until event number `stop_at` was handled, with all that came of it, or to the end of the trace.

        Raises TraceError where the trace is damaged.
        """
        began = time.perf_counter()
        collects = gc.isenabled()
        gc.disable()  # nothing here makes cycles, and a full collection takes some 25 ms
        try:
            self._run(stop_at)
        finally:
            if collects:
                gc.enable()
            self.seconds += time.perf_counter() - began

    def _run(self, stop_at: int | None) -> None:
        records, calls = self._records, self.calls
        handlers = self.handlers() | {r.Intercepted: self._event, r.Raised: self._raised_next, r.End: self._end}
        intercepted = r.Intercepted
        while not self.broken and not self.ended:
            record = self._held
            if record is None:
                try:
                    record = next(records, None)
                except TraceError:
                    self.damaged = True
                    raise
                if record is None:
                    self.ended = not self._follow
                    return
            self._held = None
            kind = type(record)
            if kind is intercepted and stop_at is not None and self.event >= stop_at:
                self._held = record
                return
            calls[kind] += 1
            try:
                handlers[kind](record)
            except TraceError:
                self.damaged = True
                raise
            except Exception as error:
                self._raised(record, error)
            if self.raises and kind is not r.Raised:
                self._did_not_raise()
            self.number += 1
            if not self.number % LOOK_EVERY and self.watch is not None:
                self.watch(self)

    def _event(self, record: r.Intercepted) -> None:
        self.events.add(*record[1:])
        if record.rip:
            self.rip = record.rip

    def _end(self, _: r.End) -> None:
        self.ended = True

    def must_fit(self, fits: bool) -> None:
        """Raises TraceError unless the record at hand `fits` the machine of the header."""
        if not fits:
            raise TraceError(f"{self.trace.path}: record {self.number} does not fit the header: the file is damaged")

    def _raised(self, record: r.Record, error: Exception) -> None:
        """The engine raised. It may have when the trace was recorded, too."""
        said = f"{type(error).__name__}: {error}"
        expected, self.raises = self.raises, ""
        self.tally.compared[ANSWERS] += 1
        if self._same_exception(expected, said):
            return
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}"
        call = type(record).__name__
        self.broken = f"the engine raised {said} ({where})"
        before = f"raised {expected}" if expected else "did not raise"
        answers = [("recorded", before), ("replayed", f"raised {said} ({where})")]
        va = getattr(record, "va", -1)
        self.differs(ANSWERS, f"{call} raised {type(error).__name__}", answers, va)

    def _same_exception(self, expected: str, said: str) -> bool:
        return expected == said

    def _raised_next(self, record: r.Raised) -> None:
        self.raises = record.text

    def _did_not_raise(self) -> None:
        """The call that was just made raised when it was recorded."""
        expected, self.raises = self.raises, ""
        self.tally.compared[ANSWERS] += 1
        if self.exact:
            self.differs(ANSWERS, "a call did not raise", [("recorded", f"raised {expected}"), ("replayed", "went on")])

    # ---- what is told of

    def path(self, va: int) -> WalkPath:
        """Where the guest's own tables lead for `va`, by the memory of the replay as it is now."""
        if self._tracer is None or self._tracer[0] != self.state:
            self._tracer = (self.state, tracer(self.state, self.memory.read_guest, self.phys_bits))
        return self._tracer[1](va)

    def differs(self, check: str, what: str, answers: list[tuple[str, str]], va: int = -1) -> None:
        """Takes down a difference, with the walks of `va` if it has one."""
        one = Difference(check, self.event, self.number, what, answers, va)
        if va >= 0 and not self.tally.full(check):
            one.guest_walk = describe(self.path(va))
            try:
                one.shadow_walk = shadow_rows(self, va)
            except Exception as error:  # an engine that is broken enough has no root to walk from
                one.answers = [*answers, ("shadow", f"cannot be walked: {type(error).__name__}: {error}")]
        self.tally.add(one)
