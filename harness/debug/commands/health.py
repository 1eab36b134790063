"""`audit`, `stats` and `dirty`: whether all is well, how much was done, what was stored to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from harness.debug.commands.arguments import split
from harness.debug.commands.command import Command
from harness.debug.commands.text import MARK, columns, plural
from harness.debug.commands.told import explains, grouped, paragraph, span
from harness.debug.scene import CommandError, Scene
from harness.engine import AuditFailure

_ACROSS: Final = 3  # counters a line


def failure_lines(failures: Sequence[AuditFailure]) -> list[str]:
    """One marked paragraph for each broken invariant."""
    lines: list[str] = []
    for failure in failures:
        lines += paragraph(f"{MARK} {failure.invariant}: {failure.detail}", 2)
    return lines


def _audit(scene: Scene, arguments: Sequence[str]) -> str:
    split(arguments)
    failures = scene.engine.audit()
    if not failures:
        return "every invariant of the engine holds"
    rules = sorted({failure.invariant for failure in failures})
    return "\n".join([f"{plural(len(failures), 'failure')} of {', '.join(rules)}", *failure_lines(failures)])


_AUDIT_HELP: Final = f"""\
All invariants, worked out anew from the tables themselves, not from what the engine has noted. Their names are
explained in `harness.xi.audit`; the same audit is made at every checkpoint. {MARK} stands before each failure."""


def _stats(scene: Scene, arguments: Sequence[str]) -> str:
    split(arguments)
    stats = scene.engine.stats()
    if not stats:
        raise CommandError(f"the engine {scene.engine.name!r} counts nothing")
    cells = list(stats.items())
    depth = -(-len(cells) // _ACROSS)
    lines = [
        [text for at in range(row, depth * _ACROSS, depth) for text in _cell(cells[at : at + 1])]
        for row in range(depth)
    ]
    headings = [name for column in range(_ACROSS) for name in ("what", f"count{' ' * column}")]
    table = columns(headings, lines, right="count")
    return "\n".join([f"engine {scene.engine.name}, after {plural(scene.total, 'event')}", *table])


def _cell(counter: Sequence[tuple[str, object]]) -> tuple[str, str]:
    return (counter[0][0], str(counter[0][1])) if counter else ("", "")


_STATS_HELP: Final = """\
What the engine has done so far, in counts; for XI they are explained in `harness.xi.stats`. The last ones are not
counts but sizes, as of now."""


def _dirty(scene: Scene, arguments: Sequence[str]) -> str:
    split(arguments)
    record = explains(scene).describe_log()
    if record is None:
        return "no dirty logging is under way: it runs while a guest is migrated"
    gfns = record["gfns"]
    lines = [f"round {record['round']}: {plural(len(gfns), 'frame')} in the log"]
    runs = [f"gfn {span(first, last, '#x')}" for first, last in grouped(gfns, lambda one, other: other == one + 1)]
    lines += paragraph(", ".join(runs), 2) if runs else []
    lines += [
        f"  {MARK} gfn {span(first, last, '#x')}: not in the log, and an SPTE is writable"
        for first, last in grouped(record["wrong"], lambda one, other: other == one + 1)
    ]
    return "\n".join(lines)


_DIRTY_HELP: Final = f"""\
The frames that were stored to in this round of dirty logging, by the guest or, setting A and D bits, by the engine.
Looking does not end the round.
{MARK} stands before frames that the guest could store to without being logged."""

COMMANDS: Final = (
    Command("audit", "", "every invariant of the engine, checked now", _AUDIT_HELP, _audit),
    Command("stats", "", "the engine's counters", _STATS_HELP, _stats),
    Command("dirty", "", "frames in the dirty log; the round goes on", _DIRTY_HELP, _dirty),
)
