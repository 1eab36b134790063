"""The table that the mutation tests are for: what was broken, and who noticed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.mutations.mutation import Catch

SCHEMA: Final = 1
WIDTH: Final = 170


def mutation_table(catches: Sequence[Catch]) -> Table:
    """One row a mutation, in order. Catchers that the mutation names come first; those that noticed as well, before
    the run was stopped, follow in brackets."""
    table = Table(title=f"{len(catches)} mutations", title_justify="left", pad_edge=False, box=None)
    table.add_column("mutation", no_wrap=True)
    table.add_column("breaks", ratio=3)
    table.add_column("run", ratio=2)
    table.add_column("caught by", ratio=3)
    for catch in catches:
        table.add_row(catch.mutation.name, catch.mutation.breaks, catch.mutation.where, verdict(catch))
    return table


def verdict(catch: Catch) -> str:
    """The last column."""
    must = catch.mutation.caught_by
    named = [name for name in catch.evidence if name in must]
    others = [name for name in catch.evidence if name not in must]
    if not must:
        return f"nobody, as it must be ({catch.verdict or 'audited'})" if not others else f"FALSE: {', '.join(others)}"
    missed = f"MISSED BY {', '.join(sorted(catch.missing))}" if catch.missing else ""
    also = f"({', '.join(others)})" if others else ""
    return " ".join(part for part in (missed, ", ".join(named), also) if part)


def text(catches: Sequence[Catch], width: int = WIDTH) -> str:
    """The table as plain text."""
    out = io.StringIO()
    Console(file=out, width=width, markup=False, emoji=False, highlight=False).print(mutation_table(catches))
    return out.getvalue().rstrip()


def as_json(catches: Sequence[Catch]) -> dict[str, Any]:
    """JSON-able: a row a mutation, with what each catcher said first."""
    rows = [
        {
            "mutation": catch.mutation.name,
            "breaks": catch.mutation.breaks,
            "run": catch.mutation.where,
            "must_be_caught_by": sorted(catch.mutation.caught_by),
            "caught_by": catch.evidence,
            "missed_by": sorted(catch.missing),
            "checkpoints": catch.checkpoints,
            "seconds": round(catch.seconds, 3),
        }
        for catch in catches
    ]
    return {"schema": SCHEMA, "mutations": rows}
