"""The failure block: everything that is needed to act on a run that did not end as it must."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from harness.check.render import render
from harness.report import live_run
from harness.report.record import RunRecord
from harness.report.text import one_line, printable

SHOWN: Final = 3  # mismatches shown in full; the JSON report has all that the run kept
REASON_LINES: Final = 20
REASON_WIDTH: Final = 2000  # a QEMU command line fits


def failure_block(record: RunRecord, shown: int = SHOWN) -> str:
    """The block for one run as text, several lines, no colour, no trailing newline.

    In this order: what ran and how it ended; the first `shown` mismatches with the guest walk, the shadow walk
    and the hardware's answer side by side; where the native run went another way; broken invariants; missed
    interceptions; failed TAP lines; the last events; where logs and trace are; commands to paste.
    """
    lines = _headline(record)
    quiet = replace(record, recent_events=[], repro=[])  # said once, at the end
    for mismatch in record.failures[:shown]:
        lines += ["", render(mismatch, quiet).rstrip("\n")]
    hidden = record.mismatches - min(shown, len(record.failures))
    if hidden > 0 and record.failures:
        lines += ["", f"... and {hidden} more mismatches of this run"]
    lines += _section("differences from the native run", *live_run.differences(record))
    lines += _section("broken invariants", record.audit, record.audit_failures)
    lines += _section("changes that no intercepted event explains", record.misses, record.interception_misses)
    lines += _section("failed lines of the guest's console", [text for ok, text in record.tap if not ok])
    lines += _section("last events", record.recent_events, limit=12, newest=True)
    if record.log_dir:
        lines += ["", f"logs kept in {record.log_dir}"]
    if record.trace:
        lines += ["", f"trace kept in {record.trace}"]
    if record.trace_lost:
        lines += ["", f"its trace was lost: {record.trace_lost}"]
    lines += _section("reproduce", record.repro or [reproduce(record)])
    return "\n".join(printable(line) for line in lines)


def reproduce(record: RunRecord) -> str:
    """The command that runs this guest again in the same mode with the same seed."""
    mode = "" if record.mode == "observe" else f" --mode {record.mode}"
    return f"xi-harness run {record.guest} --paging {record.paging}{mode} --seed {record.seed}"


def _headline(record: RunRecord) -> list[str]:
    """What ran and how it ended; a reason of several lines (a lost QEMU's command and stderr) stays so."""
    first, *rest = record.reason.splitlines() or [""]
    ended = f"{record.verdict}, expected {record.expected}" + (f": {one_line(first)}" if first else "")
    what = f"{record.guest} {record.paging} ({record.mode}, engine {record.engine}, seed {record.seed})"
    return [f"{what}: {ended}", *(printable(line[:REASON_WIDTH], frozenset()) for line in rest[:REASON_LINES])]


def _section(title: str, lines: Sequence[str], total: int = 0, limit: int = 8, newest: bool = False) -> Iterator[str]:
    """`title` and at most `limit` of `lines` (the last ones when `newest`), with how many there are in all."""
    if not lines and not total:
        return
    total = max(total, len(lines))
    chosen = lines[-limit:] if newest else lines[:limit]
    count = f" ({total}, {'last' if newest else 'first'} {len(chosen)} shown)" if total > len(chosen) else ""
    yield ""
    yield f"{title}{count}:"
    for line in chosen:
        yield f"  {line}"
