"""Lines and tables for people: the run table, the summary, the catalogue.

Rows have fixed columns, so that the table reads the same live, in a pipe and in a log file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TextIO

from rich.console import Console
from rich.text import Text

from harness.report import live_run
from harness.report.error_log import TRACEBACK
from harness.report.failure import SHOWN, failure_block
from harness.report.record import RunRecord
from harness.report.summary import Totals
from harness.report.text import duration, one_line

if TYPE_CHECKING:
    from harness.catalogue import Guest

# (heading, width, alignment)
COLUMNS: Final = (
    ("guest", 18, "<"),
    ("paging", 7, "<"),
    ("mode", 7, "<"),
    ("verdict", 19, "<"),
    ("stops", 5, ">"),
    ("events", 8, ">"),
    ("checks", 9, ">"),
    ("wrong", 6, ">"),
    ("seconds", 8, ">"),
)
VERDICT: Final = 3  # its column
VERDICT_STYLE: Final = {"pass": "green", "skip": "yellow"}


def make_console(stream: TextIO) -> Console:
    """A console that never guesses: no markup, no emoji, no highlighting of numbers.

    In a pipe the width is fixed, so that lines are not folded at 80 columns.
    """
    columns = os.environ.get("COLUMNS", "")
    piped = int(columns) if columns.isdecimal() and int(columns) > 0 else 160
    width = None if stream.isatty() else piped
    return Console(file=stream, markup=False, emoji=False, highlight=False, width=width)


def heading() -> Text:
    return Text(_row([name for name, _, _ in COLUMNS]), style="bold")


def row(record: RunRecord) -> Text:
    """One finished run on one line. What else there is to say of a run that ended as expected (a kernel's time limit,
    a crash) follows; of the others the failure block tells."""
    verdict = record.verdict
    if record.verdict not in (record.expected, "skip"):
        verdict = f"{record.verdict} (not {record.expected})"
    wrong = record.mismatches + record.audit_failures + record.interception_misses
    line = _row(
        [
            record.guest,
            record.paging,
            record.mode,
            verdict,
            str(record.checkpoints),
            f"{record.intercepted:,}",
            f"{sum(record.checks.values()):,}",
            f"{wrong:,}",
            f"{record.seconds:.2f}",
        ]
    )
    if record.as_expected and record.reason:
        line += f"  {one_line(record.reason)}"
    text = Text(line, no_wrap=True, overflow="ellipsis")
    start = sum(width + 2 for _, width, _ in COLUMNS[:VERDICT])
    text.stylize(verdict_style(record), start, start + COLUMNS[VERDICT][1])
    return text


def verdict_style(record: RunRecord) -> str:
    """A crash that was expected is as good as a pass."""
    if record.as_expected:
        return VERDICT_STYLE.get(record.verdict, "green")
    return "bold red"


def _row(cells: Sequence[str]) -> str:
    parts = []
    for (_, width, align), cell in zip(COLUMNS, cells, strict=True):
        parts.append(f"{one_line(cell, width):{align}{width}}")
    return "  ".join(parts).rstrip()


def summary(records: Sequence[RunRecord], wall_seconds: float) -> str:
    """The totals, three lines: what ran, what was done, and what the checks found."""
    totals = Totals.of(records)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(totals.verdicts.items()))
    as_expected = totals.runs - totals.unexpected
    ran = f"{_counted(totals.runs, 'run')} ({verdicts or 'none'})"
    first = f"{ran}, {as_expected} as expected, in {duration(wall_seconds)}"
    return (
        f"{first}\n{_counted(totals.events, 'event')} intercepted, {_counted(totals.faults, 'shadow fault')} handled; "
        f"{_counted(totals.checks['probe'], 'probe check')}, {_counted(sum(totals.checks.values()), 'check')} in all\n"
        f"{_counted(totals.mismatches, 'mismatch', 'mismatches')}, {_counted(totals.audit_failures, 'audit failure')}, "
        f"{_counted(totals.interception_misses, 'interception miss', 'interception misses')}"
    )


def live_lines(records: Sequence[RunRecord]) -> list[str]:
    """A table of what live mode adds, a line for each run that ran in it, and why it was slow if it was; nothing when
    no run was live."""
    chosen = live_run.ran_live(records)
    if not chosen:
        return []
    rows = [[name for name, _, _ in live_run.COLUMNS], *map(live_run.cells, chosen)]
    names = [("live mode", ""), *((record.guest, record.paging) for record in chosen)]
    table = [_live_row(*name, row) for name, row in zip(names, rows, strict=True)]
    return [*table, *map(one_line, live_run.remarks(chosen))]


def _live_row(guest: str, paging: str, cells: Sequence[str]) -> str:
    (_, first, _), (_, second, _) = COLUMNS[:2]
    parts = [f"{one_line(guest, first):{first}}", f"{one_line(paging, second):{second}}"]
    parts += [f"{cell:>{width}}" for cell, (_, width, _) in zip(cells, live_run.COLUMNS, strict=True)]
    return "  ".join(parts)


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def allowed(records: Sequence[RunRecord]) -> str:
    """The named exceptions that were allowed, on one line with counts; empty when there were none."""
    counts: dict[str, int] = {}
    for record in records:
        for name, count in record.exceptions.items():
            counts[name] = counts.get(name, 0) + count
    if not counts:
        return ""
    return "allowed by name: " + ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def print_report(console: Console, records: Sequence[RunRecord], wall_seconds: float) -> None:
    """The end of a terminal report: failure blocks first, totals last, where the eye is.

    One failing run is shown at length, several with one mismatch each (the report files have more). Runs that
    failed for the same machine-side reason (QEMU not installed, say) share one block.
    """
    blocks: dict[tuple[str, str], RunRecord] = {}
    repeated: dict[tuple[str, str], int] = {}
    for record in records:
        if record.as_expected:
            continue
        shared = record.verdict == "error" and record.reason
        key = ("", record.reason.split(TRACEBACK)[0]) if shared else (record.guest, record.paging)
        repeated[key] = repeated.get(key, -1) + 1
        blocks.setdefault(key, record)
    shown = SHOWN if len(blocks) == 1 else 1
    for key, record in blocks.items():
        console.print()
        console.print(Text(failure_block(record, shown)), soft_wrap=True)
        if repeated[key]:
            console.print(Text(f"(and {repeated[key]} more runs for the same reason)"))
    for number, line in enumerate(live_lines(records)):
        if not number:
            console.print()
        console.print(Text(line, style="" if number else "bold"), soft_wrap=True)
    if records:
        console.print()
    if line := live_run.compared(records):
        console.print(Text(line), soft_wrap=True)
    if line := allowed(records):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(summary(records, wall_seconds)), soft_wrap=True)


def catalogue_lines(guests: Sequence[Guest], modes: Sequence[str]) -> list[str]:
    """Guests down, paging modes across; a cell holds the verdict that must come out, ``-`` where not built."""
    rows = [("guest", *modes, "description")]
    for guest in guests:
        cells = (guest.expected_for(mode) if mode in guest.modes else "-" for mode in modes)
        rows.append((guest.name, *cells, guest.description))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return [
        "  ".join([*(f"{cell:{width}}" for cell, width in zip(row[:-1], widths, strict=True)), row[-1]]) for row in rows
    ]
