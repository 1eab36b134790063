"""The guest-physical address space beyond RAM, and what a guest without a harness finds there."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Final

import pytest

from harness.catalogue import FIRMWARE
from harness.check.layout import Layout
from harness.intercept.devices import Devices, regions
from harness.machine.mailbox import BOOT_INFO, BOOT_MAGIC, EXIT_PORT
from harness.machine.qemu import Machine, MachineSpec
from harness.machine.ram import RamMap
from tests.x86.assemble import build, needs_assembler

FRAMES: Final = 0x2000  # 32 MiB


class Bus:
    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def read_device(self, address: int, size: int) -> int:
        self.seen.append((address, size))
        return 0x55

    def write_device(self, address: int, size: int, value: int) -> None:
        self.seen.append((address, size, value))


def test_the_regions_are_in_order_and_without_gaps() -> None:
    table = regions(FRAMES)
    assert table[0].first == 0xA0000
    for first, second in pairwise(table):
        assert first.first < first.end
        if first.end != 0x10_0000:  # there the guest's RAM begins
            assert first.end == second.first, second.name
    assert [region.first for region in table if region.name == "past the end of RAM"] == [FRAMES << 12]


@pytest.mark.parametrize("gpa", [0, 0x9FFFF, 0x10_0000, (FRAMES << 12) - 1])
def test_ram_is_not_a_device(gpa: int) -> None:
    bus = Bus()
    with pytest.raises(ValueError, match="is RAM of the guest"):
        Devices(bus, FRAMES).read(gpa, 1)
    with pytest.raises(ValueError, match="is RAM of the guest"):
        Devices(bus, FRAMES).write(gpa, 1, 0)
    assert bus.seen == []


@pytest.mark.parametrize("gpa", [0xA0000, 0xB8000, 0xFFFFF, 0xFEC0_0010, 0xFED0_00F0, 0xFEE0_0030, 0xFFFF_FFF0])
def test_devices_are_reached_where_they_are(gpa: int) -> None:
    bus = Bus()
    devices = Devices(bus, FRAMES)
    assert devices.read(gpa, 4) == 0x55
    devices.write(gpa, 2, 0x1234)
    assert bus.seen == [(gpa, 4), (gpa, 2, 0x1234)]


@pytest.mark.parametrize("gpa", [FRAMES << 12, 0x8000_0000, 0xFDFF_FFFF, 1 << 32, 0xFF_FFFF_F000, (1 << 52) - 8])
def test_the_machine_s_own_frames_are_not_the_guest_s(gpa: int) -> None:
    bus = Bus()
    devices = Devices(bus, FRAMES)
    assert devices.read(gpa, 8) == 0
    devices.write(gpa, 8, 1)
    assert bus.seen == []


def test_the_checker_has_the_same_ram() -> None:
    layout, devices = Layout(FRAMES), Devices(Bus(), FRAMES)
    for gfn in (*range(0x90, 0x110), FRAMES - 1, FRAMES, 0xFDFFF, 0xFE000, 0xFEE00, 0xFFFFF, 0x100000):
        ram = True
        try:
            devices.region(gfn << 12)
            ram = False
        except ValueError:
            pass
        assert layout.is_ram(gfn) == ram, hex(gfn)


RESULTS: Final = 0x20_0000
ENTRY: Final = 0x10_0000
UNANSWERED: Final = (0x0200_0000, 0x0800_0000, 0x7FFF_F000, 0xB000_0000, 0xFDFF_F000, 0xFE00_0000, 0xFED1_0000)


@needs_assembler
def test_a_guest_without_a_harness_finds_the_same() -> None:
    """Where nothing answers: zeros, and stores are lost. Of the rest, which is reached at its own address, only what
    the table says of it."""
    text = f".code32\nmovl ${RESULTS:#x}, %edi\n"
    for address in (*UNANSWERED, 0xC8000, 0xB8000):
        text += f"movl {address:#x}, %eax\nstosl\nmovl $0x12345678, {address:#x}\nmovl {address:#x}, %eax\nstosl\n"
    text += "movl 0xffff0, %eax\nstosl\nmovl 0xfffffff0, %eax\nstosl\nmovl 0xfee00030, %eax\nstosl\n"
    text += f"movl $1, %eax\nmovl ${EXIT_PORT}, %edx\noutl %eax, %dx\n1: jmp 1b\n"
    image = build(text, ENTRY)

    def fill(ram: RamMap) -> None:
        ram.write(ENTRY, image)
        ram.write(BOOT_INFO, struct.pack("<4I", BOOT_MAGIC, ENTRY, ram.size, 0))

    with Machine(MachineSpec(bios=FIRMWARE), fill) as machine:
        machine.gdb.resume()
        assert machine.wait_exit(10) == 3
        found = struct.unpack("<21I", machine.ram.bytes[RESULTS : RESULTS + 84].tobytes())
    devices = Devices(Bus(), FRAMES)
    for index, address in enumerate(UNANSWERED):
        assert found[2 * index : 2 * index + 2] == (0, 0), hex(address)
        assert not devices.region(address).reached or address >= 0xFE00_0000
    assert found[14:16] == (0, 0), "option ROM area"
    assert found[16:18] == (0, 0x1234_5678), "video memory is RAM without a display adapter"
    assert found[18] == found[19] != 0, "the ROM is below 1 MiB and below 4 GiB"
    assert found[20] & 0xF0 == 0x10, "the local APIC's version"
