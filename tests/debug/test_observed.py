"""The guest of observe mode in a debugger's hands: what is read, and that the harness follows what is written."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.catalogue import load_catalogue
from harness.check.guest_walks import ram_reader
from harness.debug.debuggee import Refused
from harness.debug.observed import GPRS, ObservedGuest
from harness.intercept.interception import Outcome
from harness.intercept.observe import Observer
from harness.machine.deadline import Deadline
from harness.options import RunOptions
from harness.session import Session
from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.walk import tracer
from tests.intercept.tiny_observed import COUNTER, DATA, PAGE, PD, PT, build, tiny_session

UNMAPPED = 0xC00000  # in the tiny guest


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(elf: Path) -> Iterator[Session]:
    """The 32-bit guest, paging on, somewhere in its loop."""
    with tiny_session(elf) as session:
        assert session.observer.run(Deadline(10), 12).outcome is Outcome.EVENTS
        yield session


@pytest.fixture
def long() -> Iterator[Session]:
    """A 64-bit guest at its first checkpoint."""
    with Session(load_catalogue()["basic"], "long4", RunOptions()) as session:
        assert session.run_to_checkpoint() is not None
        yield session


def guest_of(session: Session) -> ObservedGuest:
    read = ram_reader(session.machine.ram.bytes)

    def translate(state: ControlState, va: int) -> int | None:
        path = tracer(state, read)(va)
        return path.gpa if path.gpa >= 0 else None

    return ObservedGuest(session.machine, session.observer, translate)


def registers(session: Session) -> dict[str, int]:
    return session.machine.gdb.read_registers()


def write(session: Session, name: str, value: int) -> None:
    register = session.machine.gdb.registers[name]
    guest_of(session).write_register(register.number, value.to_bytes(register.size, "little"))


def last(session: Session) -> str:
    return str(session.observer.log.last()[-1])


def missed(session: Session) -> int:
    return session.observer.self_check(registers(session))


# ---- registers


def test_registers_are_those_of_the_description(long: Session) -> None:
    guest, gdb = guest_of(long), long.machine.gdb
    data = guest.read_registers()
    assert b"<target" in guest.documents["target.xml"]
    assert len(data) == sum(register.size for register in gdb.registers.values())
    offset = sum(register.size for register in gdb.registers.values() if register.number < gdb.registers["rip"].number)
    assert struct.unpack_from("<Q", data, offset)[0] == registers(long)["rip"]


@pytest.mark.parametrize("name", [*GPRS, "r8", "r15", "rip", "fs_base", "cr2"])
@pytest.mark.parametrize("value", [0, 0xFFFF_8000_1234_5678])
def test_a_write_changes_that_register_alone_in_64_bit_code(long: Session, name: str, value: int) -> None:
    before = registers(long)
    write(long, name, value)
    assert registers(long) == before | {name: value}


@pytest.mark.parametrize("name", [*GPRS, "rip"])
def test_a_write_changes_that_register_alone_in_32_bit_code(tiny: Session, name: str) -> None:
    for number, one in enumerate(GPRS):
        write(tiny, one, 0x1000 + number)
    before = registers(tiny)
    assert [before[one] for one in GPRS] == [0x1000 + number for number in range(8)]
    for value in (0x1002, 0x8765_4321):  # the first is another register's value too
        write(tiny, name, value)
        assert registers(tiny) == before | {name: value}


def test_flags_and_wide_registers_can_be_written(long: Session) -> None:
    guest, gdb = guest_of(long), long.machine.gdb
    write(long, "eflags", registers(long)["eflags"] ^ 0x1)
    xmm = gdb.registers["xmm3"]
    guest.write_register(xmm.number, bytes(range(16)))
    offset = sum(register.size for register in gdb.registers.values() if register.number < xmm.number)
    assert guest.read_registers()[offset : offset + 16] == bytes(range(16))


def test_no_such_register_and_too_long_a_value_are_refused(long: Session) -> None:
    guest, gdb = guest_of(long), long.machine.gdb
    with pytest.raises(Refused, match="number 9999"):
        guest.write_register(9999, b"\0" * 8)
    with pytest.raises(Refused, match="rax has 8 bytes"):
        guest.write_register(gdb.registers["rax"].number, b"\0" * 9)


# ---- control registers


def test_cr3_written_in_the_debugger_is_the_root_that_the_engine_has(tiny: Session) -> None:
    ram = tiny.machine.ram
    ram.write(PD + 0x10000, ram.bytes[PD : PD + 4096].tobytes())
    write(tiny, "cr3", PD + 0x10000)
    assert registers(tiny)["cr3"] == tiny.observer.state.cr3 == PD + 0x10000
    assert "cr3_load" in last(tiny)
    assert "cr3 written by the debugger" in last(tiny)
    assert tiny.observer.engine.guest_tables()[(PD + 0x10000) >> 12]
    assert missed(tiny) == 0


def test_cr3_written_with_the_value_that_it_has_flushes(tiny: Session) -> None:
    """The hardware too: an entry that was changed behind its back is used."""
    observer, guest = tiny.observer, guest_of(tiny)
    step_to(tiny, "other")  # it has just loaded from PAGE: the translation is cached
    tiny.machine.ram.write(DATA + 0x5000, b"\x78\x56\x34\x12")
    guest.write_memory(PT, struct.pack("<I", DATA | 0x5007))
    assert observer.engine.guest_tables()[PT >> 12] is False
    guest.flush(None)
    assert observer.engine.guest_tables()[PT >> 12] is True
    write(tiny, "rip", tiny.image.symbols["fetch"])
    observer.step(Deadline(10))
    assert registers(tiny)["rbx"] == 0x12345678


def test_a_flush_of_one_address_is_an_invlpg(tiny: Session) -> None:
    observer, guest = tiny.observer, guest_of(tiny)
    step_to(tiny, "other")
    tiny.machine.ram.write(DATA + 0x5000, b"\x78\x56\x34\x12")
    guest.write_memory(PT, struct.pack("<I", DATA | 0x5007))
    guest.flush(PAGE)
    assert f"invlpg va={PAGE:#x}" in last(tiny)
    assert observer.engine.describe_walk(PAGE)[-1]["spte"] >> 12 & 0xFFFFF == DATA + 0x5000 >> 12
    write(tiny, "rip", tiny.image.symbols["fetch"])
    observer.step(Deadline(10))
    assert registers(tiny)["rbx"] == 0x12345678


@pytest.mark.parametrize(
    ("name", "change"), [("cr0", bits.CR0_WP), ("cr4", bits.CR4_SMEP), ("efer", bits.EFER_NXE), ("cr4", bits.CR4_PGE)]
)
def test_control_bits_are_followed(long: Session, name: str, change: int) -> None:
    value = registers(long)[name] ^ change
    write(long, name, value)
    assert registers(long)[name] == value == getattr(long.observer.state, name)
    assert f"control value={value:#x}" in last(long)
    assert missed(long) == 0


def test_control_bits_are_followed_in_32_bit_code(tiny: Session) -> None:
    value = registers(tiny)["cr0"] ^ bits.CR0_WP
    write(tiny, "cr0", value)
    assert registers(tiny)["cr0"] == tiny.observer.state.cr0 == value
    assert missed(tiny) == 0


def test_paging_turned_off_in_the_debugger_is_followed(tiny: Session) -> None:
    write(tiny, "cr0", registers(tiny)["cr0"] & ~bits.CR0_PG)
    assert tiny.observer.state.mode.name == "unpaged"
    assert missed(tiny) == 0
    assert tiny.observer.step(Deadline(10)).outcome is Outcome.STEPPED


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cr3", lambda r: 1 << 60),
        ("cr4", lambda r: r["cr4"] ^ bits.CR4_LA57),
        ("cr4", lambda r: r["cr4"] & ~bits.CR4_PAE),
        ("efer", lambda r: r["efer"] ^ bits.EFER_LME),
    ],
)
def test_what_raises_gp_is_refused_and_changes_nothing(
    long: Session, name: str, value: Callable[[dict[str, int]], int]
) -> None:
    before, events = registers(long), long.observer.log.total
    with pytest.raises(Refused, match=f"to {name} raises #GP"):
        write(long, name, value(before))
    assert registers(long) == before
    assert long.observer.log.total == events


# ---- memory


def test_memory_is_read_by_the_guest_s_tables_as_far_as_they_go(tiny: Session) -> None:
    guest, ram = guest_of(tiny), tiny.machine.ram
    ram.write(DATA, bytes(range(256)) * 16)
    assert guest.read_memory(PAGE, 4096) == bytes(range(256)) * 16
    assert guest.read_memory(PAGE + 0x10, 0) == b""
    assert guest.read_memory(DATA + 1, 9000) == ram.bytes[DATA + 1 : DATA + 9001].tobytes()
    assert guest.read_memory(PAGE + 4090, 100) == ram.bytes[DATA + 4090 : DATA + 4096].tobytes(), "nothing beyond"
    with pytest.raises(Refused, match="nothing is mapped at 0xc00000"):
        guest.read_memory(UNMAPPED, 4)


def test_a_write_across_pages_reaches_each_frame(tiny: Session) -> None:
    guest, ram = guest_of(tiny), tiny.machine.ram
    guest.write_memory(PT + 4, struct.pack("<I", DATA | 0xA007))  # PAGE + 4096 is another frame
    guest.write_memory(PAGE + 4090, bytes(range(1, 13)))
    assert ram.bytes[DATA + 4090 : DATA + 4096].tolist() == list(range(1, 7))
    assert ram.bytes[DATA + 0xA000 : DATA + 0xA006].tolist() == list(range(7, 13))


def test_a_write_that_would_not_fit_writes_nothing(tiny: Session) -> None:
    guest, ram = guest_of(tiny), tiny.machine.ram
    before = ram.bytes[DATA : DATA + 4096].tobytes()
    with pytest.raises(Refused, match="0x801000: nothing was written"):
        guest.write_memory(PAGE + 4090, bytes(12))
    assert ram.bytes[DATA : DATA + 4096].tobytes() == before


def test_a_table_entry_written_in_the_debugger_is_a_store_like_the_guest_s(tiny: Session) -> None:
    guest, observer = guest_of(tiny), tiny.observer
    step_to(tiny, "again")  # all in sync
    events = observer.log.total
    guest.write_memory(PT + 0x80, struct.pack("<II", DATA | 0x7007, DATA | 0x8007))
    assert [event.kind for event in observer.log.last(observer.log.total - events)] == ["table_write"]
    assert observer.engine.guest_tables()[PT >> 12] is False
    assert missed(tiny) == 0
    guest.flush(None)
    walk = observer.engine.describe_walk(PAGE + 0x20000)
    assert walk[-1]["spte"] >> 12 & 0xFFFFF == DATA + 0x7000 >> 12


def test_a_write_to_data_is_no_event(tiny: Session) -> None:
    guest, observer = guest_of(tiny), tiny.observer
    events = observer.log.total
    guest.write_memory(COUNTER, b"\0" * 4)
    assert observer.log.total == events


def test_new_code_is_executed_and_its_events_are_seen(tiny: Session) -> None:
    """The guest has been in its spin loop: what QEMU translated is dropped, and a new MOV CR3 has its breakpoint."""
    guest, observer = guest_of(tiny), tiny.observer
    spin = tiny.image.symbols["spin"]
    write(tiny, "rip", spin)
    write(tiny, "rax", PD)
    assert observer.run(Deadline(0.3)).outcome is Outcome.DEADLINE
    guest.write_memory(spin, b"\x0f\x22\xd8\xeb\xfb")  # mov cr3, eax; jmp back
    events = observer.log.total
    assert observer.run(Deadline(10), 3).outcome is Outcome.EVENTS
    assert [event.rip for event in observer.log.last(observer.log.total - events)] == [spin] * 3


def step_to(session: Session, symbol: str) -> None:
    observer: Observer = session.observer
    for _ in range(60):
        if observer.step(Deadline(10)).registers["rip"] == session.image.symbols[symbol]:
            return
    raise AssertionError(f"never came to {symbol}")
