"""What live mode adds to a report: one row for each run, the same columns on a terminal and on the HTML page; and what
was compared where a guest ran natively too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from harness.report.record import RunRecord

Figures = Mapping[str, Any]
Cell = Callable[[Figures], str]


def _count(name: str) -> Cell:
    return lambda live: f"{live.get(name, 0):,}"


def _pair(first: str, second: str) -> Cell:
    return lambda live: f"{live.get(first, 0):,}/{live.get(second, 0):,}"


def exits(live: Figures) -> int:
    """Exits of the guest, of all kinds together."""
    return sum(live.get("exits", {}).values())


def _pool(live: Figures) -> str:
    share = live.get("pool_share")
    return f"{live.get('pool_sptis', 0):,}" + (f" ({share:.1%})" if share is not None else "")


# (heading, width, what stands below it): `RunRecord.live` says what the fields are
COLUMNS: Final[tuple[tuple[str, int, Cell], ...]] = (
    ("exits", 9, lambda live: f"{exits(live):,}"),
    ("exits/s", 7, _count("exits_per_second")),
    ("injected", 8, _count("faults_injected")),
    ("moved", 6, _count("moved")),
    ("taken/given", 11, _pair("taken", "given")),
    ("log rounds", 10, _count("dirty_rounds")),
    ("zeroed idle/now", 15, _pair("zeroed_idle", "zeroed_inline")),
    ("recycled", 8, _count("recycled")),
    ("pool", 12, _pool),
)


def cells(record: RunRecord) -> list[str]:
    """The cells of one run, in the order of `COLUMNS`."""
    return [cell(record.live) for _, _, cell in COLUMNS]


def by_kind(record: RunRecord) -> list[tuple[str, int]]:
    """(exit, count), most frequent first."""
    return sorted(record.live.get("exits", {}).items(), key=lambda item: (-item[1], item[0]))


def ran_live(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Those of `records` that have something to tell of live mode."""
    return [record for record in records if record.live]


def remarks(records: Sequence[RunRecord]) -> list[str]:
    """What kept runs from being as fast as they can be, each said once."""
    return list(dict.fromkeys(record.live["pinned"] for record in records if record.live.get("pinned")))


def differences(record: RunRecord) -> tuple[list[str], int]:
    """How the native and the live run of `record` differ, a line for each of the first, and how often in all."""
    told = [
        f"{one['field']}, at {one['checkpoint']}{', ' if one['where'] else ''}{one['where']}: "
        f"native {one['native']}, live {one['live']}"
        for one in record.twin.get("differences", [])
    ]
    return told, sum(record.twin.get("counts", {}).values())


def compared(records: Sequence[RunRecord]) -> str:
    """What was held against a native run, all runs together, on one line; empty when nothing was."""
    totals: Counter[str] = Counter()
    for record in records:
        totals.update(record.twin.get("compared", {}))
    if not totals:
        return ""
    found = sum(differences(record)[1] for record in records)
    what = ", ".join(f"{count:,} {name}" for name, count in totals.items())
    return f"compared with native runs: {what}; {found:,} {'difference' if found == 1 else 'differences'}"
