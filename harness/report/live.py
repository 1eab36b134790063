"""The report while it happens: a live table on a terminal, a line per finished run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.report.record import RunRecord
from harness.report.terminal import heading, row
from harness.report.text import duration, one_line

if TYPE_CHECKING:
    from harness.batch import Observer
    from harness.jobs import Job
    from harness.options import Progress


class PlainLines:
    """For pipes and log files: the heading once, then a line for each run, in the order of the batch.

    A run that ends before one that was started earlier waits for its turn.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0
        self._held: dict[int, RunRecord] = {}

    def started(self, number: int, job: Job) -> None:
        pass

    def progressed(self, number: int, progress: Progress) -> None:
        pass

    def tick(self) -> None:
        pass

    def finished(self, number: int, record: RunRecord) -> None:
        self._held[number] = record
        while self._next in self._held:
            self._print(self._next)

    def close(self) -> None:
        """Prints what is still held back, when the batch was cut short."""
        for number in sorted(self._held):
            self._print(number)

    def _print(self, number: int) -> None:
        if not self._next:
            self._console.print(heading(), soft_wrap=True)
        self._console.print(row(self._held.pop(number)), soft_wrap=True)
        self._next = number + 1


class LiveLines(PlainLines):
    """For terminals: finished runs scroll up as lines; below them the runs under way, and how far all is."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console)
        self._total = total
        self._done = 0
        self._wrong = 0
        self._began = time.monotonic()
        self._running: dict[int, tuple[Job, float, Progress | None]] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def started(self, number: int, job: Job) -> None:
        self._running[number] = (job, time.monotonic(), None)

    def progressed(self, number: int, progress: Progress) -> None:
        if number in self._running:
            job, began, _ = self._running[number]
            self._running[number] = (job, began, progress)

    def finished(self, number: int, record: RunRecord) -> None:
        self._running.pop(number, None)
        self._done += 1
        self._wrong += not record.as_expected
        super().finished(number, record)

    def tick(self) -> None:
        self._live.update(self._picture(), refresh=True)

    def start(self) -> None:
        self._live.start()

    def close(self) -> None:
        self._live.stop()
        super().close()

    def _picture(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for width in (18, 7, 7, 34, 13, 16):  # fixed, so that the columns do not dance; the rest as needed
            table.add_column(width=width, no_wrap=True)
        now = time.monotonic()
        for _, record in sorted(self._held.items()):
            table.add_row(record.guest, record.paging, record.mode, record.verdict)
        for job, began, progress in self._running.values():
            table.add_row(job.name, job.paging, job.mode, *_cells(progress), duration(now - began))
        wrong = f", {self._wrong} not as expected" if self._wrong else ""
        line = f"{self._done} of {self._total} runs done{wrong}, {duration(now - self._began)}"
        return Group(table, Text(line, style="dim"))


def _cells(progress: Progress | None) -> tuple[str, str, str, str]:
    if progress is None:
        return ("starting", "", "", "")
    phase = f"{progress.phase} {progress.checkpoint}".strip()
    wrong = f"{progress.mismatches:,} wrong" if progress.mismatches else ""
    return (one_line(phase, 40), f"{progress.events:,} events", f"{progress.checks:,} checks", wrong)


@contextmanager
def observer(console: Console, total: int) -> Iterator[Observer]:
    """The observer that fits `console`: live on a terminal, plain lines otherwise.

    On the way out the terminal is as it was: cursor shown, no half-drawn table.
    """
    if console.is_terminal and not console.is_dumb_terminal:
        live = LiveLines(console, total)
        live.start()
        lines: PlainLines = live
    else:
        lines = PlainLines(console)
    try:
        yield lines
    finally:
        lines.close()
