"""What lies in RAM before the first instruction."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness.machine.errors import BadImage
from harness.machine.image import Image, Segment
from harness.machine.mailbox import BOOT_INFO, BOOT_MAGIC, TAG_OFFSET, tag_slot
from harness.machine.ram import RamMap
from harness.placement import HOLE, identity_p2m, place

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
