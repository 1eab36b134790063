"""`spti`: one shadow table of the engine, with its entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from harness.debug.commands.arguments import gfn_of, number, split
from harness.debug.commands.command import Command
from harness.debug.commands.text import MARK, cut, plural
from harness.debug.commands.told import AD, explains, grouped, guest_entry, marks, span, spti_line, with_notes
from harness.debug.scene import CommandError, Scene
from harness.engine_views import Explains
from harness.x86.bits import PTE_ADDR

_HEADINGS: Final = ("index", "SPTE", "leads to", "guest's entry then")
_SHOWN: Final = 6  # addresses, of those at which a table is reached


def _spti(scene: Scene, arguments: Sequence[str]) -> str:
    words = split(arguments, ("gfn",), most=1)
    engine = explains(scene)
    if "gfn" not in words.named and words.plain:
        return _table(engine, number(words.plain[0]))
    gfn = gfn_of(scene, words)
    numbers = engine.describe_backlinks(gfn)["sptis"]
    if not numbers:
        raise CommandError(f"no SPTI shadows gfn {gfn:#x}: it is no guest table that a root in use has led to")
    return "\n\n".join(_table(engine, one) for one in numbers)


def _table(engine: Explains, index: int) -> str:
    record = engine.describe_spti(index)
    if record is None:
        raise CommandError(f"no SPTI {index}: the pool has {engine.describe_pool()['sptis']}, from 0")
    if record["state"] == "free":
        return (
            f"SPTI {index}: free, {'zeroed' if record['zeroed'] else 'not zeroed yet'}, SPT at mfn {record['mfn']:#x}"
        )
    mfn = record["mfn"]
    if "role" not in record:
        return f"SPTI {index}: {record['state']}, SPT at mfn {mfn:#x}"
    lines = [
        spti_line(record) + _protects(record),
        f"  SPT at mfn {mfn:#x}, snapshot {mfn + 1:#x}, backlinks {mfn + 2:#x} and {mfn + 3:#x}; "
        + ("not on the LRU list" if record["lru"] is None else f"{plural(record['lru'], 'SPTI')} less recently used"),
        f"  reached from {_bases(record['bases'])}",
    ]
    for parent in record["leading_here"]:
        lines.append(f"  led to by SPTI {parent['spti']}[{parent['index']}] ({parent['role']}): {parent['text']}")
    lines.append(f"  {record['sptes']} of 512 SPTEs in use")
    rows = [_row(record, *run) for run in grouped(record["entries"], _follows)]
    return "\n".join([*map(cut, lines), *(with_notes(_HEADINGS, rows) if rows else [])])


def _protects(record: Mapping[str, Any]) -> str:
    if record["kind"] != "guest":
        return ""
    where = f"gfn {record['gfn']:#x}, " + (
        "which has no machine frame" if record["guest_mfn"] is None else f"mfn {record['guest_mfn']:#x}"
    )
    if record["latched"]:
        return f"; of {where}: the PDPTE registers"
    return f"; {'write-protects' if record['write_protects'] else 'of'} {where}"


def _bases(bases: Sequence[int]) -> str:
    """Where the table begins in virtual memory."""
    if not bases:
        return "no root"
    more = f" and {len(bases) - _SHOWN} more or so" if len(bases) > _SHOWN else ""
    return ", ".join(f"{base:#x}" for base in bases[:_SHOWN]) + more


def _follows(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two SPTEs are neighbours that map neighbouring pages with the same flags, nothing being odd."""
    if one["wrong"] or other["wrong"] or other["index"] != one["index"] + 1 or "gfn" not in one["leads"]:
        return False
    step = one["leads"]["frames"] << 12
    if other["spte"] != one["spte"] + step or other["leads"].get("gfn") != one["leads"]["gfn"] + one["leads"]["frames"]:
        return False
    if "then" not in one:
        return True
    unchanged = one["then"] == one["now"] and other["then"] == other["now"]
    return bool(unchanged and not (one["then"] ^ other["then"]) & ~PTE_ADDR)


def _row(
    table: Mapping[str, Any], first: Mapping[str, Any], last: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[str]]:
    then, now = first.get("then", 0), first.get("now", 0)  # none stands behind the pieces of a page
    changed = then != now
    more = " and on" if first is not last else ""
    cells = (
        span(first["index"], last["index"]),
        first["text"] + more,
        _leads(first["leads"], last["leads"]),
        guest_entry(then) + more if "then" in first else "-",
    )
    notes = [f"now {guest_entry(now)}"] if changed else []
    notes += marks(first["wrong"])
    if changed and table["state"] == "in sync" and table["write_protects"] and (then ^ now) & ~AD:
        notes.append(f"{MARK} the guest's entry changed, and no store was announced")
    return cells, notes


def _leads(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    if "spti" in first:
        return f"SPTI {first['spti']}"
    if "gfn" in first:
        return f"gfn {span(first['gfn'], last['gfn'] + last['frames'] - 1, '#x')}"
    return "-"


_HELP: Final = f"""\
First what it shadows (kind, level, gfn, mode, q: which part of a 32-bit guest's table, v: the control bits that count),
whether it is in sync, and where it lies. In sync: its snapshot is the guest's table, which is write-protected. Out of
sync: the guest may have changed entries since, `snapshot` has them alone. fresh: never synchronised yet.
Then each SPTE that is in use, or whose guest entry has changed: flags in brackets, in lower case those that only XI
reads (present, write: what the guest's entry says; override: open to the supervisor, CR0.WP being 0). Without P it is
armed: complete, but the guest's A is 0. guest's entry then: in the snapshot; below it what it is now, if that
differs. Neighbours that map neighbouring pages alike share a line, `and on`.
{MARK} stands below an SPTE that does not fit its backlink, its target, or the snapshot's entry."""

COMMANDS: Final = (Command("spti", "ID|gfn=N", "a shadow table: state, place, parents, entries", _HELP, _spti),)
