"""Pictures of a comparison, each one figure of matplotlib as SVG.

What a picture needs and was not measured leaves it out: `pictures` holds those that could be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from harness.compare.figures import policy_base, policy_name
from harness.compare.measurement import FAULT, PERCENTS, Comparison
from harness.compare.tables import Growth, focus, growths, home, ratio, short
from harness.compare.verdicts import number
from harness.report.svg import inline_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MAPPED: Final = ("mappings", "faults")  # workloads that grow by mapped pages: the first that was measured is drawn
COLUMNS: Final = 3  # of small pictures beside each other
# Told apart without colour too: https://davidmathlogic.com/colorblind, the palette of Okabe and Ito.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS: Final = "osD^vPX*"


@dataclass(frozen=True, slots=True)
class Picture:
    """name: of its file. caption: what is seen, for a reader who sees no picture as well."""

    name: str
    title: str
    caption: str
    svg: str


def pictures(comparison: Comparison) -> list[Picture]:
    """Those that can be drawn of what was measured, in the order in which they are read."""
    found = (draw(comparison) for draw in _DRAWN)
    return [picture for picture in found if picture is not None]


class _Style:
    """One colour and one marker for each label, the same in all pictures of a comparison."""

    def __init__(self, comparison: Comparison) -> None:
        self._number = {label: index for index, label in enumerate(comparison.labels)}

    def __call__(self, label: str) -> dict[str, Any]:
        index = self._number[label] % len(COLOURS)
        return {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4, "linewidth": 1.4, "label": label}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow, and only for pages

    return Figure(figsize=(width, height), layout="constrained")


def _log(axes: Axes, x: str, y: str, title: str = "") -> None:
    for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scale("log")
        _plain(axis)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize="medium")
    axes.grid(True, which="major", alpha=0.3)


def _plain(axis: Axis) -> None:
    """Numbers as people write them along a logarithmic axis, few enough to be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415

    low, high = axis.get_view_interval()
    narrow = low > 0 and high / low < 30
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e6 else f"{value / 1e6:g}M"))
    axis.set_minor_formatter(NullFormatter())


def _lines(axes: Axes, growth: Growth, labels: Sequence[str], amount: str, style: _Style) -> None:
    for label in labels:
        points = [(size, value) for size in growth.sizes if (value := _amount(growth, label, size, amount))]
        if points:
            axes.plot(*zip(*points, strict=True), **style(label))


def _legend(figure: Figure) -> None:
    """One for all pictures in the figure, below them."""
    handles = {text: line for axes in figure.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize="small")


def _amount(growth: Growth, label: str, size: float, amount: str) -> float | None:
    cell = growth.cell(label, size)
    value = getattr(cell, amount) if cell is not None else None
    return value if value else None  # a logarithmic scale has no place for 0


def _mapped(comparison: Comparison) -> Growth | None:
    found = {growth.workload: growth for growth in growths(comparison, comparison.engines)}
    return next((found[name] for name in MAPPED if name in found), None)


def _fault_cost(comparison: Comparison) -> Picture | None:
    growth = _mapped(comparison)
    if growth is None:
        return None
    style = _Style(comparison)
    figure = _figure(11, 3.8)
    work, time, whole = figure.subplots(1, 3)
    _lines(work, growth, comparison.engines, "words_per_call", style)
    _log(work, growth.knob, "words of tables touched", "work of one fault")
    _lines(time, growth, comparison.engines, "us_per_call", style)
    _log(time, growth.knob, "µs of Python, mean", "time of one fault")
    for label in comparison.engines:
        points = [(size, one.whole.words) for size, one in sorted(growth.cells[label].items()) if one.whole.words]
        if points:
            whole.plot(*zip(*points, strict=True), **style(label))
    _log(whole, growth.knob, "words of tables touched", "all that was asked")
    _legend(figure)
    return Picture(
        "fault-cost",
        f"What a fault costs as the guest grows ({growth.workload})",
        f"{growth.operation} on {growth.workload}: work and time of one call against {growth.knob}, and the work of "
        "all that was asked there: an engine may answer a fault fast because it did the work at the CR3 load before.",
        inline_svg(figure, "fault-cost"),
    )


