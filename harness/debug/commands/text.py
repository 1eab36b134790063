"""What the commands' outputs have in common: columns, and the mark of a disagreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from harness.x86.walk import EXECUTABLE, USER, WRITABLE

WIDTH: Final = 120
MARK: Final = "<--"


def columns(headings: Sequence[str], rows: Sequence[Sequence[str]], indent: int = 2, right: str = "") -> list[str]:
    """Lines of `rows` below `headings`, two blanks between columns. right: the headings of right-aligned columns.

    Lines that would be longer than WIDTH are cut, the last characters being ``...``.
    """
    aligned = right.split()
    table = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(row[at]) for row in table) for at in range(len(headings))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if heading in aligned else cell.ljust(width)
            for cell, width, heading in zip(row, widths, headings, strict=True)
        ]
        lines.append(cut(" " * indent + "  ".join(cells).rstrip()))
    return lines


def cut(line: str) -> str:
    """`line` in at most WIDTH characters."""
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


def plural(count: int, noun: str) -> str:
    """``1 entry`` -> ``entry``-style counting for nouns with a regular plural: ``1 run``, ``3 runs``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def marked(line: str, note: str = "") -> str:
    """`line` with the mark of a disagreement, and what disagrees."""
    return f"{line}  {MARK}{f' {note}' if note else ''}"


def rights_text(rights: int) -> str:
    """WRITABLE | USER | EXECUTABLE as ``rwx u``; ``s`` for what only the supervisor reaches."""
    return f"r{'w' if rights & WRITABLE else '-'}{'x' if rights & EXECUTABLE else '-'} {'u' if rights & USER else 's'}"


_SIZES: Final = ((1 << 30, "1G"), (1 << 22, "4M"), (1 << 21, "2M"), (1 << 12, "4K"))


def page_size(sizes: int) -> str:
    """``4K``; for several sizes or-ed ``2M+4K``."""
    return "+".join(name for size, name in _SIZES if sizes & size)
