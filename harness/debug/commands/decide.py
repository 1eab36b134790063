"""`decide`: the rows of the engine's decision tables that apply to an access or to an entry, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from harness.debug.commands.arguments import Misused, access, address, gfn_of, number, split
from harness.debug.commands.command import Command
from harness.debug.commands.text import MARK, cut
from harness.debug.commands.told import decision_lines, explains, guest_entry, marks, spti_line
from harness.debug.commands.views import guest_path
from harness.debug.scene import CommandError, Scene
from harness.engine import AWAY, GENERAL_PROTECTION
from harness.x86.access import Access
from harness.x86.bits import PTE_P
from harness.x86.walk import judge

_MOST_ENTRIES: Final = 1024


def _decide(scene: Scene, arguments: Sequence[str]) -> str:
    words = split(arguments, ("gfn", "index"), most=3)
    if not words.named:
        if not words.plain:
            raise Misused("it needs an address and an access, or gfn= and index=")
        return _an_access(scene, address(scene, words.plain[0]), access(words.plain[1:]))
    if words.plain or set(words.named) != {"gfn", "index"}:
        raise Misused("an entry of a guest table is named by gfn= and index=, both, and nothing else")
    index = number(words.named["index"], 0, _MOST_ENTRIES - 1)
    return _an_entry(scene, gfn_of(scene, split((f"gfn={words.named['gfn']}",), ("gfn",))), index)


def _an_access(scene: Scene, va: int, kind: Access) -> str:
    record = explains(scene).explain_access(va, kind)
    lines = [f"{kind.text} at {va:#x}, cr3 {scene.state.cr3:#x} {scene.state.mode.name}: {record['result']}"]
    lines += marks(_against_the_book(scene, va, kind, record["code"]))
    lines += [f"  L{level}  {guest_entry(entry)}" for level, entry in record["walk"]]
    if record["rights"] is not None:
        lines += decision_lines(record["rights"])
    if record["behind"]:
        lines.append(f"  {MARK} a table has fallen behind: all is synchronised first, which can change what follows")
    if record["place"] is not None:
        lines += decision_lines(record["place"])
    for step in record["path"]:
        lines.append(f"  L{step['level']}  {spti_line(step)}, SPTE {step['index']}: {step['text']}")
        if step["behind"]:
            lines.append(f"    {MARK} behind the guest's entry")
        lines += [f"    {mark}" for mark in marks(step["wrong"])]
        if step["resync"] is not None:
            lines += decision_lines(step["resync"], 4)
    return "\n".join(map(cut, lines))


def _against_the_book(scene: Scene, va: int, kind: Access, code: int) -> list[str]:
    """Whether the guest gets what it would get without a shadow, by a walk that is not the engine's."""
    book = judge(guest_path(scene, va), kind, scene.state)
    if book.gpa is not None:
        agrees = code < 0 and code != GENERAL_PROTECTION
    else:
        agrees = code == (GENERAL_PROTECTION if book.code is None else book.code)
    return [] if agrees or code == AWAY else [f"by the book: {book.text}"]


def _an_entry(scene: Scene, gfn: int, index: int) -> str:
    records = explains(scene).explain_entry(gfn, index)
    if not records:
        raise CommandError(f"no SPTI shadows entry {index} of gfn {gfn:#x}: `backlinks` tells what the frame is")
    blocks = []
    for record in records:
        changed = record["then"] != record["now"]
        lines = [
            f"entry {index} of gfn {gfn:#x}, {spti_line(record)}",
            f"  then  {guest_entry(record['then'])}",
            f"  now   {guest_entry(record['now']) if changed else 'the same, and so passed over by synchronisations'}",
            f"  SPTE {record['spte_index']}: {record['text']}",
            *(f"    {mark}" for mark in marks(record["wrong"])),
        ]
        if record["latched"]:
            lines.append("  a PDPTE: the registers have the entry of then, memory counts when CR3 is loaded")
        flush = record["flush"]
        if record["now"] & PTE_P and flush is not None and flush["features"]["now"] == "absent":
            lines.append("  it counts as absent: a reserved bit is set, or it leads outside the guest's memory")
        lines += _asked("at the next synchronisation" if changed else "were it looked at", flush)
        lines += _asked("when a fault needs it", record["fault"])
        blocks.append("\n".join(map(cut, lines)))
    return "\n\n".join(blocks)


def _asked(when: str, record: Mapping[str, Any] | None) -> list[str]:
    return [] if record is None else [f"  {when}", *decision_lines(record, 4)]


_HELP: Final = f"""\
VA and an access (r, w or x, and u or s): what a fault of it would come to now, nothing being changed. The guest's
entries from the root down; what the table of rights is asked, the row that fits first, its action and why; if the guest
allows the access, the same for what the shadow has to do (all rows that fit), and for the SPTE at each level.
gfn= and index=: what becomes of the SPTE of one entry of a guest table, at the next synchronisation (INVLPG, a load of
CR3, ...) and, where SPTEs are filled on demand, when a fault needs it.
{MARK} stands where the guest would get something else than by the book, or a table has fallen behind the guest's."""

COMMANDS: Final = (
    Command(
        "decide", "VA r|w|x u|s, or gfn=N index=I", "the decision for an access or an entry, and why", _HELP, _decide
    ),
)
