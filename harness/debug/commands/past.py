"""`events` and `diff`: what happened, and what it did to the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.debug.commands.arguments import Misused, frame, number, split
from harness.debug.commands.command import Command
from harness.debug.commands.text import columns, cut
from harness.debug.commands.told import AD, grouped, guest_entry, span
from harness.debug.scene import CommandError, History, Scene, Tables
from harness.engine import Words
from harness.engine_views import Explains
from harness.intercept.events import KEPT, Event
from harness.report.text import one_line
from harness.x86.bits import PTE_P
from harness.x86.control import ControlState
from harness.xi.describe import spte_text

_LAST: Final = 16  # events, unless told otherwise
_MOST_LINES: Final = 24  # of one table, unless it is asked for alone
_STEPS: Final = frozenset((0, *(1 << shift for shift in (12, 21, 22, 30))))  # to the same frame, or the next page
Roles = Mapping[int, str]


def _events(scene: Scene, arguments: Sequence[str]) -> str:
    words = split(arguments, most=2).plain
    if len(words) == 2:
        first, last = _from_to(scene, words)
    else:
        last = scene.total - 1
        first = max(0, scene.total - number(words[0], 1)) if words else max(0, scene.total - _LAST)
    if not scene.total:
        return "no event yet"
    events = _fetch(scene, first, last)
    rows = [
        (
            str(event.index),
            event.kind,
            f"{event.value:#x}",
            f"{event.rip:#x}" if event.rip else "-",
            one_line(event.text),
        )
        for event in events
    ]
    lines = [f"{scene.total} events so far" if scene.total != 1 else "1 event so far"]
    if events and events[0].index > first:
        lines.append(f"  those before {events[0].index} are not kept: {_RECORD}")
    return "\n".join(lines + columns(("event", "kind", "value", "rip", "instruction"), rows, right="event"))


_RECORD: Final = "`xi-harness run --record FILE` keeps all, `xi-harness replay FILE` has them"


def _from_to(scene: Scene, words: Sequence[str]) -> tuple[int, int]:
    """Two events that have happened, the first before the second or the same."""
    first, last = (number(word) for word in words)
    if first > last:
        raise Misused(f"event {first} comes after event {last}")
    if last >= scene.total:
        raise CommandError(f"event {last} has not happened yet: the last one is {scene.total - 1}")
    return first, last


def _fetch(scene: Scene, first: int, last: int) -> Sequence[Event]:
    """The events from `first` to `last`, as far as they are kept; the last ones are at hand."""
    recent = [event for event in scene.events(KEPT) if first <= event.index <= last]
    if scene.history is not None and (not recent or recent[0].index > first):
        return scene.history.events(first, last)
    if not recent:
        raise CommandError(f"events {first} to {last} are not kept: {_RECORD}")
    return recent


_EVENTS_HELP: Final = """\
The last N events that were intercepted, or those from number A to number B. value: the new CR3 or control register, the
address of an INVLPG or a fault, the gfn of a table that was stored to, or what another exit is about. rip: of the
instruction; none for stores in observe mode, where the processor stops after them."""


# What changed between two events.


class Change(NamedTuple):
    """An entry of a table, by its number, and what became of it."""

    number: int
    then: int
    now: int


def _diff(scene: Scene, arguments: Sequence[str]) -> str:
    words = split(arguments, ("gfn", "mfn"), least=2, most=2)
    first, last = _from_to(scene, words.plain)
    if scene.history is None:
        raise CommandError(f"what the tables were is not kept: {_RECORD}")
    then, now = _tables(scene.history, first), _tables(scene.history, last)
    only = {name: frame(value) for name, value in words.named.items()}
    lines = [f"from event {first} to event {last}, each once handled"]
    lines += _registers(then.state, now.state)
    if "gfn" in only or not only:
        guest = _Side("guest table", "gfn", guest_entry, now.state.mode.entry_bytes == 4, only.get("gfn"))
        lines += guest.lines(then.guest, now.guest, {}, {})
    if "mfn" in only or not only:
        text = spte_text if isinstance(scene.engine, Explains) else guest_entry
        shadow = _Side("shadow table", "mfn", text, only=only.get("mfn"))
        lines += shadow.lines(then.shadow, now.shadow, then.role, now.role)
    if len(lines) == 1:
        lines.append("  nothing changed")
    return "\n".join(map(cut, lines))


def _tables(history: History, event: int) -> Tables:
    # A history may use one and the same tables again for the next question.
    tables = history.tables(event)
    guest = {gfn: words.copy() for gfn, words in tables.guest.items()}
    shadow = {mfn: words.copy() for mfn, words in tables.shadow.items()}
    return Tables(tables.event, tables.state, guest, shadow, dict(tables.role))


def _registers(then: ControlState, now: ControlState) -> list[str]:
    return [
        f"  {field.name} {getattr(then, field.name):#x} -> {getattr(now, field.name):#x}"
        for field in fields(ControlState)
        if getattr(then, field.name) != getattr(now, field.name)
    ]


@dataclass(frozen=True, slots=True)
class _Side:
    """What is compared: guest tables, or shadow tables. kind: of frame number. text: of an entry. narrow: entries have
    4 bytes. only: the number of the one table that is asked for, None for all."""

    what: str
    kind: str
    text: Callable[[int], str]
    narrow: bool = False
    only: int | None = None

    def lines(self, then: Mapping[int, Words], now: Mapping[int, Words], was: Roles, roles: Roles) -> list[str]:
        """What came, went or changed. was, roles: what the tables shadow, then and now."""
        out: list[str] = []
        for at in sorted(then.keys() | now.keys()) if self.only is None else [self.only]:
            name = f"  {self.what} {self.kind} {at:#x}"
            role = roles.get(at, was.get(at))
            if role:
                name += f" ({role})"
            if at not in now:
                out.append(f"{name}: no more" if at in then else f"{name}: not one then, nor now")
            elif at not in then or was.get(at) != roles.get(at):
                present = int(np.count_nonzero(self._entries(now[at]) & self._entries(now[at]).dtype.type(PTE_P)))
                before = f", was {was[at]}" if at in was else ""
                out.append(f"{name}: new{before}, {_entries_text(present)} present")
                if self.only is not None:
                    out += self._changes(np.zeros(512, np.uint64), now[at])
            else:
                changes = self._changes(then[at], now[at])
                if changes:
                    differ = int(np.count_nonzero(self._entries(then[at]) != self._entries(now[at])))
                    out += [f"{name}: {_entries_text(differ)} changed", *changes]
        return out

    def _entries(self, words: Words) -> npt.NDArray[Any]:
        return words.view(np.uint32) if self.narrow else words

    def _changes(self, then: Words, now: Words) -> list[str]:
        """The entries that differ, neighbours that changed alike on one line."""
        before, after = self._entries(then), self._entries(now)
        index = np.flatnonzero(before != after)
        changes = [
            Change(*values)
            for values in zip(index.tolist(), before[index].tolist(), after[index].tolist(), strict=True)
        ]
        runs = grouped(changes, _alike)
        shown = runs if self.only is not None else runs[:_MOST_LINES]
        rows = []
        for first, last in shown:
            more = "" if first is last else " and on"
            only_ad = " (A, D only)" if not (first.then ^ first.now) & ~AD else ""
            now_text = self.text(first.now) + (more if first.now != last.now else "") + only_ad
            then_text = self.text(first.then) + (more if first.then != last.then else "")
            rows.append((span(first.number, last.number), then_text, now_text))
        lines = columns(("entry", "then", "now"), rows, indent=4) if rows else []
        if len(runs) > len(shown):
            lines.append(f"    and {len(runs) - len(shown)} lines more: {self.kind}= shows one table alone, and whole")
        return lines


def _alike(one: Change, other: Change) -> bool:
    """Whether two neighbouring entries changed in the same way, leading to the same frame or to neighbouring ones."""
    if other.number != one.number + 1:
        return False
    return all(b - a in _STEPS for a, b in ((one.then, other.then), (one.now, other.now)))


def _entries_text(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


_DIFF_HELP: Final = """\
What changed in the control registers, in the guest's tables and in the shadow between two moments: once event A was
handled, and once event B was. Neighbouring entries that changed alike share a line, `and on`. gfn= or mfn= shows one
table alone, and whole. Needs a recorded run. How flags of SPTEs read: `help spti`."""

COMMANDS: Final = (
    Command("events", "[N] or A B", "the last events, or those from A to B", _EVENTS_HELP, _events),
    Command("diff", "A B [gfn=N] [mfn=N]", "what changed in the tables between two events", _DIFF_HELP, _diff),
)
