"""`backlinks` and `snapshot`, and their marks."""

from __future__ import annotations

import pytest

from harness.debug.commands.table import run_command
from harness.debug.scene import CommandError
from harness.x86.bits import PTE_RW
from tests.debug.commands.broken import marked, silent, word_of
from tests.debug.commands.golden import check_commands
from tests.debug.commands.scene import ALIAS, CODE, DATA, HOLE, KERNEL, long4, nopae
from tests.xi.domain import RW, US, USED, A, D, Domain, P


def test_backlinks() -> None:
    lines = ("backlinks 0x102", "backlinks mfn=0x205", "backlinks pa=0x2000", f"backlinks {HOLE.start:#x}")
    output = check_commands("backlinks-long4", long4().scene(), *lines, "backlinks 0x300")
    assert "<--" not in output
    output = check_commands("backlinks-nopae", nopae().scene(), "backlinks 2", "backlinks 0x102", "backlinks 0x250")
    assert "<--" not in output


def test_backlinks_while_dirty_logging() -> None:
    guest = long4()
    guest.domain.engine.dirty_log_start()
    guest.touch(DATA + 0x40)
    assert "not in the dirty log" in run_command(guest.scene(), "backlinks 0x102")
    guest.domain.engine.log_dirty(0x102)
    assert ", in the dirty log" in run_command(guest.scene(), "backlinks 0x102")


def test_many_addresses() -> None:
    guest = long4()
    made = guest.domain = Domain("long4")
    table = made.entry_at(CODE) >> 12
    made.map(CODE, 0x100, USED)
    for slot in range(12):
        made.poke(made.entry_at(CODE + slot * 0x20_0000, 2), table << 12 | USED)
    made.start()
    output = run_command(guest.scene(), "backlinks 0x100")
    assert "at 0x400000 rwxu, 0x600000 rwxu, 0x800000 rwxu" in output and "and 4 more: `find gfn=` has them" in output


def test_an_spte_that_the_list_lacks_is_marked() -> None:
    guest = long4()
    guest.domain.engine.links.unlink(word_of(guest, ALIAS))
    assert marked(guest, "backlinks 0x102") == ["on no list: it has no backlink"]


def test_an_spte_that_the_list_should_not_have_is_marked() -> None:
    guest = long4()
    guest.domain.engine.q[word_of(guest, ALIAS)] ^= 0x1000
    assert marked(guest, "backlinks 0x102") == ["on the frame's list, and does not map it"]
    assert "not from the snapshot's entry: REPLACE, leads elsewhere now" in marked(guest, "backlinks 0x103")


def test_a_writable_guest_table_is_marked() -> None:
    guest = long4()
    guest.domain.engine.q[word_of(guest, KERNEL + 0x2000)] = 0
    guest.touch(KERNEL + 0x2000)
    assert marked(guest, "backlinks 2") == []
    guest.domain.engine.q[word_of(guest, KERNEL + 0x2000)] |= PTE_RW
    assert marked(guest, "backlinks 2") == ["writable, and gfn 0x2 is a guest table in sync"]


def test_snapshots() -> None:
    guest = long4()
    guest.store(DATA + 0x1000, 0x103 << 12 | P | RW | US)  # A and D taken away
    guest.store(DATA + 0x4000, 0x106 << 12 | USED)
    output = check_commands("snapshot-long4", guest.scene(), "snapshot 5", "snapshot gfn=2", "snapshot pa=0x5000")
    assert "<--" not in output and "CLEAR" in output
    small = nopae()
    small.store(0xC000_0000, P | RW | US | A | D | 1 << 7, 2)
    assert "<--" not in check_commands("snapshot-nopae", small.scene(), "snapshot 2")


def test_a_and_d_alone_are_told_apart() -> None:
    guest = long4()
    guest.store(DATA + 0x1000, 0x103 << 12 | P | RW | US | 1 << 63)
    lines = run_command(guest.scene(), "snapshot 5").split("\n")
    assert [line.split()[0] for line in lines if "(A, D only)" in line] == ["3"]


def test_a_store_that_nothing_announced_is_marked() -> None:
    guest = long4()
    guest.domain.poke(guest.domain.entry_at(KERNEL, 2), 0, announce=False)
    (mark,) = marked(guest, f"snapshot {guest.domain.entry_at(KERNEL, 2) >> 12}")
    assert mark == "in sync, and changed: no store was announced"


def test_a_broken_spte_is_marked_in_a_snapshot() -> None:
    guest = long4()
    guest.domain.engine.q[word_of(guest, CODE + 0x1000)] = 0x7FF000 | P
    (mark,) = marked(guest, "snapshot 5")
    assert "which is not the guest's" in mark
    assert run_command(guest.scene(), "snapshot 5").split("\n")[2].endswith("?")


def test_the_registers_of_a_pae_guest() -> None:
    guest = long4()
    made = guest.domain = Domain("pae")
    made.map(CODE, 0x100, USED)
    made.start()
    made.poke(made.root << 12, 0x77 << 12 | P)
    output = run_command(guest.scene(), f"snapshot {made.root}")
    assert "PDPTE registers" in output and "<--" not in output


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("snapshot 0x102", "gfn 0x102 has no snapshot"),
        ("snapshot", "it needs one frame"),
        ("backlinks", "it needs one frame"),
        ("backlinks 1 2", "one word too many"),
        ("backlinks mfn=0x7ff", "is not the guest's"),
        ("backlinks va=1", "va= means nothing here"),
    ],
)
def test_what_cannot_be_told(line: str, told: str) -> None:
    with pytest.raises(CommandError, match=told):
        run_command(long4().scene(), line)


@pytest.mark.parametrize("line", ["backlinks 2", "snapshot 2"])
def test_an_engine_that_does_not_tell(line: str) -> None:
    with pytest.raises(CommandError, match="does not tell of its insides"):
        run_command(silent(long4()), line)
