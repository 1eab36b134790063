"""A comparison as one HTML page that stands alone: verdicts, tables, pictures, and where it was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment
from markupsafe import Markup
from rich.table import Table as RichTable

from harness import __version__
from harness.compare.measurement import Comparison
from harness.compare.plots import pictures
from harness.compare.terminal import heading, titled_tables
from harness.compare.verdicts import verdicts
from harness.report.output_file import write_atomic
from harness.report.text import printable

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ c.engines | join(", ") }} compared</title>
<style>
body { font: 15px/1.45 sans-serif; max-width: 76em; margin: 2em auto; padding: 0 1em; color: #111; }
h2 { margin-top: 2em; }
table { border-collapse: collapse; font-size: 14px; }
.wide { overflow-x: auto; }
th, td { padding: 0.12em 0.9em 0.12em 0; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; }
tr.first td { border-top: 1px solid #888; }
.holds { color: #070; font-weight: bold; } .fails, .wrong { color: #b00; font-weight: bold; }
figure { margin: 1em 0; } figcaption { color: #555; }
svg { max-width: 100%; height: auto; }
dt { font-weight: bold; margin-top: 0.8em; } dd { margin-left: 1.5em; }
code { background: #f5f5f5; padding: 0.1em 0.3em; }
</style>
<h1>{{ c.engines | join(", ") }} compared</h1>
<p><code>{{ c.command | shown }}</code></p>
<p>xi-harness {{ version }}{{ ", quick" if c.quick }}
{%- if c.interrupted %}, <span class="wrong">interrupted</span>{% endif %}.</p>
{% for line in heading %}<p>{{ line | shown }}</p>
{% endfor -%}
{% for one in c.left if one.wrong -%}
<p class="wrong">{{ one.label }} on {{ one.workload }} is wrong: {{ one.reason | shown }}</p>
{% endfor -%}
{% if verdicts %}<h2>What follows</h2>
<dl>
{% for v in verdicts -%}
<dt>{{ v.topic }}: {{ v.claim }}
{% if v.holds %}<span class="holds">It holds.</span>
{%- elif v.holds is not none %}<span class="fails">It does not hold.</span>
{% endif -%}
<dd>{{ v.text }}
{% endfor -%}
</dl>
{% endif -%}
{% for p in pictures %}<h2>{{ p.title }}</h2>
<figure id="{{ p.name }}" role="img" aria-label="{{ p.caption }}">
{{ p.svg | safe }}<figcaption>{{ p.caption }}</figcaption></figure>
{% endfor -%}
{% for t in tables if t.rows %}<h2>{{ t.title }}</h2>
<div class="wide"><table>
<tr>{% for name in t.columns %}<th{{ right if loop.index0 >= t.words }}>{{ name }}{% endfor %}</tr>
{% for row in t.rows -%}
<tr{% if row[0] %} class="first"{% endif %}>
{%- for cell in row %}<td{{ right if loop.index0 >= t.words }}>{{ cell }}{% endfor %}</tr>
{% endfor -%}
</table></div>
{% endfor -%}
{% if unmeasured %}<h2>Not measured</h2>
<ul>
{% for one in unmeasured %}<li>{{ one.label }} on {{ one.workload }}: {{ one.reason | shown }}
{% endfor -%}
</ul>
{% endif -%}
</html>
"""


@dataclass(frozen=True, slots=True)
class _Table:
    """words: how many columns, from the first, hold words and not numbers."""

    title: str
    columns: list[str]
    words: int
    rows: list[tuple[str, ...]]


def _table(title: str, table: RichTable) -> _Table:
    columns = table.columns
    words = sum(column.justify == "left" for column in columns)
    rows = zip(*([str(cell) for cell in column.cells] for column in columns), strict=True)
    return _Table(title, [str(column.header) for column in columns], words, list(rows))


def document(comparison: Comparison) -> str:
    """The page as text. What came from an engine or a workload of somebody else's is escaped."""
    environment = Environment(autoescape=True, keep_trailing_newline=True)
    environment.filters["shown"] = printable
    return environment.from_string(_PAGE).render(
        c=comparison,
        version=__version__,
        heading=[line.plain for line in heading(comparison)],
        right=Markup(' class="n"'),
        verdicts=verdicts(comparison),
        pictures=pictures(comparison),
        tables=[_table(title, table) for title, table in titled_tables(comparison)],
        unmeasured=[one for one in comparison.left if not one.wrong],
    )


def write_page(comparison: Comparison, path: Path) -> None:
    """Writes the page in one step. Raises OSError."""
    write_atomic(path, document(comparison))
