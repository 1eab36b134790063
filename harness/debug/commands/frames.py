"""`backlinks` and `snapshot`: what the engine keeps of one guest frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from harness.debug.commands.arguments import gfn_of, split
from harness.debug.commands.command import Command
from harness.debug.commands.text import MARK, page_size, plural
from harness.debug.commands.told import AD, explains, guest_entry, marks, spti_line, with_notes
from harness.debug.scene import CommandError, Scene

_SHOWN: Final = 8  # addresses of one SPTE


def _backlinks(scene: Scene, arguments: Sequence[str]) -> str:
    gfn = gfn_of(scene, split(arguments, ("gfn", "mfn", "pa"), most=1))
    engine = explains(scene)
    record = engine.describe_backlinks(gfn)
    if record["mfn"] is None:
        return f"gfn {gfn:#x} has no machine frame: nothing can map it"
    facts = [f"gfn {gfn:#x}, mfn {record['mfn']:#x}"]
    if record["sptis"]:
        facts.append(f"a guest table of SPTI {' '.join(map(str, record['sptis']))}")
    if record["guards"]:
        facts.append("write-protected")
    if record["logged"] is not None:
        facts.append("in the dirty log" if record["logged"] else "not in the dirty log")
    rows = []
    for spte in record["sptes"]:
        cells = (
            f"{spte['spti']}[{spte['index']}]",
            page_size(1 << 3 + 9 * spte["level"]),
            spte["text"],
            spte["role"],
        )
        rows.append((cells, [*_addresses(spte["addresses"]), *marks(spte["wrong"])]))
    count = f"  mapped by {plural(len(rows), 'SPTE')}"
    headings = ("SPTI[index]", "page", "SPTE", "table")
    return "\n".join([", ".join(facts), count, *(with_notes(headings, rows) if rows else [])])


def _addresses(addresses: Sequence[tuple[int, str]]) -> list[str]:
    """At which addresses, four a line, with the guest's rights."""
    told = [f"{va:#x} {rights}" for va, rights in addresses[:_SHOWN]]
    lines = [f"at {', '.join(told[start : start + 4])}" for start in range(0, len(told), 4)]
    if len(addresses) > _SHOWN:
        lines.append(f"and {len(addresses) - _SHOWN} more: `find gfn=` has them")
    return lines or ["no root leads to it"]


_BACKLINKS_HELP: Final = f"""\
Every SPTE that maps the frame, alone or in a large page, by the frame's lists and by a look at all SPTEs; below each
one where that is, in any root, with the guest's rights along the path (letters of rwxu). Write protection and dirty
logging take RW from just these. `find` has the same by address. Flags of SPTEs: see `help spti`.
{MARK} stands below an SPTE that one of the two ways does not find, or that must not be as it is."""


def _snapshot(scene: Scene, arguments: Sequence[str]) -> str:
    gfn = gfn_of(scene, split(arguments, ("gfn", "mfn", "pa"), most=1))
    records = explains(scene).describe_snapshot(gfn)
    if not records:
        raise CommandError(f"gfn {gfn:#x} has no snapshot: no SPTI shadows it as a guest table")
    return "\n\n".join("\n".join(_table(gfn, record)) for record in records)


def _table(gfn: int, record: Mapping[str, Any]) -> list[str]:
    changed = record["entries"]
    count = len({entry["guest_index"] for entry in changed})
    entries = "1 entry differs" if count == 1 else f"{count or 'no'} entries differ"
    lines = [f"gfn {gfn:#x}, {spti_line(record)}: {entries} from the snapshot"]
    if record["latched"] and changed:
        lines.append("  these are the PDPTE registers: memory counts when CR3 is loaded")
    rows = []
    for entry in changed:
        only_ad = not (entry["then"] ^ entry["now"]) & ~AD
        notes = marks(entry["wrong"])
        if record["state"] == "in sync" and record["guards"] and not only_ad:
            notes.append(f"{MARK} in sync, and changed: no store was announced")
        flush = entry["flush"]
        action = "?" if flush is None else flush["rows"][0]["action"]
        cells = (
            str(entry["guest_index"]),
            guest_entry(entry["then"]),
            guest_entry(entry["now"]) + (" (A, D only)" if only_ad else ""),
            str(entry["index"]),
            entry["text"],
            action,
        )
        rows.append((cells, notes))
    headings = ("entry", "then", "now", "SPTE", "", "flush")
    return lines + (with_notes(headings, rows) if rows else [])


_SNAPSHOT_HELP: Final = f"""\
The entries of a guest table that are not as XI last saw them, for each SPTI that shadows the table. then: in the
snapshot; now: in memory; SPTE: its number and what it still is; flush: what the next synchronisation does to it (an
action of the table `resync`; `decide gfn=N index=I` tells why). A 32-bit guest's page-directory entry has two SPTEs.
{MARK} stands below an entry that changed while its table was in sync, by a store that nothing announced."""

COMMANDS: Final = (
    Command("backlinks", "GFN|mfn=N|pa=PA", "every SPTE that maps a frame", _BACKLINKS_HELP, _backlinks),
    Command(
        "snapshot", "GFN|mfn=N|pa=PA", "what changed in a guest table since its last sync", _SNAPSHOT_HELP, _snapshot
    ),
)
