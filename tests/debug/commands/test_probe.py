"""`probe` and `flush`: words around what the hardware says. (The hardware itself: tests/debug/test_hardware.py.)"""

from __future__ import annotations

import pytest

from harness.debug.commands.table import run_command
from harness.debug.commands.text import MARK
from harness.debug.scene import CommandError
from tests.debug.commands.fake_hardware import FakeHardware
from tests.debug.commands.golden import check_commands
from tests.debug.commands.scene import CODE, DATA, HOLE, KERNEL, long4


def test_what_it_shows() -> None:
    guest = long4()
    hardware = guest.hardware = FakeHardware(guest.scene())
    check_commands(
        "probe",
        guest.scene(),
        f"probe {DATA + 0x40:#x}",
        f"probe {CODE:#x} w u",
        f"probe {CODE:#x} ux",
        f"probe {KERNEL + HOLE.start * 0x1000:#x} r",
        "probe 0x1234000 s w",
        "flush",
        f"flush {DATA:#x}",
    )
    assert hardware.flushed == [None, DATA]


def test_an_answer_that_is_not_the_guests_is_marked() -> None:
    guest = long4()
    hardware = guest.hardware = FakeHardware(guest.scene())
    assert MARK not in run_command(guest.scene(), f"probe {DATA:#x} w u")
    hardware.frame = 0x10
    text = run_command(guest.scene(), f"probe {DATA:#x} w u")
    assert text.endswith(f"by the hardware        frame 0x10 + 0x0  {MARK}")


def test_why_it_cannot_be_asked_is_told() -> None:
    guest = long4()
    with pytest.raises(CommandError, match=r"this is a replay.*`walk`"):
        run_command(guest.scene(), f"probe {DATA:#x}")
    with pytest.raises(CommandError, match="this is a replay"):
        run_command(guest.scene(), "flush")
    hardware = guest.hardware = FakeHardware(guest.scene())
    hardware.refusal = "the guest is at no checkpoint"
    with pytest.raises(CommandError, match=r"^the guest is at no checkpoint$"):
        run_command(guest.scene(), f"probe {DATA:#x}")


@pytest.mark.parametrize("line", ["probe", "probe 1 r w", "probe 1 q", "probe 1 r u s", "probe 1 r u x y"])
def test_wrong_arguments(line: str) -> None:
    guest = long4()
    guest.hardware = FakeHardware(guest.scene())
    with pytest.raises(CommandError, match=r"usage: probe VA \[r\|w\|x\]"):
        run_command(guest.scene(), line)
