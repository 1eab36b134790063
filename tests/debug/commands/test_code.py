"""`code`: instructions through the guest's tables, in the right width, the intercepted ones named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.debug.commands.table import run_command
from harness.debug.scene import CommandError
from harness.x86.bits import CR0_PE
from tests.debug.commands.golden import check_commands
from tests.debug.commands.scene import CODE, long4, nopae


def test_what_it_shows() -> None:
    check_commands(
        "code-long4",
        long4().scene(),
        "code $rip 5",
        "code",
        "code switch_space 2",
        f"code {CODE + 3:#x} 2 bits=32",
        "code $rip 3 bits=16",
        "code 0x405ffe",
    )
    check_commands("code-nopae", nopae().scene(), "code $pc 5", "code 0x406ffd 4")


def test_an_instruction_across_a_page_is_read_from_both_frames() -> None:
    guest = long4()
    for gfn, offset, data in ((0x100, 0xFFE, b"\x0f\x22"), (0x111, 0, b"\xd8\xc3")):
        at = (guest.domain.mfn(gfn) << 12) + offset
        guest.domain.memory.bytes[at : at + len(data)] = bytearray(data)
    text = run_command(guest.scene(), f"code {CODE + 0xFFE:#x} 2")
    assert "mov cr3, rax  ; intercepted: CR3 load" in text
    assert "ret" in text


def test_real_mode_counts_from_the_code_segment() -> None:
    guest = nopae()
    scene = guest.scene()
    scene.state = replace(scene.state, cr0=0)
    scene.registers |= {"cr0": 0, "cs": 0x1000, "rip": 0x20}
    text = run_command(scene, "code")
    assert text.startswith("16-bit code") and "=> 0x10020 " in text
    scene.state = replace(scene.state, cr0=CR0_PE)
    scene.registers["cr0"] = CR0_PE
    assert "32-bit" in run_command(scene, "code")


def test_a_replay_has_no_registers_and_can_be_asked_about_an_address() -> None:
    scene = long4().scene()
    scene.registers = {}
    assert "mov rax, 0x3000" in run_command(scene, "code start 1")
    with pytest.raises(CommandError, match=r"no register \$rip"):
        run_command(scene, "code")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("code 0x1234000", "no memory at 0x1234000 to read: `walk 0x1234000`"),
        ("code start 0", "0 is not between 1 and 500"),
        ("code start 1 bits=8", "bits= is one of 16, 32, 64"),
        ("code strat", "perhaps start"),
        ("code start 1 2", "one word too many"),
    ],
)
def test_wrong_arguments(line: str, told: str) -> None:
    with pytest.raises(CommandError, match=told):
        run_command(long4().scene(), line)
