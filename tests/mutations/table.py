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
    """One row a mutation, in order, and one for all controls at which nobody cried out.

    Catchers that the mutation names come first; those that noticed as well, before the run was stopped, follow in
    brackets.
    """
    quiet = [catch for catch in catches if catch.mutation.is_control and not catch.evidence]
    broken = sum(not catch.mutation.is_control for catch in catches)
    table = Table(title=f"{broken} mutations", title_justify="left", pad_edge=False, box=None)
    table.add_column("mutation", no_wrap=True)
    table.add_column("breaks", ratio=3)
    table.add_column("run", ratio=2)
    table.add_column("caught by", ratio=3)
    for catch in catches:
        if catch not in quiet:
            table.add_row(catch.mutation.name, catch.mutation.breaks, catch.mutation.where, verdict(catch))
    if quiet:
        table.add_row("control", "nothing", f"the {len(quiet)} different ones above", "nobody, as it must be")
    return table


def verdict(catch: Catch) -> str:
    """The last column, for all but quiet controls."""
    must = catch.mutation.caught_by
    named = [name for name in catch.evidence if name in must]
    others = [name for name in catch.evidence if name not in must]
    if catch.mutation.is_control:
        return f"FALSE ALARM BY {', '.join(others)}"
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
