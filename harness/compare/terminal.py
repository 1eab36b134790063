"""A comparison for people: the tables, and the verdicts below them, where the eye is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from harness.compare.measurement import FAULT_KINDS, Comparison, Measurement, OperationFigures
from harness.compare.tables import Growth, Row, growths, operation_rows, ratio, row_of, whole_rows
from harness.compare.verdicts import size, verdicts
from harness.report.text import duration, one_line

if TYPE_CHECKING:
    from rich.console import Console

NONE: Final = "-"
WIDEST: Final = 240  # columns that a table may have
BASE: Final = "xi"
TUNED: Final = " XI's fault path is tuned Python and the others' is not, which flatters XI in time, but not in words."
_GROWN: Final = (("words", "words_per_call"), ("µs p50", "p50_us"), ("µs mean", "us_per_call"))


def print_comparison(console: Console, comparison: Comparison) -> None:
    """All of it: what stands where, operations by engines, growth, memory, policies, domains, what is missing, and the
    verdicts."""
    for part in (heading, *_TABLES, _left, _verdicts):
        blocks = list(part(comparison))
        for block in blocks:
            if isinstance(block, Text):
                console.print(block, soft_wrap=True)
            else:
                _print_whole(console, block)
        if blocks:
            console.print()


def _print_whole(console: Console, table: Table) -> None:
    """On a narrow terminal lines are folded, but no number is cut off."""
    width = console.width
    console.width = max(width, WIDEST)
    try:
        console.print(table, crop=False)
    finally:
        console.width = width


def titled_tables(comparison: Comparison) -> Iterator[tuple[str, Table]]:
    """The tables alone, each with its title, for whoever shows them elsewhere."""
    for part in _TABLES:
        title = ""
        for block in part(comparison):
            if isinstance(block, Table):
                yield title, block
            else:
                title = block.plain


# Cells.


def count(value: float | None) -> str:
    """Thousands apart; a fraction to one place below 1000. ``-`` for what is not known."""
    if value is None:
        return NONE
    return f"{value:,.1f}" if value != int(value) and abs(value) < 1000 else f"{value:,.0f}"


def times(value: float | None) -> str:
    """A ratio: ``3.1×``; with three places below 0.1."""
    if value is None:
        return NONE
    return f"{value:,.0f}×" if value >= 100 else f"{value:.3f}×" if value < 0.1 else f"{value:.2f}×"


def milliseconds(us: float | None) -> str:
    return NONE if us is None else f"{us / 1000:,.1f}"


def _title(text: str) -> Text:
    return Text(text, style="bold")


def _table(*columns: str, left: int = 2) -> Table:
    """left: how many columns, from the first, hold words."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True)
    return table


# The parts.


def heading(comparison: Comparison) -> Iterator[Text]:
    machine = comparison.machine
    clock = machine.get("clock_ns")
    count_of = f"{len(comparison.measurements)} measurements in {duration(comparison.seconds)}"
    where = f"{one_line(str(machine.get('processor', 'an unknown processor')))}, Python {machine.get('python', '?')}"
    yield Text(f"{', '.join([*comparison.engines, count_of])} on {where}")
    yield Text(
        "Words are 8-byte words of tables touched: SPTEs visited and written, guest entries compared, words zeroed or "
        "copied. They are exact, and the same in every run."
    )
    yield Text(
        "Times are those of Python here and now, without what other processes took, each call's fastest of "
        f"{_rounds(comparison.rounds)}{_of_clock(clock)}: read them as ratios."
        f"{TUNED if BASE in comparison.engines else ''}"
    )


def _rounds(count: int) -> str:
    return "one round" if count == 1 else f"{count} rounds (policies, and sizes beside the usual one: of one)"


def _of_clock(ns: object) -> str:
    return f", the clock's own {ns / 1000:.2f} µs included" if isinstance(ns, (int, float)) else ""


def _operations(comparison: Comparison) -> Iterator[Table | Text]:
    base, labels = comparison.base, comparison.engines
    rows = operation_rows(comparison, labels)
    if not rows:
        return
    yield _title("Operations (words, pages, µs: of one call; ×: all calls together, by those of " + base + ")")
    table = _table(
        *("operation", "engine", "calls", "words", "most", "pages", "p50 µs", "p99 µs", "total ms", "work", "time")
    )
    for row in rows:
        for number, (label, cell) in enumerate(row.cells.items()):
            name = _operation_name(row) if not number else f"  on {row.workload}" if number == 1 else ""
            table.add_row(name, label, *_figures(row, label, base, cell))
    yield table


def _operation_name(row: Row) -> str:
    return f"  {row.operation.partition('.')[2]}" if row.operation in FAULT_KINDS else row.operation


def _figures(row: Row, label: str, base: str, cell: OperationFigures | None) -> list[str]:
    if cell is None:
        return [NONE] * 9
    own = label == base
    return [
        count(cell.calls),
        count(cell.words_per_call),
        count(cell.most_words),
        NONE if cell.pages_per_call is None else f"{cell.pages_per_call:.3g}",
        count(cell.p50_us),
        count(cell.p99_us),
        milliseconds(cell.total_us),
        "" if own else times(row.ratio(label, base, "words")),
        "" if own else times(row.ratio(label, base, "total_us")),
    ]


