"""What a debugger sees of a guest in live mode, and what its writes do, with the real QEMU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.debug.debuggee import Refused
from harness.debug.description import slots
from harness.debug.live_guest import LiveGuest
from harness.intercept.interception import Outcome
from harness.intercept.points import Point, PointKind
from harness.live.session import LiveSession
from harness.machine.deadline import Deadline
from harness.x86 import bits
from tests.intercept.tiny_debugged import (
    ENTRY,
    FRAME_A,
    FRAME_B,
    NOWHERE,
    PAGE_A,
    PAGE_B,
    STATUS,
    TABLE,
    TABLES,
    tiny_session,
)
from tests.x86.assemble import needs_assembler

pytestmark = [needs_assembler, pytest.mark.two_cores]

EXIT = STATUS << 1 | 1


class Debugged:
    """The tiny guest behind a debugger."""

    def __init__(self, session: LiveSession) -> None:
        self.session, self.live = session, session.live
        self.guest = LiveGuest(session.machine, session.live)
        self.slots = {slot.name: slot for slot in slots(self.guest.documents)}
        self.labels = session.image.symbols

    def reach(self, label: str) -> None:
        point = Point(PointKind.HARDWARE, self.labels[label], 1)
        self.live.set_point(point)
        ran = self.live.run(Deadline(10))
        self.live.clear_point(point)
        assert (ran.outcome, ran.registers["rip"]) == (Outcome.PAUSED, point.address)

    def step(self) -> dict[str, int]:
        ran = self.live.step(Deadline(10))
        assert ran.outcome is Outcome.STEPPED
        return ran.registers

    def read(self, name: str) -> int:
        slot = self.slots[name]
        return int.from_bytes(self.guest.read_registers()[slot.offset : slot.offset + slot.size], "little")

    def write(self, name: str, value: int) -> None:
        slot = self.slots[name]
        self.guest.write_register(slot.number, value.to_bytes(slot.size, "little"))

    def ends_well(self) -> None:
        assert self.live.run(Deadline(10)).outcome is Outcome.EXITED
        assert self.session.machine.wait_exit(5) == EXIT

    def word(self, value: int) -> bytes:
        """An entry of a guest table."""
        return value.to_bytes(TABLES[self.session.paging].word, "little")


@pytest.fixture(params=list(TABLES))
def debugged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Debugged]:
    """In each paging mode, in front of its first instruction with paging on."""
    with tiny_session(request.param, tmp_path) as session:
        one = Debugged(session)
        one.reach("paged")
        yield one


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Debugged]:
    with tiny_session("nopae", tmp_path) as session:
        one = Debugged(session)
        one.reach("paged")
        yield one


# ---- registers


def test_control_registers_are_those_that_the_guest_believes_in(debugged: Debugged) -> None:
    mode = TABLES[debugged.session.paging]
    assert debugged.read("cr3") == mode.root != debugged.live.engine.root.root
    assert debugged.read("cr4") == mode.cr4
    assert debugged.read("cr0") & (bits.CR0_PG | bits.CR0_WP) == bits.CR0_PG  # the processor runs with WP
    assert debugged.read("efer") == (bits.EFER_LME | bits.EFER_LMA if mode.long else 0)
    assert debugged.read("rip") == debugged.labels["paged"]
    assert debugged.read("cs") == (0x18 if mode.long else 8)
    debugged.ends_well()


def test_all_of_them_at_once(debugged: Debugged) -> None:
    raw = debugged.guest.read_registers()
    assert len(raw) == sum(slot.size for slot in debugged.slots.values())
    for name, value in debugged.live.registers().items():
        slot = debugged.slots[name]
        assert raw[slot.offset : slot.offset + slot.size] == value.to_bytes(slot.size, "little")
    assert debugged.read("fctrl") == 0x37F
    assert debugged.read("mxcsr") == 0x1F80


def test_general_registers_are_written(debugged: Debugged) -> None:
    debugged.reach("leave")
    for name, value in (("rbx", 0x1234_5678), ("rsi", 7), ("rsp", 0x6000), ("rbp", 0x5000)):
        debugged.write(name, value)
    debugged.write("rax", 0x21)
    after = debugged.step()
    assert (after["rbx"], after["rsi"], after["rsp"], after["rbp"]) == (0x1234_5678, 7, 0x6000, 0x5000)
    assert debugged.live.run(Deadline(10)).outcome is Outcome.EXITED
    assert debugged.session.machine.wait_exit(5) == 0x21 << 1 | 1  # the guest saw RAX


def test_rip_flags_and_bases(debugged: Debugged) -> None:
    debugged.write("rip", debugged.labels["spin"])
    debugged.write("eflags", 0xFFFF_FFFF & ~bits.RFLAGS_IF & ~(1 << 8) & ~(1 << 17) & ~(1 << 14))
    for name in ("fs_base", "gs_base", "k_gs_base", "cr2"):
        debugged.write(name, 0x1000 + len(name))
    after = debugged.step()
    assert after["rip"] == debugged.labels["spin"]
    assert after["eflags"] & 0x8D5 == 0x8D5  # the arithmetic flags
    assert after["eflags"] >> 22 == 0
    assert after["eflags"] & 2
    for name in ("fs_base", "gs_base", "k_gs_base", "cr2"):
        assert debugged.read(name) == 0x1000 + len(name)


def test_a_fault_that_waits_goes_with_the_instruction_that_raised_it(narrow: Debugged) -> None:
    narrow.reach("fault")
    live = narrow.live
    before = live.injected
    live.attention = lambda: live.injected > before
    assert live.run(Deadline(10)).outcome is Outcome.PAUSED
    live.attention = None
    assert narrow.read("rip") == narrow.labels["fault"]
    narrow.write("rip", narrow.labels["good"])
    assert narrow.step()["rsi"] == ENTRY  # and not the handler
    narrow.ends_well()


def test_floating_point_and_vectors_are_the_processors(debugged: Debugged) -> None:
    vector, float80 = int.from_bytes(bytes(range(16)), "little"), int.from_bytes(bytes(range(1, 11)), "little")
    debugged.write("xmm3", vector)
    debugged.write("st2", float80)
    debugged.write("mxcsr", 0x1FA0)
    debugged.reach("leave")  # past dozens of exits
    assert debugged.read("xmm3") == vector
    assert debugged.read("st2") == float80
    assert debugged.read("mxcsr") == 0x1FA0
    debugged.ends_well()


def test_a_segment_register_cannot_be_loaded(narrow: Debugged) -> None:
    narrow.write("ds", narrow.read("ds"))  # gdb may write back what it has read
    with pytest.raises(Refused, match="descriptor"):
        narrow.write("ds", 8)
    assert narrow.read("ds") == 0x10
    narrow.ends_well()


def test_a_register_that_is_none(narrow: Debugged) -> None:
    with pytest.raises(Refused, match="no register number 9999"):
        narrow.guest.write_register(9999, b"\0")
    with pytest.raises(Refused, match="has 4 bytes"):
        narrow.guest.write_register(narrow.slots["eflags"].number, bytes(5))


def test_control_registers_are_written_as_the_guest_would(debugged: Debugged) -> None:
    live, mode = debugged.live, TABLES[debugged.session.paging]
    debugged.write("cr0", debugged.read("cr0") | bits.CR0_WP)
    assert live.state.wp
    assert live.log.counts["control"]
    second = 0x31_0000  # another root with the same entries
    debugged.guest.write_memory(second, debugged.guest.read_memory(mode.root, 4096))
    loads = live.log.counts["cr3_load"]
    debugged.write("cr3", second)
    assert live.state.cr3 == debugged.read("cr3") == second
    assert live.log.counts["cr3_load"] == loads + 1
    assert live.log.last(1)[0].text == "cr3 written by the debugger"
    debugged.reach("rom")  # the guest has read it by then and loaded it again
    assert second >> 12 in live.engine.guest_tables()
    assert debugged.read("cr3") == second
    assert not live.self_check({})
    debugged.ends_well()


@pytest.mark.parametrize(
    ("paging", "register", "value", "why"),
    [
        ("long4", "cr4", 0, "PAE cleared in long mode"),
        ("long4", "cr4", 1 << 40, "does not have"),
        ("long4", "cr3", 1 << 60, "MAXPHYADDR"),
        ("long4", "efer", 0, "LME changed"),
    ],
)
def test_what_the_guest_could_not_write_is_refused(
    paging: str, register: str, value: int, why: str, tmp_path: Path
) -> None:
    with tiny_session(paging, tmp_path) as session:
        one = Debugged(session)
        one.reach("paged")
        before, events = one.live.state, one.live.log.total
        with pytest.raises(Refused, match=why):
            one.write(register, value)
        assert (one.live.state, one.live.log.total) == (before, events)
        one.ends_well()


# ---- memory


def test_memory_is_read_by_the_guests_own_tables(debugged: Debugged) -> None:
    ram, filled = debugged.session.memory.ram, debugged.live.engine.stats()
    ram[FRAME_A : FRAME_A + 4096] = np.arange(4096, dtype=np.uint16).astype(np.uint8)
    ram[FRAME_B : FRAME_B + 4096] = 0x5A
    got = debugged.guest.read_memory(PAGE_A + 0xFF0, 0x20)
    assert got == bytes(range(0xF0, 0x100)) + b"\x5a" * 0x10
    assert debugged.guest.read_memory(PAGE_A, 0x1000) == ram[FRAME_A : FRAME_A + 4096].tobytes()
    assert debugged.live.engine.stats() == filled  # XI had nothing to do for it
    debugged.ends_well()


def test_as_far_as_the_mapping_goes(debugged: Debugged) -> None:
    assert len(debugged.guest.read_memory(PAGE_B + 0xF00, 0x200)) == 0x100
    with pytest.raises(Refused, match="do not map"):
        debugged.guest.read_memory(NOWHERE, 1)
    with pytest.raises(Refused, match="no memory of the guest"):
        debugged.guest.read_memory(0xC0000, 4)
    assert debugged.guest.read_memory(PAGE_A, 0) == b""


def test_nothing_is_written_unless_all_of_it_can_be(debugged: Debugged) -> None:
    before = debugged.guest.read_memory(PAGE_B + 0xFF0, 16)
    with pytest.raises(Refused):
        debugged.guest.write_memory(PAGE_B + 0xFF0, bytes(range(32)))
    assert debugged.guest.read_memory(PAGE_B + 0xFF0, 16) == before


def test_data_across_pages(debugged: Debugged) -> None:
    debugged.guest.write_memory(PAGE_A + 0xFFC, bytes(range(1, 9)))
    ram = debugged.session.memory.ram
    assert ram[FRAME_A + 0xFFC : FRAME_A + 0x1000].tolist() == [1, 2, 3, 4]
    assert ram[FRAME_B : FRAME_B + 4].tolist() == [5, 6, 7, 8]
    assert debugged.guest.read_memory(PAGE_A + 0xFFC, 8) == bytes(range(1, 9))
    debugged.ends_well()


def test_code_that_was_executed_already(debugged: Debugged) -> None:
    """QEMU has translated it: it must not execute the old bytes."""
    debugged.write("rip", debugged.labels["sub"] - 2)  # the jump to itself
    assert debugged.step()["rip"] == debugged.labels["spin"]
    debugged.guest.write_memory(debugged.labels["spin"], b"\x90\x90")
    assert debugged.step()["rip"] == debugged.labels["spin"] + 1
    debugged.write("rip", debugged.labels["end"])
    debugged.ends_well()


def test_a_page_table_is_followed(debugged: Debugged) -> None:
    live, gfn = debugged.live, TABLE >> 12
    debugged.reach("edit")
    assert live.engine.guest_tables()[gfn]
    writes = live.log.counts["table_write"]
    debugged.guest.write_memory(TABLE, debugged.word(FRAME_B | 3))
    assert not live.engine.guest_tables()[gfn]
    assert live.log.counts["table_write"] == writes + 1
    assert debugged.guest.read_memory(PAGE_A, 4) == (0x22).to_bytes(4, "little")  # the tables say so at once
    debugged.write("rip", debugged.labels["flush"])
    debugged.reach("moved")
    assert debugged.step()["rbx"] == 0x22
    assert not live.self_check({})
    debugged.ends_well()


def test_a_flush_of_the_debuggers(debugged: Debugged) -> None:
    live = debugged.live
    debugged.reach("edit")
    debugged.guest.write_memory(TABLE, debugged.word(FRAME_B | 3))
    debugged.guest.flush(PAGE_A)
    assert live.log.last(1)[0].kind == "invlpg"
    debugged.guest.flush(None)
    assert live.log.last(1)[0].kind == "cr3_load"
    assert live.engine.guest_tables()[TABLE >> 12]
    debugged.write("rip", debugged.labels["moved"])
    assert debugged.step()["rbx"] == 0x22
    debugged.ends_well()


def test_a_frame_that_was_taken_away(debugged: Debugged) -> None:
    """It is brought back before anybody looks; a table among them would seem empty."""
    debugged.reach("edit")
    domain, ram = debugged.session.domain, debugged.session.memory.ram
    for address in (TABLE, FRAME_A, ENTRY):
        domain.take(address >> 12)
    assert not ram[FRAME_A]
    assert debugged.guest.read_memory(PAGE_A, 1) == b"\x11"
    domain.take(TABLE >> 12)
    debugged.guest.write_memory(PAGE_A + 1, b"\x77")
    assert debugged.guest.read_memory(PAGE_A, 2) == b"\x11\x77"
    assert not domain.away
    debugged.ends_well()


def test_a_write_is_in_the_dirty_log(debugged: Debugged) -> None:
    engine = debugged.live.engine
    debugged.reach("edit")
    engine.dirty_log_start()
    debugged.guest.write_memory(PAGE_A + 0xFFC, bytes(8))
    debugged.guest.write_memory(debugged.labels["spin"], b"\xeb")
    debugged.guest.read_memory(PAGE_A, 4)
    log = engine.dirty_log_read()
    assert set(np.flatnonzero(log).tolist()) == {FRAME_A >> 12, FRAME_B >> 12, debugged.labels["spin"] >> 12}
    assert not engine.audit()
    engine.dirty_log_stop()
    debugged.ends_well()
