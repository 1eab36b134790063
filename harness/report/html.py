"""The HTML report: one self-contained page, a table of the runs, two pictures and the failure blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jinja2 import Environment

from harness import __version__
from harness.report import live_run
from harness.report.failure import failure_block
from harness.report.output_file import write_atomic
from harness.report.record import RunRecord
from harness.report.summary import Totals
from harness.report.svg import inline_svg
from harness.report.text import printable

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>xi-harness {{ version }}</title>
<style>
body { font: 15px/1.4 sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; }
th, td { padding: 0.15em 0.9em 0.15em 0; text-align: left; border-bottom: 1px solid #ddd; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.wrong { color: #b00; font-weight: bold; }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto; }
svg { max-width: 100%; height: auto; }
</style>
<h1>xi-harness {{ version }}</h1>
<p>{{ totals.runs }} runs, {{ totals.unexpected }} not as expected; {{ "{:,}".format(totals.events) }} events
intercepted; {{ "{:,}".format(totals.checks["probe"]) }} probe checks; {{ totals.mismatches }} mismatches,
{{ totals.audit_failures }} audit failures, {{ totals.interception_misses }} interception misses.</p>
<table>
<tr><th>guest<th>paging<th>mode<th>engine<th>verdict<th>expected<th>events<th>checks<th>seconds<th>reason</tr>
{% for r in records -%}
<tr><td>{{ r.guest }}<td>{{ r.paging }}<td>{{ r.mode }}<td>{{ r.engine }}
<td{% if not r.as_expected %} class="wrong"{% endif %}>{{ r.verdict }}<td>{{ r.expected }}
<td class="n">{{ "{:,}".format(r.intercepted) }}<td class="n">{{ "{:,}".format(r.checks.values() | sum) }}
<td class="n">{{ "%.2f" | format(r.seconds) }}<td>{{ r.reason | shown }}</tr>
{% endfor -%}
</table>
{% if live %}<h2>Live mode</h2>
<table>
<tr><th>guest<th>paging{% for name in live_columns %}<th>{{ name }}{% endfor %}<th>exits by kind</tr>
{% for r in live -%}
<tr><td>{{ r.guest }}<td>{{ r.paging }}{% for cell in cells(r) %}<td class="n">{{ cell }}{% endfor -%}
<td>{% for name, count in by_kind(r) %}{{ name }} {{ "{:,}".format(count) }}{{ ", " if not loop.last }}{% endfor %}</tr>
{% endfor -%}
</table>
{% endif %}
{%- if compared %}<p>{{ compared }}.</p>
{% endif %}
{%- if picture %}<h2>Events and checks</h2>
{{ picture | safe }}
{% endif %}
{%- for r in records if not r.as_expected %}
<h2>{{ r.guest }} {{ r.paging }}{{ " " ~ r.mode if r.mode != "observe" }}</h2>
<pre>{{ block(r) }}</pre>
{%- endfor %}
</html>
"""


def document(records: Sequence[RunRecord]) -> str:
    """The page as text. Everything that came from a guest is escaped."""
    environment = Environment(autoescape=True)
    environment.filters["shown"] = printable
    return environment.from_string(_PAGE).render(
        version=__version__,
        totals=Totals.of(records),
        records=records,
        block=failure_block,
        live=live_run.ran_live(records),
        live_columns=[name for name, _, _ in live_run.COLUMNS],
        cells=live_run.cells,
        by_kind=live_run.by_kind,
        compared=live_run.compared(records),
        picture=picture(records) if records else "",
    )


def _name(record: RunRecord) -> str:
    mode = "" if record.mode == "observe" else f" {record.mode}"
    return f"{record.guest} {record.paging}{mode}"


def picture(records: Sequence[RunRecord]) -> str:
    """Two bar charts as SVG: events (shadow faults too) and comparisons, by kind, one bar for each run."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow, and only for this report

    figure = Figure(figsize=(10, 1.5 + 0.22 * len(records)), layout="constrained")
    names = [_name(record) for record in records]
    for axes, title, counts in zip(
        figure.subplots(1, 2, sharey=True),
        ("events", "checks"),
        ([record.events for record in records], [record.checks for record in records]),
        strict=True,
    ):
        left = [0] * len(records)
        for kind in dict.fromkeys(kind for each in counts for kind in each):
            widths = [each.get(kind, 0) for each in counts]
            axes.barh(names, widths, left=left, label=kind)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_title(title)
        axes.set_xscale("symlog")
        axes.legend(fontsize="small")
    figure.axes[0].invert_yaxis()
    return inline_svg(figure, "runs")


def write(path: Path, records: Sequence[RunRecord]) -> None:
    """Writes the page in one step. Raises OSError."""
    write_atomic(path, document(records))