def _wholes(comparison: Comparison) -> Iterator[Table | Text]:
    base, labels = comparison.base, comparison.engines
    rows = [row for row in whole_rows(comparison, labels) if any(row.cells.values())]
    if not rows:
        return
    yield _title(
        "All that was asked of each engine, by workload (×: by " + base + "; spread: slowest round by fastest)"
    )
    table = _table("workload", "engine", "calls", "words", "total ms", "work", "time", "spread")
    for row in rows:
        for number, (label, cell) in enumerate(row.cells.items()):
            if cell is not None:
                own = label == base
                table.add_row(
                    "" if number else row.workload,
                    label,
                    count(cell.calls),
                    count(cell.words),
                    milliseconds(cell.total_us),
                    "" if own else times(row.ratio(label, base, "words")),
                    "" if own else times(row.ratio(label, base, "total_us")),
                    times(cell.spread),
                )
    yield table


def _grown(comparison: Comparison) -> Iterator[Table | Text]:
    for growth in growths(comparison, comparison.engines):
        yield _title(f"Growth: {growth.operation} on {growth.workload}, by {growth.knob} (of one call)")
        table = _table("", "engine", *(f"{each:,g}" for each in growth.sizes), "last by first")
        for what, attribute in _GROWN:
            for number, label in enumerate(growth.cells):
                cells = _grown_cells(growth, label, attribute)
                if any(cell != NONE for cell in cells):
                    table.add_row("" if number else what, label, *cells, times(growth.factor(label, attribute)))
        yield table


def _grown_cells(growth: Growth, label: str, attribute: str) -> list[str]:
    cells = (growth.cell(label, each) for each in growth.sizes)
    return [count(getattr(cell, attribute)) if cell is not None else NONE for cell in cells]


def _memory(comparison: Comparison) -> Iterator[Table | Text]:
    chosen = [growth for growth in growths(comparison, comparison.engines) if growth.knob == "pages"]
    for growth in chosen[:2]:
        yield _title(f"Memory on {growth.workload}, by {growth.knob}: when most was in use, and what is reserved")
        table = _table("engine", "", *(f"{each:,g}" for each in growth.sizes))
        for label, cells in growth.cells.items():
            for what in ("used", "reserved"):
                held = [_held(cells.get(each), what) for each in growth.sizes]
                if any(cell != NONE for cell in held):
                    table.add_row(label if what == "used" else "", what, *held)
        yield table


def _held(one: Measurement | None, what: str) -> str:
    if one is None or one.peak is None:
        return NONE
    amount: int = getattr(one.peak, what)
    return size(amount) if amount else NONE


def _policies(comparison: Comparison) -> Iterator[Table | Text]:
    varied = [label for label in comparison.labels if label not in comparison.engines]
    if not varied:
        return
    engine = varied[0].partition(" ")[0]
    labels = [engine, *(label for label in varied if label.partition(" ")[0] == engine)]
    yield _title(f"Policies of {engine}: words of one call, and × the time of all calls under its defaults")
    names = [label.partition(" ")[2] or "defaults" for label in labels]
    table = _table("operation", "on", *names)
    for row in operation_rows(comparison, labels[1:], kinds=False):
        usual = row_of(comparison, row.operation, row.workload, [engine]).cells[engine]
        cells = [usual, *(row.cells[label] for label in labels[1:])]
        table.add_row(row.operation, row.workload, *_policy_cells(cells))
    for workload in comparison.workloads:
        found = [comparison.find(label, workload) for label in labels]
        if all(one is not None and one.peak is not None for one in found):
            table.add_row("memory in use", workload, *(_held(one, "used") for one in found))
            table.add_row("reserved", workload, *(_held(one, "reserved") for one in found))
            break
    yield table


def _policy_cells(cells: Sequence[OperationFigures | None]) -> Iterable[str]:
    usual = cells[0]
    for number, cell in enumerate(cells):
        if cell is None:
            yield NONE
        elif not number or usual is None:
            yield count(cell.words_per_call)
        else:
            yield f"{count(cell.words_per_call)} {times(ratio(cell.first_us, usual.first_us)):>7}"


def _domains(comparison: Comparison) -> Iterator[Table | Text]:
    if not comparison.domains:
        return
    yield _title("A quiet domain's faults, alone and beside another")
    table = _table("pool", "neighbour", "faults", "words", "p50 µs", "p99 µs", "total ms")
    for one in comparison.domains:
        cell = one.faults
        table.add_row(
            *(one.pool, one.neighbour, count(cell.calls), count(cell.words_per_call)),
            *(count(cell.p50_us), count(cell.p99_us), milliseconds(cell.total_us)),
        )
    yield table


def _left(comparison: Comparison) -> Iterator[Text]:
    for one in comparison.left:
        what = "WRONG" if one.wrong else "not measured"
        yield Text(
            f"{what}: {one.label} on {one.workload}: {one_line(one.reason)}", style="bold red" if one.wrong else ""
        )


def _verdicts(comparison: Comparison) -> Iterator[Text]:
    for verdict in verdicts(comparison):
        held = "" if verdict.holds is None else " It holds." if verdict.holds else " It does not hold."
        text = Text(f"{verdict.topic}: ", style="bold")
        text.append(f"“{verdict.claim}”.{held} ", style="not bold")
        text.append(verdict.text, style="not bold")
        yield text


_TABLES: Final = (_operations, _wholes, _grown, _memory, _policies, _domains)
