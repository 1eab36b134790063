"""`events` and `diff`, over a history that is kept in memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from harness.debug.commands.table import run_command
from harness.debug.scene import CommandError, Tables
from harness.intercept.events import KEPT, Event
from harness.x86.access import Access
from tests.debug.commands.broken import silent
from tests.debug.commands.golden import check_commands
from tests.debug.commands.scene import CODE, DATA, KERNEL, Scripted, long4, nopae
from tests.xi.domain import RW, US, USED, A, D, P


class Kept:
    """A past: every event, and the tables at those moments at which `keep` was called."""

    def __init__(self, guest: Scripted) -> None:
        self.guest = guest
        self.log: list[Event] = []
        self.moments: dict[int, Tables] = {}
        guest.history = self

    def keep(self) -> int:
        """The tables as they are once the last event was handled. Its number."""
        engine, domain = self.guest.domain.engine, self.guest.domain
        known = {event.index for event in self.log}
        self.log += [event for event in self.guest.log.last() if event.index not in known]
        event = self.guest.log.total - 1
        in_use = [spti for spti in engine.sptis if spti.role is not None]
        self.moments[event] = Tables(
            event,
            domain.state,
            {gfn: domain.memory.page(domain.mfn(gfn)).copy() for gfn in engine.guest_tables()},
            {spti.mfn: spti.spt.copy() for spti in in_use},
            {spti.mfn: spti.role.text for spti in in_use if spti.role is not None},
        )
        return event

    def events(self, first: int, last: int) -> Sequence[Event]:
        return [event for event in self.log if first <= event.index <= last]

    def tables(self, event: int) -> Tables:
        if event not in self.moments:
            raise CommandError(f"event {event} is not recorded")
        return self.moments[event]


def eventful() -> tuple[Scripted, int, int]:
    """A long4 guest that changed rights, unmapped a run of pages, mapped another, and switched its address space."""
    guest = long4()
    kept = Kept(guest)
    for page in range(8):
        guest.domain.map(DATA + 0x8000 + page * 0x1000, 0x120 + page, USED)
    guest.switch(guest.domain.root)
    for page in range(8):
        guest.touch(DATA + 0x8000 + page * 0x1000, Access.USER_STORE)
    first = kept.keep()
    for page in range(8):
        guest.store(DATA + 0x8000 + page * 0x1000, 0)
    for page in range(4):
        guest.store(CODE + 0x10_0000 + page * 0x1000, 0x130 + page << 12 | P | US | A)
    guest.store(CODE, 0x100 << 12 | P | RW | US | A | D)
    guest.invlpg(CODE)
    guest.switch(guest.other)
    guest.touch(CODE, Access.USER_FETCH)
    guest.domain.map(KERNEL + 0x4000_0000, 0x200, USED, 2)
    guest.touch(KERNEL + 0x4000_0000)
    return guest, first, kept.keep()


def test_the_last_events() -> None:
    output = check_commands("events", long4().scene(), "events", "events 3", "events 3 5", "events 14 14")
    assert "<--" not in output


def test_no_event_yet() -> None:
    guest = long4()
    empty = Scripted("nothing has happened", guest.domain)
    assert run_command(empty.scene(), "events") == "no event yet"


def test_one_event() -> None:
    guest = long4()
    young = Scripted("just begun", guest.domain)
    young.log.add("invlpg", 0, 0x1000, "invlpg [\x1b[31m]")
    output = run_command(young.scene(), "events")
    assert output.startswith("1 event so far") and "invlpg [\\x1b[31m]" in output


def test_events_that_only_a_recording_has() -> None:
    guest = long4()
    kept = Kept(guest)
    kept.keep()
    for va in range(KEPT):
        guest.invlpg(va)
    kept.keep()
    history, guest.history = guest.history, None
    with pytest.raises(CommandError, match=r"events 2 to 4 are not kept: `xi-harness run --record FILE`"):
        run_command(guest.scene(), "events 2 4")
    output = run_command(guest.scene(), "events 70")
    assert "those before 15 are not kept" in output and len(output.split("\n")) == 3 + KEPT
    guest.history = history
    assert run_command(guest.scene(), "events 2 4").split("\n")[2].split()[:3] == ["2", "page_fault", "0x401000"]
    assert len(run_command(guest.scene(), "events 70").split("\n")) == 2 + 70


def test_what_changed_between_two_events() -> None:
    guest, first, last = eventful()
    gfn, mfn = guest.domain.entry_at(CODE, root=2) >> 12, guest.domain.engine.sptis[3].mfn
    lines = (f"diff {first} {last}", f"diff {first} {last} gfn={gfn:#x}", f"diff {first} {last} mfn={mfn:#x}")
    output = check_commands("diff-long4", guest.scene(), *lines)
    assert "10-17" in output and f"diff {last} {last}"


def test_nothing_changed() -> None:
    guest, _, last = eventful()
    assert run_command(guest.scene(), f"diff {last} {last}").split("\n")[1:] == ["  nothing changed"]
    assert "guest table gfn 0x99: not one then, nor now" in run_command(guest.scene(), f"diff {last} {last} gfn=0x99")


def test_entries_of_32_bits() -> None:
    guest = nopae()
    kept = Kept(guest)
    first = kept.keep()
    guest.store(DATA + 0x1000, 0x103 << 12 | P | US | A | D)
    guest.store(0xC000_0000, P | RW | US | A | D | 1 << 7, 2)
    guest.switch(guest.domain.root)
    last = kept.keep()
    check_commands("diff-nopae", guest.scene(), f"diff {first} {last}")


def test_tables_that_come_and_go() -> None:
    guest = long4()
    kept = Kept(guest)
    first = kept.keep()
    guest.invlpg(0)
    last = kept.keep()
    moment = kept.moments[last]
    table, taken, gone = sorted(moment.shadow)[:3]
    del kept.moments[first].shadow[table], kept.moments[first].role[table], moment.shadow[gone], moment.role[gone]
    moment.role[taken] = "another role"
    del moment.guest[5]
    output = run_command(guest.scene(), f"diff {first} {last}").split("\n")
    assert output[1] == "  guest table gfn 0x5: no more"
    assert output[2].startswith(f"  shadow table mfn {table:#x} (") and output[2].endswith("new, 3 entries present")
    assert "(another role): new, was guest L3 gfn 0x3 long4 q0 v13, 1 entry present" in output[3]
    assert output[4].startswith(f"  shadow table mfn {gone:#x} (") and output[4].endswith(": no more")
    alone = run_command(guest.scene(), f"diff {first} {last} mfn={table:#x}").split("\n")
    assert alone[2].split() == ["entry", "then", "now"] and len(alone) == 6


def test_a_table_with_many_changes_is_cut_unless_it_is_alone() -> None:
    guest = long4()
    kept = Kept(guest)
    first = kept.keep()
    for page in range(0, 80, 2):
        guest.store(CODE + 0x10_0000 + page * 0x1000, 0x180 + page << 12 | USED)
    guest.invlpg(0)
    last = kept.keep()
    output = run_command(guest.scene(), f"diff {first} {last}")
    assert "and 16 lines more: gfn= shows one table alone, and whole" in output
    assert len(run_command(guest.scene(), f"diff {first} {last} gfn=5").split("\n")) == 3 + 40


def test_a_shadow_that_is_not_xis() -> None:
    guest, first, last = eventful()
    scene = silent(guest)
    assert "present" not in run_command(scene, f"diff {first} {last} mfn={guest.domain.engine.sptis[3].mfn:#x}")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("diff", "it needs arguments"),
        ("diff 3", "something is missing"),
        ("diff 5 3", "event 5 comes after event 3"),
        ("diff 3 99", "event 99 has not happened yet: the last one is 14"),
        ("diff 3 5", "what the tables were is not kept: `xi-harness run --record FILE`"),
        ("events 0", "0 is not between"),
        ("events 5 3", "event 5 comes after event 3"),
        ("events 3 99", "event 99 has not happened yet"),
        ("events 1 2 3", "one word too many"),
    ],
)
def test_what_cannot_be_told(line: str, told: str) -> None:
    with pytest.raises(CommandError, match=told):
        run_command(long4().scene(), line)


def test_moments_that_the_history_lacks() -> None:
    guest, first, _ = eventful()
    with pytest.raises(CommandError, match="event 2 is not recorded"):
        run_command(guest.scene(), f"diff 2 {first}")


def test_a_history_that_uses_its_buffers_again() -> None:
    """The history may hand out one buffer again and again."""
    guest, first, last = eventful()
    kept = guest.history
    assert isinstance(kept, Kept)
    moments = kept.moments
    shared = {gfn: words.copy() for gfn, words in moments[first].guest.items()}

    class Reused(Kept):
        def tables(self, event: int) -> Tables:
            moment = moments[event]
            for gfn, words in shared.items():
                words[:] = moment.guest[gfn]
            return Tables(event, moment.state, shared, moment.shadow, moment.role)

    wanted = run_command(guest.scene(), f"diff {first} {last} gfn=5")
    reused = Reused(guest)
    reused.guest.history = reused
    assert run_command(guest.scene(), f"diff {first} {last} gfn=5") == wanted
    assert "changed" in wanted