def _growth(comparison: Comparison) -> Picture | None:
    found = growths(comparison, comparison.engines)
    if not found:
        return None
    style = _Style(comparison)
    rows = -(-len(found) // COLUMNS)
    figure = _figure(10, 2.7 * rows)
    grid = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for axes, growth in zip(grid, found, strict=False):
        _lines(axes, growth, comparison.engines, "words_per_call", style)
        _log(axes, growth.knob, "words a call", f"{growth.workload}: {growth.operation}")
    for axes in grid[len(found) :]:
        axes.set_visible(False)
    _legend(figure)
    return Picture(
        "growth",
        "How each operation grows",
        "Words of tables that one call touches, against the knob that the workload turns.",
        inline_svg(figure, "growth"),
    )


def _memory(comparison: Comparison) -> Picture | None:
    growth = _mapped(comparison)
    if growth is None:
        return None
    style = _Style(comparison)
    figure = _figure(6.5, 4)
    axes = figure.subplots()
    for label in comparison.engines:
        peaks = [(size, one.peak) for size, one in growth.cells[label].items() if one.peak is not None]
        if peaks:
            axes.plot([size for size, _ in peaks], [peak.used / 1024 for _, peak in peaks], **style(label))
        kept = [(size, peak.reserved / 1024) for size, peak in peaks if peak.reserved]
        if kept:
            reserved = {**style(label), "label": f"{label}, reserved", "linestyle": "--", "marker": ""}
            axes.plot(*zip(*kept, strict=True), **reserved)
    if not axes.lines:
        return None
    _log(axes, growth.knob, "KiB of shadow memory, at its most")
    _legend(figure)
    return Picture(
        "memory",
        "Memory",
        f"Shadow memory in use at its most on {growth.workload}, against {growth.knob}; dashed: reserved for life.",
        inline_svg(figure, "memory"),
    )


def _latency(comparison: Comparison) -> Picture | None:
    workload = home(comparison, FAULT, comparison.engines)
    if workload is None:
        return None
    style = _Style(comparison)
    figure = _figure(10, 4)
    both = figure.subplots(1, 2, sharey=True)
    for axes, amount, unit in zip(both, ("words_at", "us_at"), ("words of tables touched", "µs"), strict=True):
        for label in comparison.engines:
            one = comparison.find(label, workload)
            cell = one.operation(FAULT) if one is not None else None
            values = getattr(cell, amount) if cell is not None else ()
            if values:
                axes.plot(values, PERCENTS, drawstyle="steps-post", **(style(label) | {"marker": ""}))
        axes.set_xscale("symlog" if amount == "words_at" else "log")
        axes.set_xlabel(f"{unit}, one fault")
        axes.grid(True, alpha=0.3)
    both[0].set_ylabel("percent of faults that take no more")
    _legend(figure)
    return Picture(
        "latency",
        f"Faults are not alike ({workload})",
        "Share of the shadow faults that take no more than so many words, and so many microseconds.",
        inline_svg(figure, "latency"),
    )


def _policies(comparison: Comparison) -> Picture | None:
    work: dict[str, float] = {}
    memory: dict[str, float] = {}
    for one in comparison.measurements:
        default = policy_base(comparison, one)
        if default is None:
            continue
        operation = focus(one.workload)
        changed, usual = one.operation(operation), default.operation(operation)
        if changed is not None and usual is not None:
            _note(work, f"{policy_name(one)}: {short(operation)} on {one.workload}", ratio(changed.words, usual.words))
        if one.peak is not None and default.peak is not None:
            _note(memory, f"{policy_name(one)} on {one.workload}", ratio(one.peak.used, default.peak.used))
    if not work and not memory:
        return None
    figure = _figure(11, 1.2 + 0.24 * max(len(work), len(memory)))
    left, right = figure.subplots(1, 2)
    _bars(left, "work, times that of the default", dict(sorted(work.items())), 1)
    left.set_xscale("log")
    _plain(left.xaxis)
    _bars(right, "memory in use, percent of that of the default", dict(sorted(memory.items())), 100)
    return Picture(
        "policies",
        "What each policy costs and saves",
        "Work of the operation that a workload is about, and memory in use, under each policy, by that of the default.",
        inline_svg(figure, "policies"),
    )


def _bars(axes: Axes, title: str, bars: dict[str, float], scale: float) -> None:
    """Bars from `scale`, what the default is, to each value."""
    names = list(bars)
    drawn = axes.barh(names, [(bars[name] - 1) * scale for name in names], left=scale, color=COLOURS[0])
    axes.bar_label(drawn, [number(bars[name] * scale) for name in names], padding=2, fontsize="x-small")
    axes.axvline(scale, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(title, fontsize="medium")
    axes.tick_params(axis="y", labelsize="small")
    axes.grid(True, axis="x", alpha=0.3)


def _note(bars: dict[str, float], name: str, value: float | None) -> None:
    if value:
        bars[name] = value


def _domains(comparison: Comparison) -> Picture | None:
    if not comparison.domains:
        return None
    figure = _figure(8, 1 + 0.35 * len(comparison.domains))
    names = [f"{one.pool} pool, neighbour: {one.neighbour}" for one in comparison.domains]
    for axes, title, values in zip(
        figure.subplots(1, 2, sharey=True),
        ("faults of the quiet domain", "words of tables touched for it"),
        ([one.faults.calls for one in comparison.domains], [one.whole.words or 0 for one in comparison.domains]),
        strict=True,
    ):
        axes.bar_label(axes.barh(names, values, color=COLOURS[0]), fmt="{:,.0f}", padding=2, fontsize="x-small")
        axes.margins(x=0.15)
        axes.set_title(title, fontsize="medium")
        axes.grid(True, axis="x", alpha=0.3)
    figure.axes[0].invert_yaxis()
    return Picture(
        "domains",
        "A quiet domain and its neighbour",
        "Faults of a quiet domain, and the work that they make, alone and beside a greedy one.",
        inline_svg(figure, "domains"),
    )


_DRAWN: Final[tuple[Callable[[Comparison], Picture | None], ...]] = (
    _fault_cost,
    _growth,
    _latency,
    _memory,
    _policies,
    _domains,
)
