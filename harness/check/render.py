"""The failure block: one mismatch as plain text, with everything that is needed to act on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final, Protocol

from harness.check.target import Mismatch
from harness.x86.bits import PTE_ADDR, PTE_P

WIDTH: Final = 110
RECENT: Final = 8
_COLUMN: Final = 50


class Run(Protocol):
    """What the block tells of the run (`harness.report.record.RunRecord` has it)."""

    @property
    def guest(self) -> str: ...
    @property
    def paging(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def recent_events(self) -> list[str]: ...
    @property
    def repro(self) -> list[str]: ...


def render(mismatch: Mismatch, record: Run, recent: int = RECENT) -> str:
    """The block for `mismatch`, found in the run `record`; at most `recent` of its last events. No colour codes."""
    m = mismatch
    lines = [
        f"MISMATCH  {m.oracle}: {m.field}",
        f"  guest       {record.guest} ({record.paging}, {record.mode}, engine {record.engine}), seed {record.seed}",
        f"  checkpoint  {m.checkpoint}",
        f"  address     {m.va:#018x}, {m.access}",
        "",
        *_answers(m),
    ]
    if m.guest_walk or m.shadow_walk:
        lines += ["", *side_by_side(m.guest_walk, m.shadow_walk)]
    if m.spti:
        lines += ["", "  what the engine knows", *_tree(m.spti, 4)]
    if record.recent_events:
        lines += ["", "  last events", *(f"    {event}" for event in record.recent_events[-recent:])]
    if record.repro:
        lines += ["", "  reproduce, or look around", *(f"    {command}" for command in record.repro)]
    return "\n".join(line.rstrip() for line in lines)


def _answers(m: Mismatch) -> list[str]:
    """The three answers; whoever stands alone is marked."""
    named = (("guest walk", m.guest), ("shadow", m.shadow), ("hardware", m.hardware))
    texts = [_comparable(text) for _, text in named]
    lines = []
    for (name, text), own in zip(named, texts, strict=True):
        alone = texts.count(own) == 1 and len(set(texts)) < 3
        lines.append(f"  {name:<11} {text}{'   <-- differs' if alone else ''}")
    if len(set(texts)) == 3:
        lines.append("  (all three differ)")
    return lines


def _comparable(text: str) -> str:
    """An answer without what only explains it."""
    for tail in (" (before:", " in the entry", " in RAM"):
        text = text.partition(tail)[0]
    return text


def side_by_side(guest: Sequence[Mapping[str, Any]], shadow: Sequence[Mapping[str, Any]]) -> list[str]:
    """Both walks (rows of `harness.x86.walk.describe` and `harness.check.shadow_walk.describe_shadow`), level by level;
    carets under what the shadow's entry has otherwise. A row that has the ``gfn`` of the address's own page is compared
    by it, one without by the entry's frame."""
    lines = [f"  {'guest walk':<{_COLUMN + 2}}  shadow walk"]
    ours = {int(row["level"]): row for row in guest}
    theirs = {int(row["level"]): row for row in shadow}
    for level in sorted(ours.keys() | theirs.keys(), reverse=True):
        own, other = ours.get(level), theirs.get(level)
        left, right = _row(own), _row(other)
        for one, two in zip_longest(left, right, fillvalue=""):
            lines.append(f"    {one:<{_COLUMN}}  {two}")
        if own and other:
            last = own is guest[-1] and other is shadow[-1]
            lines += _carets(own, other, last)
    return lines


def _row(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return ["-"]
    note = f"  ({row['note']})" if row.get("note") else ""
    return [
        f"L{row['level']} table {row['table']:#x}[{row['index']}]{note}",
        f"   {row['entry']:#018x}  {row['flags']}",
    ]


# A shadow entry need not have these as the guest has them: A and D are its own, G is left out.
_UNCOMPARED: Final = frozenset(("A", "D", "G", "PWT", "PCD", "-"))


def _carets(own: Mapping[str, Any], other: Mapping[str, Any], last: bool) -> list[str]:
    """A line that points at the shadow's flags that differ, names those that it lacks, and marks another frame.

    Frames are compared in the last entries only: further up each walk has tables of its own.
    """
    flags, wanted = str(other["flags"]).split(), str(own["flags"]).split()
    marks = " ".join(("^" if flag not in wanted and flag not in _UNCOMPARED else " ") * len(flag) for flag in flags)
    lacking = [flag for flag in wanted if flag not in flags and flag not in _UNCOMPARED]
    frame = " " * 18
    if last and own["entry"] & other["entry"] & PTE_P and _frame(own) != _frame(other):
        frame = "^" * 18
    if not frame.strip() and not marks.strip() and not lacking:
        return []
    note = f"   lacks {' '.join(lacking)}" if lacking else ""
    return [" " * (4 + _COLUMN + 2 + 3) + f"{frame}  {marks}{note}"]


def _frame(row: Mapping[str, Any]) -> int:
    """What the last row of a walk leads to, for comparison with the other walk's."""
    return int(row["gfn"]) << 12 if "gfn" in row else row["entry"] & PTE_ADDR


def _tree(value: Any, indent: int) -> list[str]:
    """Nested JSON-able values, indented; what fits on a line stays on it."""
    pad = " " * indent
    if isinstance(value, Mapping):
        lines = []
        for key, item in value.items():
            if isinstance(item, Mapping | list) and item and len(_flat(item)) > WIDTH - indent - len(str(key)) - 2:
                lines += [f"{pad}{key}:", *_tree(item, indent + 2)]
            else:
                lines.append(f"{pad}{key}: {_flat(item)}")
        return lines
    if isinstance(value, list):
        lines = []
        for item in value:
            lines.append(f"{pad}- {_flat(item)}")
        return lines
    return [f"{pad}{_flat(value)}"]


def _flat(value: Any) -> str:
    """One value on one line; numbers that look like addresses in hexadecimal."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return hex(value) if value > 9 else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_flat(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + " ".join(_flat(item) for item in value) + "]"
    return str(value)
