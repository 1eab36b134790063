"""The overlay keeps the engine's bits out of RAM and shows them to the engine as if they were there."""

from __future__ import annotations

import numpy as np
import pytest

from harness.check.memory import OverlayMemory


def memory() -> OverlayMemory:
    ram = np.zeros(4 * 4096, np.uint8)
    ram[0x1008:0x1010] = 0x11
    return OverlayMemory(ram)


def test_what_is_set_is_read_back_and_ram_keeps_what_it_had() -> None:
    overlay = memory()
    overlay.or64(0x1008, 0x60)
    overlay.or32(0x100C, 0x20)
    assert overlay.read64(0x1008) == 0x1111_1131_1111_1171
    assert overlay.read32(0x1008) == 0x1111_1171
    assert overlay.read32(0x100C) == 0x1111_1131
    assert overlay.page(1)[1] == 0x1111_1131_1111_1171
    assert overlay.words[1, 1] == 0x1111_1111_1111_1111
    assert overlay.touched == [1]


def test_a_page_without_bits_is_ram_itself() -> None:
    overlay = memory()
    overlay.or64(0x2000, 1)
    assert overlay.page(1).base is not None
    overlay.ram[0x1000] = 7
    assert overlay.page(1)[0] == 7


def test_clearing_forgets_everything() -> None:
    overlay = memory()
    overlay.or64(0x1008, 0x60)
    overlay.clear()
    assert overlay.read64(0x1008) == 0x1111_1111_1111_1111
    assert overlay.overlaid()[0].tolist() == overlay.touched == []


def test_addresses_beyond_memory_and_odd_sizes_are_refused() -> None:
    with pytest.raises(IndexError):
        memory().or64(4 * 4096, 1)
    with pytest.raises(IndexError):
        memory().read64(4 * 4096)
    with pytest.raises(ValueError, match="whole number"):
        OverlayMemory(np.zeros(100, np.uint8))
