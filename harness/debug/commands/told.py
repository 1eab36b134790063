"""What an engine tells of itself (`harness.engine_views.Explains`), and how its records are put into lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any, TypeVar

from harness.debug.commands.text import MARK, WIDTH, columns
from harness.debug.scene import CommandError, Scene
from harness.engine_views import Explains
from harness.x86.bits import PTE_A, PTE_ADDR, PTE_D
from harness.x86.walk import entry_text

AD = PTE_A | PTE_D
Item = TypeVar("Item")


def explains(scene: Scene) -> Explains:
    """The engine, if it tells of itself. Raises CommandError if it does not."""
    if isinstance(scene.engine, Explains):
        return scene.engine
    raise CommandError(
        f"the engine {scene.engine.name!r} does not tell of its insides: it lacks `harness.engine_views.Explains`"
    )


def guest_entry(entry: int) -> str:
    """A guest's entry: the address in it and its flags; ``empty`` for 0."""
    return f"{entry & PTE_ADDR:#x} {entry_text(entry)}" if entry else "empty"


def spti_line(record: Mapping[str, Any]) -> str:
    """An SPTI's number, what it shadows, and how it stands to that."""
    return f"SPTI {record['spti']} ({record['role']}), {record['state']}"


def with_notes(
    headings: Sequence[str], rows: Sequence[tuple[Sequence[str], Sequence[str]]], indent: int = 2, right: str = ""
) -> list[str]:
    """`columns` of (cells, notes): a row's notes stand on lines of their own below it, so that none is cut off."""
    lines = columns(headings, [cells for cells, _ in rows], indent, right)
    out = lines[:1]
    for line, (_, notes) in zip(lines[1:], rows, strict=True):
        out.append(line)
        for note in notes:
            out += paragraph(note, indent + 4)
    return out


def marks(wrong: Iterable[str]) -> list[str]:
    """A note with the mark for each thing that is wrong."""
    return [f"{MARK} {what}" for what in wrong]


def grouped(items: Sequence[Item], follows: Callable[[Item, Item], bool]) -> list[tuple[Item, Item]]:
    """Runs of `items`, as (first, last): an item belongs to the run of the one before it if it follows that."""
    out: list[tuple[Item, Item]] = []
    for item in items:
        if out and follows(out[-1][1], item):
            out[-1] = (out[-1][0], item)
        else:
            out.append((item, item))
    return out


def span(first: int, last: int, style: str = "d") -> str:
    """``7`` or ``7-9``; style: of the numbers, as in a format string."""
    return f"{first:{style}}" if first == last else f"{first:{style}}-{last:{style}}"


def decision_lines(record: Mapping[str, Any], indent: int = 2) -> list[str]:
    """A decision: what the table was asked, and the rows that decide, each with its action and why."""
    features = " ".join(f"{name}={value}" for name, value in record["features"].items())
    lines = paragraph(f"{record['table']}: {features}", indent)
    for row in record["rows"]:
        when = " ".join(f"{name}={value}" for name, value in row["when"].items()) or "anything else"
        text = f"row {row['number']} of {record['of']}: {when} -> {row['action']}: {row['why']}"
        lines += paragraph(text, indent + 2)
    return lines


def paragraph(text: str, indent: int) -> list[str]:
    """`text` on as many lines as it takes, all but the first set in further."""
    return wrap(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * (indent + 4), break_on_hyphens=False)
