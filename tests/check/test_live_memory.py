"""What the engine sets in live mode lands in RAM, and is recorded while a check is at work and at no other time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.check.live_memory import GuestMemory, LoggedMemory
from harness.machine.guest_view import GuestView
from harness.machine.ram import RamMap


@pytest.fixture
def ram(tmp_path: Path) -> RamMap:
    return RamMap(tmp_path / "ram", 8 << 12)


@pytest.fixture
def view(ram: RamMap) -> GuestView:
    """Guest frames 0, 1 and 3 are machine frames 5, 3 and 7; guest frame 2 has none."""
    return GuestView(ram, np.asarray([5, 3, -1, 7]))


@pytest.fixture
def memory(ram: RamMap) -> LoggedMemory:
    return LoggedMemory(ram.bytes)


def test_bits_are_written_through_recorded_or_not(view: GuestView, memory: LoggedMemory) -> None:
    memory.or64(0x3008, 0x20)
    assert memory.read64(0x3008) == view.words[1, 1] == 0x20
    guest = GuestMemory(memory, view)
    guest.begin()
    memory.or64(0x3008, 0x40)
    assert memory.read64(0x3008) == view.words[1, 1] == 0x60
    assert memory.page(3)[1] == 0x60


def test_what_was_set_while_a_check_ran_is_told_in_the_guests_terms(view: GuestView, memory: LoggedMemory) -> None:
    guest = GuestMemory(memory, view)
    memory.or64(0x3000, 0x20)
    guest.begin()
    memory.or64(0x3008, 0x20)
    memory.or64(0x3008, 0x40)
    memory.or32(0x700C, 0x20)
    memory.or32(0x7008, 0x60)
    at, bits = guest.overlaid()
    assert dict(zip(at.tolist(), bits.tolist(), strict=True)) == {0x1008 >> 3: 0x60, 0x3008 >> 3: 0x20_0000_0060}
    assert guest.strays() == []
    guest.clear()
    memory.or64(0x3010, 0x20)
    assert guest.overlaid()[0].tolist() == []
    guest.begin()
    assert guest.overlaid()[0].tolist() == []


def test_bits_follow_a_frame_that_moves(view: GuestView, memory: LoggedMemory) -> None:
    guest = GuestMemory(memory, view)
    guest.begin()
    view.remap(2, 6)
    memory.or64(0x6018, 0x20)
    assert guest.overlaid()[0].tolist() == [0x2018 >> 3]


def test_bits_outside_the_guest_are_strays(view: GuestView, memory: LoggedMemory) -> None:
    guest = GuestMemory(memory, view)
    guest.begin()
    memory.or64(0x1018, 0x20)
    assert guest.strays() == [0x1018]
    assert guest.overlaid()[0].tolist() == []


def test_the_guest_is_seen_in_its_own_order(view: GuestView, memory: LoggedMemory) -> None:
    guest = GuestMemory(memory, view)
    memory.or64(0x5000, 0x1234)
    assert guest.words[0, 0] == 0x1234
    assert guest.ram.nbytes == 4 << 12
    assert guest.frames == 4
    assert guest.p2m is view.p2m
    assert guest.m2p is view.m2p
