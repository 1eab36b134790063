"""`walk`: what it shows, and that each of its marks can be there."""

from __future__ import annotations

import numpy as np
import pytest

from harness.debug.commands.table import run_command
from harness.debug.commands.text import MARK
from harness.debug.scene import CommandError, Scene
from harness.x86.bits import PTE_ADDR, PTE_RW
from tests.debug.commands.fake_hardware import FakeHardware
from tests.debug.commands.golden import check_commands
from tests.debug.commands.scene import ALIAS, CODE, DATA, HOLE, KERNEL, Scripted, long4, nopae


def spte(guest: Scripted, va: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint64]], int]:
    """The shadow table and the index of the last SPTE of `va`."""
    last = guest.domain.engine.describe_walk(va)[-1]
    base, words = guest.domain.engine.pool
    return words[last["mfn"] - base], last["index"]


def marked(scene: Scene, line: str) -> list[str]:
    return [row for row in run_command(scene, line).split("\n") if MARK in row]


def test_what_it_shows_on_demand() -> None:
    scene = long4().scene()
    check_commands(
        "walk-long4",
        scene,
        "walk start+0x1008",
        f"walk {DATA:#x}",
        f"walk {DATA + 0x3000:#x}",
        f"walk {KERNEL + 0x5123:#x}",
        f"walk {KERNEL + 0x20_1000:#x}",
        f"walk {KERNEL + HOLE.start * 0x1000:#x}",
        "walk 0x1234000",
        "walk 0x800000000000",
    )


def test_what_it_shows_of_a_guest_of_32_bits_beside_the_hardware() -> None:
    guest = nopae()
    guest.hardware = FakeHardware(guest.scene())
    check_commands("walk-nopae", guest.scene(), f"walk {DATA:#x}", "walk 0xc0005123", "walk 0x100000000")


def test_an_honest_shadow_has_no_mark() -> None:
    for guest, addresses in (
        (long4(), (CODE, DATA, DATA + 0x3000, ALIAS, KERNEL)),
        (nopae(), (CODE, DATA, 0xC0000000)),
    ):
        guest.hardware = FakeHardware(guest.scene())
        for va in addresses:
            assert not marked(guest.scene(), f"walk {va:#x}")


def test_looking_changes_nothing() -> None:
    guest = long4()
    words, stats = guest.domain.engine.pool[1].copy(), guest.domain.engine.stats()
    for va in (CODE, DATA, DATA + 0x3000, ALIAS, KERNEL, KERNEL + 0x7000, 0x1234000):
        run_command(guest.scene(), f"walk {va:#x}")
    assert (words == guest.domain.engine.pool[1]).all()
    assert stats == guest.domain.engine.stats()


def test_another_frame_in_the_shadow_is_marked() -> None:
    guest = nopae()
    table, index = spte(guest, DATA)
    table[index] = table[index] & ~np.uint64(PTE_ADDR) | np.uint64(0x107000)
    rows = marked(guest.scene(), f"walk {DATA:#x}")
    assert len(rows) == 6
    assert all(row.endswith(f"{MARK} shadow") and "gfn 0x107" in row and "gfn 0x102" in row for row in rows)
    assert "out of sync" not in run_command(guest.scene(), f"walk {DATA:#x}"), "no excuse here"
    assert "^^^^^^^^^^^^^^^^^^" in run_command(guest.scene(), f"walk {DATA:#x}")


def test_a_right_too_many_in_the_shadow_is_marked_where_it_matters() -> None:
    guest = nopae()
    table, index = spte(guest, CODE)
    table[index] |= np.uint64(PTE_RW)
    rows = marked(guest.scene(), f"walk {CODE:#x}")
    assert [row.split("  ")[1] for row in rows] == ["store ring 0", "store ring 3"]


@pytest.mark.parametrize("mfn", [0x7FF, 0x555_5555])
def test_a_frame_of_nobodys_is_marked(mfn: int) -> None:
    guest = long4()
    table, index = spte(guest, DATA)
    table[index] = table[index] & ~np.uint64(PTE_ADDR) | np.uint64(mfn << 12)
    rows = [row for row in marked(guest.scene(), f"walk {DATA:#x}") if "ring" in row]
    assert len(rows) == 4 and all("no frame of the guest's" in row for row in rows)


def test_a_table_outside_the_pool_is_marked_and_the_engine_may_fail() -> None:
    guest = nopae()
    above = guest.domain.engine.describe_walk(DATA)[-2]
    base, words = guest.domain.engine.pool
    words[above["mfn"] - base][above["index"]] = 0x5027
    failure, *rows = marked(guest.scene(), f"walk {DATA:#x}")
    assert "the engine cannot follow its own walk: IndexError" in failure
    assert len(rows) == 6 and "leads to a table outside the pool" in rows[0]
    assert "(outside the pool)" in run_command(guest.scene(), f"walk {DATA:#x}")


def test_hardware_that_disagrees_is_marked() -> None:
    guest = nopae()
    hardware = guest.hardware = FakeHardware(guest.scene())
    hardware.frame = 0x123
    rows = marked(guest.scene(), f"walk {DATA:#x}")
    assert len(rows) == 6 and all(row.endswith(f"{MARK} hardware") for row in rows)
    hardware.frame, hardware.debug_walk = None, 0x999000
    assert marked(guest.scene(), f"walk {DATA:#x}") == [
        f"  QEMU's debug walk: at 0x999000  {MARK} the guest: at 0x102000"
    ]


def test_hardware_on_the_shadow_is_held_against_the_shadow() -> None:
    guest = long4()
    hardware = FakeHardware(guest.scene())
    hardware.walks = "shadow"
    guest.hardware = hardware
    rows = marked(guest.scene(), "walk start+0x1000")
    assert all("shadow, hardware" in row for row in rows), "it has gfn 0x111, the shadow 0x101"
    hardware.frame = 0x101
    assert all(row.endswith(f"{MARK} shadow") for row in marked(guest.scene(), "walk start+0x1000"))


def test_why_the_hardware_cannot_be_asked_is_told() -> None:
    guest = nopae()
    hardware = guest.hardware = FakeHardware(guest.scene())
    hardware.refusal = "the guest is at no checkpoint\nQEMU's debug walk: `translate`"
    text = run_command(guest.scene(), f"walk {DATA:#x}")
    assert "  hardware: the guest is at no checkpoint\n  hardware: QEMU's debug walk" in text


@pytest.mark.parametrize("line", ["walk", "walk 1 2", "walk $nothing", "walk x=1", "walk 12z"])
def test_wrong_arguments_are_told_with_the_usage(line: str) -> None:
    with pytest.raises(CommandError, match="usage: walk VA"):
        run_command(long4().scene(), line)
