"""`spti` and its marks."""

from __future__ import annotations

import pytest

from harness.debug.commands.table import run_command
from harness.debug.scene import CommandError
from harness.x86.bits import PTE_P, PTE_RW, PTE_US
from tests.debug.commands.broken import marked, silent, word_of
from tests.debug.commands.golden import check_commands
from tests.debug.commands.scene import CODE, DATA, KERNEL, long4, nopae
from tests.xi.domain import Domain


def test_shadow_tables_of_a_long4_guest() -> None:
    guest = long4()
    free = guest.domain.engine.pool_memory.clean[0]
    output = check_commands("spti-long4", guest.scene(), "spti gfn=2", "spti gfn=5", "spti 6", f"spti {free}")
    assert "<--" not in output


def test_shadow_tables_of_a_32_bit_guest() -> None:
    guest = nopae()
    output = check_commands("spti-nopae", guest.scene(), "spti 0", "spti gfn=2", "spti gfn=3", "spti 7")
    assert "0-1       0x0 [P US A D present write]" not in output  # those of guest tables are read-only
    assert "<--" not in output


def test_neighbours_share_a_line_only_if_they_are_alike() -> None:
    made = Domain("long4")
    for page in range(6):
        made.map(CODE + page * 0x1000, 0x100 + page, PTE_P | PTE_US | 0x20 | (PTE_RW if page == 3 else 0))
    made.map(CODE + 0x6000, 0x200, PTE_P | PTE_US | 0x20)
    made.start()
    guest = long4()
    guest.domain = made
    output = run_command(guest.scene(), f"spti gfn={made.entry_at(CODE) >> 12}")
    indices = [line.split()[0] for line in output.split("\n")[6:]]
    assert indices == ["0-2", "3", "4-5", "6"]


def test_an_spte_with_other_rights_is_marked() -> None:
    guest = long4()
    guest.domain.engine.q[word_of(guest, CODE)] |= PTE_RW
    assert marked(guest, "spti gfn=5") == ["not the rights of the snapshot's entry"]


def test_an_spte_that_leads_nowhere_is_marked() -> None:
    guest = long4()
    guest.domain.engine.q[word_of(guest, DATA, 2)] = 0x1000 | PTE_P
    (mark,) = marked(guest, "spti gfn=4")
    assert mark == "leads to machine frame 0x1, where no SPT in use is"


def test_an_spte_off_its_list_is_marked_alone_of_a_run() -> None:
    guest = nopae()
    word = word_of(guest, 0xC000_9000)
    guest.domain.engine.links.unlink(word)
    output = run_command(guest.scene(), f"spti {word >> 11}")
    lines = output.split("\n")
    (at,) = (at for at, line in enumerate(lines) if "<--" in line)
    assert lines[at].strip() == "<-- on no list: it has no backlink" and lines[at - 1].split()[0] == "9"


def test_a_store_that_nothing_announced_is_marked() -> None:
    guest = long4()
    address = guest.domain.entry_at(KERNEL, 2)
    guest.domain.poke(address, 0, announce=False)
    output = run_command(guest.scene(), f"spti gfn={address >> 12}")
    assert "now empty" in output
    assert marked(guest, f"spti gfn={address >> 12}") == ["the guest's entry changed, and no store was announced"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("spti 99", "no SPTI 99: the pool has 32, from 0"),
        ("spti gfn=0x102", "no SPTI shadows gfn 0x102"),
        ("spti", "it needs one frame"),
        ("spti 1 2", "one word too many"),
        ("spti first", "'first' is no number"),
    ],
)
def test_what_cannot_be_told(line: str, told: str) -> None:
    with pytest.raises(CommandError, match=told):
        run_command(long4().scene(), line)


def test_an_engine_that_does_not_tell() -> None:
    with pytest.raises(CommandError, match="'xi' does not tell of its insides"):
        run_command(silent(long4()), "spti 0")
