"""What lies in RAM before the first instruction."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from harness.check.tags import decode_code, decode_load
from harness.live.layout import LiveLayout
from harness.machine.errors import BadImage
from harness.machine.guest_view import GuestView
from harness.machine.image import Image, Segment
from harness.machine.mailbox import BOOT_INFO, BOOT_MAGIC, TAG_OFFSET, tag_slot
from harness.machine.monitor_abi import MONITOR_MAGIC
from harness.machine.ram import POISON, RamMap
from harness.placement import HOLE, identity_p2m, place, place_live

IMAGE = Image(Path("guest.elf"), 0x100000, (Segment(0x100000, 0x100000, b"\x90" * 5000, 0x2800, 5),), {})


def placed(tmp_path: Path) -> RamMap:
    ram = RamMap(tmp_path / "ram", 4 << 20)
    ram.reserve()
    place(IMAGE, seed=9)(ram)
    return ram


def slot(ram: RamMap, gfn: int) -> bytes:
    start = (gfn << 12) + TAG_OFFSET
    return ram.bytes[start : start + 16].tobytes()


def test_image_and_boot_information(tmp_path: Path) -> None:
    ram = placed(tmp_path)
    assert ram.bytes[0x100000:0x101388].tobytes() == b"\x90" * 5000
    assert ram.bytes[0x101388:0x102800].sum() == 0
    assert struct.unpack("<4I", ram.bytes[BOOT_INFO : BOOT_INFO + 16].tobytes()) == (BOOT_MAGIC, 0x100000, 4 << 20, 9)


def test_every_free_frame_has_its_own_tag_and_no_other_has_one(tmp_path: Path) -> None:
    ram = placed(tmp_path)
    image = range(0x100, 0x103)
    for gfn in range(ram.size >> 12):
        tagged = gfn not in image and gfn not in HOLE
        assert (slot(ram, gfn) == tag_slot(gfn)) == tagged, hex(gfn)


def test_an_image_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    ram = RamMap(tmp_path / "ram", 1 << 20)
    ram.reserve()
    with pytest.raises(BadImage, match="needs RAM up to 0x102800"):
        place(IMAGE, seed=1)(ram)


def test_the_hole_below_one_mebibyte_is_in_no_p2m() -> None:
    p2m = identity_p2m(512)
    assert p2m[0x9F] == 0x9F
    assert set(p2m[HOLE.start : HOLE.stop].tolist()) == {-1}
    assert p2m[0x100] == 0x100


LAYOUT = LiveLayout.plan(4, 384, seed=9)


def placed_live(tmp_path: Path, layout: LiveLayout = LAYOUT, vcpus: int = 1) -> RamMap:
    ram = RamMap(tmp_path / "machine", layout.machine_mib << 20)
    ram.reserve()
    place_live(IMAGE, layout, 9, vcpus)(ram)
    return ram


def test_a_live_guest_sees_what_it_would_see_without_a_monitor(tmp_path: Path) -> None:
    native, live = placed(tmp_path), placed_live(tmp_path)
    view = GuestView(live, LAYOUT.p2m)
    assert (view.bytes == native.bytes).all()


def test_the_monitor_finds_its_boot_information(tmp_path: Path) -> None:
    ram = placed_live(tmp_path, vcpus=2)
    told = struct.unpack("<4I", ram.bytes[BOOT_INFO : BOOT_INFO + 16].tobytes())
    assert told == (MONITOR_MAGIC, 2, LAYOUT.monitor_area, LAYOUT.monitor_bytes)


def test_what_is_nobodys_is_poisoned_and_what_is_the_monitors_is_zero(tmp_path: Path) -> None:
    ram = placed_live(tmp_path)
    frames = ram.bytes.reshape(-1, 4096)
    pool_end = LAYOUT.pool_base_mfn + LAYOUT.pool_frames
    assert not frames[LAYOUT.monitor_area >> 12 : pool_end].any()
    poisoned = np.concatenate((np.arange(1, HOLE.start), np.arange(pool_end, LAYOUT.first_mfn), LAYOUT.spare))
    assert (frames[poisoned] == POISON).all()
    assert (np.delete(frames[0], range(BOOT_INFO, BOOT_INFO + 16)) == POISON).all()


def test_the_poison_is_no_entry_and_no_tag() -> None:
    dwords = np.full(4, POISON, np.uint8).view(np.uint32)
    assert not dwords[0] & 1
    assert decode_load(dwords, 0xE0000).tolist() == decode_code(dwords, 0xE0000).tolist() == [-1]


def test_a_live_image_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="needs RAM up to 0x102800, the machine has 0x100000"):
        placed_live(tmp_path, LiveLayout.plan(1, 384, 1))
    low = Image(Path("guest.elf"), 0x9F000, (Segment(0x9F000, 0x9F000, b"1" * 5000, 5000, 5),), {})
    ram = RamMap(tmp_path / "ram", LAYOUT.machine_mib << 20)
    with pytest.raises(BadImage, match="where a PC has no RAM"):
        place_live(low, LAYOUT, 1)(ram)


def test_a_live_machine_of_another_size_is_refused(tmp_path: Path) -> None:
    ram = RamMap(tmp_path / "ram", 4 << 20)
    with pytest.raises(ValueError, match="layout of 8 MiB"):
        place_live(IMAGE, LAYOUT, 1)(ram)
    with pytest.raises(ValueError, match="16 vCPUs do not fit"):
        place_live(IMAGE, LAYOUT, 1, vcpus=16)
