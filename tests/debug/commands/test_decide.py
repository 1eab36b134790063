"""`decide` and its marks. That its rows are those the engine goes by: tests/xi/test_explain.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.debug.commands.table import run_command
from harness.debug.scene import CommandError
from harness.x86.bits import CR0_WP
from tests.debug.commands.broken import marked, silent, word_of
from tests.debug.commands.golden import check_commands
from tests.debug.commands.scene import CODE, DATA, HOLE, KERNEL, long4, nopae
from tests.xi.domain import RW, US, USED, A, Domain, P


def test_accesses() -> None:
    lines = (
        "decide counter w u",
        "decide $rip w u",
        "decide start+0x1000 x u",
        "decide 0x8000000000000000",
        f"decide {KERNEL + (HOLE.start << 12):#x} r s",
        "decide 0x500000 r",
    )
    output = check_commands("decide-access-long4", long4().scene(), *lines)
    assert [line.strip() for line in output.split("\n") if "<--" in line] == [
        "<-- a table has fallen behind: all is synchronised first, which can change what follows",
        "<-- behind the guest's entry",
    ]
    assert "<--" not in check_commands("decide-access-nopae", nopae().scene(), "decide 0xc0000000 w s")


def test_a_guest_without_paging() -> None:
    guest = long4()
    guest.domain = Domain("unpaged")
    guest.domain.start()
    output = run_command(guest.scene(), "decide 0x5000 w")
    assert "guest's rights" not in output and "FILL" in output and "<--" not in output


def test_entries() -> None:
    guest = long4()
    lines = ("decide gfn=5 index=1", "decide gfn=5 index=0", "decide gfn=5 index=9")
    assert "<--" not in check_commands("decide-entry-long4", guest.scene(), *lines)
    small = nopae()
    small.store(0xC000_0000, 0x200 << 12 | P | RW | US | A | 1 << 7, 2)
    assert "<--" not in check_commands("decide-entry-nopae", small.scene(), "decide gfn=2 index=0x300")


def test_the_registers_of_a_pae_guest() -> None:
    guest = long4()
    made = guest.domain = Domain("pae")
    made.map(CODE, 0x100, USED)
    made.start()
    made.poke(made.root << 12, 0x77 << 12 | P)
    assert "a PDPTE: the registers have the entry of then" in run_command(
        guest.scene(), f"decide gfn={made.root} index=0"
    )


def test_a_table_that_has_fallen_behind_unseen_is_marked() -> None:
    guest = long4()
    guest.domain.poke(guest.domain.entry_at(DATA), 0x110 << 12 | USED, announce=False)
    assert "behind the guest's entry" in marked(guest, f"decide {DATA:#x} r u")


def test_an_engine_that_judges_otherwise_than_the_book_is_marked() -> None:
    guest = long4()
    assert marked(guest, f"decide {CODE:#x} w s") == []
    state = guest.domain.state
    guest.domain.engine.control(replace(state, cr0=state.cr0 & ~CR0_WP))
    (mark,) = marked(guest, f"decide {CODE:#x} w s")
    assert mark == "by the book: #PF 0x3 [P W]"


@pytest.mark.parametrize("line", [f"decide {CODE:#x} r u", "decide gfn=5 index=0"])
def test_an_spte_that_leads_nowhere_is_marked(line: str) -> None:
    guest = long4()
    guest.domain.engine.q[word_of(guest, CODE)] = 0x7FF000 | P
    (mark,) = marked(guest, line)
    assert "which is not the guest's" in mark


def test_frames_that_are_away() -> None:
    guest = long4()
    guest.domain.take(0x102)
    output = run_command(guest.scene(), f"decide {DATA:#x} r u")
    assert output.split("\n")[0].endswith("AWAY: gfn 0x102 is awaited")
    assert "-> AWAY: whoever has it gives it back" in output


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("decide", "it needs an address and an access"),
        ("decide gfn=5", "named by gfn= and index=, both"),
        ("decide 0x1000 gfn=5 index=1", "named by gfn= and index=, both"),
        ("decide gfn=5 index=5000", "5000 is not between 0 and 1023"),
        ("decide gfn=0x102 index=1", "no SPTI shadows entry 1 of gfn 0x102"),
        ("decide 0x1000 q", "is no access"),
    ],
)
def test_what_cannot_be_told(line: str, told: str) -> None:
    with pytest.raises(CommandError, match=told):
        run_command(long4().scene(), line)


def test_an_engine_that_does_not_tell() -> None:
    with pytest.raises(CommandError, match="does not tell of its insides"):
        run_command(silent(long4()), "decide 0x1000 r u")
