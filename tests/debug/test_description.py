"""What gdb is told about registers, and the i386 that a 32-bit image gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.catalogue import FIRMWARE
from harness.debug.debuggee import Refused
from harness.debug.description import NARROW, TARGET, Narrow, Slot, is_narrow, slots
from harness.machine.qemu import Machine, MachineSpec
from tests.debug.fake_guest import DOCUMENTS, LAYOUT, SEGMENTS, FakeGuest, build

# gdb's own numbering of an i386's core (gdb/i386-tdep.h).
CORE = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip", "eflags", *SEGMENTS]


def test_slots_follow_one_another() -> None:
    found = slots(DOCUMENTS)
    assert found[0] == Slot("rax", 0, 0, 8)
    assert found[17] == Slot("eflags", 17, 136, 4)
    assert found[-1] == Slot("mxcsr", 65, 604, 4)


def test_a_description_may_number_its_registers_and_come_in_one_document() -> None:
    text = b'<target><feature><reg name="a" bitsize="16" regnum="5"/><reg name="b" bitsize="8"/></feature></target>'
    assert slots({TARGET: text}) == [Slot("a", 5, 0, 2), Slot("b", 6, 2, 1)]


def test_an_include_that_is_missing_is_an_error() -> None:
    with pytest.raises(KeyError):
        slots({TARGET: DOCUMENTS[TARGET]})


def test_the_file_says_whether_it_is_narrow(tmp_path: Path) -> None:
    assert is_narrow(build(tmp_path, 32))
    assert not is_narrow(build(tmp_path, 64))
    (tmp_path / "empty").touch()
    assert not is_narrow(tmp_path / "empty")


def test_the_i386_begins_as_gdb_numbers_it() -> None:
    assert [slot.name for slot in slots(NARROW)][:16] == CORE
    assert {slot.name for slot in slots(NARROW)} >= {"st7", "fop", "xmm7", "mxcsr", "cr0", "cr2", "cr3", "cr4", "efer"}


def _narrow_values(narrow: Narrow) -> dict[str, int]:
    raw = narrow.read_registers()
    return {s.name: int.from_bytes(raw[s.offset : s.offset + s.size], "little") for s in slots(narrow.documents)}


def _wide_name(name: str) -> str:
    return f"r{name[1:]}" if name in CORE[:9] else name


def test_narrow_registers_are_the_low_parts_of_the_wide_ones() -> None:
    guest = FakeGuest()
    for number, (name, bits, _) in enumerate(LAYOUT):
        guest.registers[name] = int.from_bytes(bytes([number + 1]) * (bits // 8))
    values = _narrow_values(Narrow(guest))
    assert len(values) == 16 + 16 + 9 + 5
    for slot in slots(NARROW):
        assert values[slot.name] == guest.registers[_wide_name(slot.name)] & ((1 << 8 * slot.size) - 1), slot.name


def test_a_write_reaches_its_register_and_makes_the_upper_half_0() -> None:
    guest = FakeGuest()
    narrow = Narrow(guest)
    for slot in slots(NARROW):
        wide = _wide_name(slot.name)
        guest.registers[wide] = (1 << 64) - 1 if wide in ("rax", "cr3") else 0
        value = bytes(range(slot.number, slot.number + slot.size))
        narrow.write_register(slot.number, value)
        assert guest.registers[wide] == int.from_bytes(value, "little"), slot.name


@pytest.mark.parametrize("number", [-1, 46, 1 << 40])
def test_a_register_that_is_not_there_is_refused(number: int) -> None:
    with pytest.raises(Refused, match="no register number"):
        Narrow(FakeGuest()).write_register(number, b"\0\0\0\0")


def test_memory_is_that_of_the_guest() -> None:
    guest = FakeGuest()
    narrow = Narrow(guest)
    narrow.write_memory(0x200000, b"abc")
    assert guest.read_memory(0x200000, 3) == narrow.read_memory(0x200000, 3) == b"abc"


class _Stub(FakeGuest):
    """The registers of a real QEMU's stub."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.documents = machine.gdb.documents
        self._machine = machine

    def read_registers(self) -> bytes:
        return self._machine.gdb.raw_registers()


def test_the_real_qemu_has_every_register_and_in_this_layout() -> None:
    with Machine(MachineSpec(bios=FIRMWARE, ram_mib=16)) as machine:
        expected = machine.gdb.read_registers()
        stub = _Stub(machine)
        raw = stub.read_registers()
        found = slots(stub.documents)
        assert len(raw) == sum(slot.size for slot in found)
        wide = {s.name: int.from_bytes(raw[s.offset : s.offset + s.size], "little") for s in found}
        narrow = _narrow_values(Narrow(stub))
    assert {name: wide[name] for name in expected} == expected
    assert (narrow["eip"], narrow["cs"], narrow["cr0"]) == (expected["rip"], expected["cs"], expected["cr0"])
    assert (narrow["mxcsr"], narrow["fctrl"]) == (0x1F80, 0x37F)
