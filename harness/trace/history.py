"""The past of a run by its trace: what its events were, and its tables at any of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from harness.debug.scene import CommandError, Tables
from harness.intercept.events import Event
from harness.trace.exact import Replay
from harness.trace.reader import Trace, TraceError, open_trace
from harness.trace.records import End, Intercepted
from harness.trace.replay import history_replay
from harness.trace.tables import tables_of

_KEPT: Final = 4  # moments whose tables are kept, since two of them are compared


class TraceHistory:
    """`harness.debug.scene.History` over the trace at `path`, which may still be written: `flush` brings into it what
    has happened so far.

    A replay stands at the moment that was asked for last; a later one is reached by going on, an earlier one from the
    beginning.
    """

    def __init__(self, path: Path, flush: Callable[[], None] | None = None) -> None:
        self._path = path
        self._flush = flush
        self._trace: Trace | None = None
        self._replay: Replay | None = None
        self._kept: OrderedDict[int, Tables] = OrderedDict()

    def events(self, first: int, last: int) -> Sequence[Event]:
        """Events number `first` to `last`, both included, as far as there are any. Raises CommandError for a trace that
        cannot be read."""
        found: list[Event] = []
        try:
            for record in self._open().follow():
                if record is None or isinstance(record, End):
                    break
                if isinstance(record, Intercepted) and record.number >= first:
                    if record.number > last:
                        break
                    found.append(Event(*record))
        except TraceError as error:
            raise CommandError(str(error)) from error
        return found

    def tables(self, event: int) -> Tables:
        """The tables once event number `event` was handled. Raises CommandError beyond what is recorded."""
        tables = self._kept.get(event)
        if tables is None:
            try:
                replay = self._at(event)
            except TraceError as error:
                raise CommandError(str(error)) from error
            tables = tables_of(replay)
            if replay.settled:
                self._kept[event] = tables
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return tables

    def _at(self, event: int) -> Replay:
        """A replay that stands where event number `event` was handled."""
        trace = self._open()
        replay = self._replay
        if replay is None or replay.event > event or replay.broken:
            replay = self._replay = history_replay(trace)
        replay.run(event)
        if replay.broken:
            raise CommandError(f"the replay of the recording ends at event {replay.event}: {replay.broken}")
        if replay.event < event:
            raise CommandError(f"event {event} is not recorded: the last one is {replay.event}")
        return replay

    def _open(self) -> Trace:
        if self._flush is not None:
            self._flush()
        if self._trace is None:
            self._trace = open_trace(self._path)
        return self._trace
