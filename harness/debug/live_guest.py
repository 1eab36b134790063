"""The standing guest of live mode as a debugger sees it: what the guest believes, not what the processor runs on.

Its general and control registers are in the VMCB, the mailbox and `Live.state`. The x87 and SSE registers are still in
the processor: the monitor does not touch them, so the stub tells them although the machine is not in the guest.
Memory is read by the guest's own tables, in guest-physical memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from harness.debug.control import CONTROL, TEXT, written
from harness.debug.debuggee import Refused
from harness.debug.description import Slot, slots
from harness.engine_views import LogsStores
from harness.intercept.instructions import fetches
from harness.intercept.live import Live
from harness.machine import monitor_abi as abi
from harness.machine.errors import MachineError
from harness.machine.qemu import Machine
from harness.machine.vcpu import GPR_NAMES
from harness.x86 import bits
from harness.x86.events import Kind, decode_event

_LOW: Final = 0xFFFF_FFFF
_RIP: Final = abi.RIP >> 3
_EVENTINJ: Final = abi.EVENTINJ >> 3
_RFLAGS: Final = 0x3F_7FD7  # the bits that there are; bit 1 is always set (SDM vol. 1, 3.4.3)
_RFLAGS_ONE: Final = 2
_SEGMENTS: Final = frozenset(("cs", "ss", "ds", "es", "fs", "gs"))
_TASK_PRIORITY: Final = "cr8"  # of the local APIC, which guest and monitor share: the stub tells it

# Registers that are a 64-bit word of the VMCB and nothing else -> byte offset.
_WORDS: Final = {
    "cr2": abi.CR2,
    "fs_base": abi.segment_offset("fs") + 8,
    "gs_base": abi.segment_offset("gs") + 8,
    "k_gs_base": abi.KERNEL_GS_BASE,
}


class LiveGuest:
    """`harness.debug.debuggee.Debuggee` for the guest that `live` drives on `machine`."""

    def __init__(self, machine: Machine, live: Live) -> None:
        self.documents = machine.gdb.documents
        self._live = live
        layout = slots(self.documents)
        self._by_number = {slot.number: slot for slot in layout}
        self._by_name = {slot.name: slot for slot in layout}
        self._gprs = {name: number for number, name in enumerate(GPR_NAMES)}
        self._put: dict[str, Callable[[str, int], None]] = {
            **dict.fromkeys(GPR_NAMES, self._write_gpr),
            **dict.fromkeys(_WORDS, self._write_word),
            **dict.fromkeys(_SEGMENTS, self._write_segment),
            **dict.fromkeys(CONTROL, self._write_control),
            "rip": self._write_rip,
            "eflags": self._write_flags,
        }

    # ---- registers

    def read_registers(self) -> bytes:
        with self._live.points.stopped() as gdb:
            raw = bytearray(gdb.raw_registers())
        believed = self._live.registers()
        del believed[_TASK_PRIORITY]
        for name, value in believed.items():
            slot = self._by_name[name]
            raw[slot.offset : slot.offset + slot.size] = (value & (1 << 8 * slot.size) - 1).to_bytes(
                slot.size, "little"
            )
        return bytes(raw)

    def write_register(self, number: int, value: bytes) -> None:
        slot = self._by_number.get(number)
        if slot is None:
            raise Refused(f"there is no register number {number}")
        if len(value) > slot.size:
            raise Refused(f"{slot.name} has {slot.size} bytes, not {len(value)}")
        put = self._put.get(slot.name)
        if put is not None:
            put(slot.name, int.from_bytes(value, "little"))
        else:
            self._write_processor(slot, value.ljust(slot.size, b"\0"))

    def _write_processor(self, slot: Slot, value: bytes) -> None:
        with self._live.points.stopped() as gdb:
            try:
                gdb.write_register(slot.number, value)
            except MachineError as error:
                raise Refused(str(error)) from error

    def _write_gpr(self, name: str, value: int) -> None:
        self._live.vcpu.set_gpr(self._gprs[name], value)

    def _write_word(self, name: str, value: int) -> None:
        self._live.vcpu.vmcb[_WORDS[name] >> 3] = value

    def _write_segment(self, name: str, value: int) -> None:
        old = self._live.registers()[name]
        if value != old:
            raise Refused(f"{name} cannot be changed from outside: the guest has to load the descriptor with it")

    def _write_rip(self, name: str, value: int) -> None:
        del name
        vmcb = self._live.vcpu.vmcb
        event = decode_event(vmcb[_EVENTINJ])
        if event is not None and event.kind is Kind.EXCEPTION:  # of the instruction that the guest now leaves
            vmcb[_EVENTINJ] = 0
        vmcb[_RIP] = value if self._code64 else value & _LOW

    def _write_flags(self, name: str, value: int) -> None:
        del name
        self._live.vcpu.vmcb[abi.RFLAGS >> 3] = value & _RFLAGS | _RFLAGS_ONE

    def _write_control(self, name: str, value: int) -> None:
        live = self._live
        state = written(live.state, name, value, self._code64)
        live.write_control(state, "cr3_load" if name == "cr3" else "control", value, f"{name} {TEXT}")

    @property
    def _code64(self) -> bool:
        return fetches(self._live.vcpu.vmcb)[1] == 64

    def flush(self, va: int | None) -> None:
        """What INVLPG of `va`, or a load of CR3 with the value that it has, would do."""
        live = self._live
        if va is None:
            self._write_control("cr3", live.state.cr3)
            return
        live.log.add("invlpg", live.vcpu.vmcb[_RIP], va, f"invlpg {TEXT}")
        live.engine.invlpg(va)

    # ---- memory

    def read_memory(self, va: int, count: int) -> bytes:
        self._bring_back()
        memory = self._live.domain.view.bytes
        data = b""
        for page, size in _pages(va, count):
            try:
                physical = self._physical(page)
            except Refused:
                if data:
                    break
                raise
            data += memory[physical : physical + size].tobytes()
        return data

    def write_memory(self, va: int, data: bytes) -> None:
        self._bring_back()
        live = self._live
        writes = [(self._physical(page), page - va, size) for page, size in _pages(va, len(data))]
        tables = live.engine.guest_tables()
        for physical, at, size in writes:
            gfn = physical >> bits.PAGE_SHIFT
            if gfn in tables:
                live.log.add("table_write", live.vcpu.vmcb[_RIP], gfn, TEXT)
                live.engine.table_written(gfn)
            if isinstance(live.engine, LogsStores):
                live.engine.log_dirty(gfn)
            live.domain.write_code(physical, data[at : at + size])

    def _physical(self, va: int) -> int:
        """Guest-physical address behind `va` by the guest's own tables. Raises Refused where there is no memory."""
        live = self._live
        physical = live.instructions.translate(va)
        if physical is None:
            raise Refused(f"the guest's tables do not map {va:#x}")
        if not live.domain.backed(physical >> bits.PAGE_SHIFT):
            raise Refused(f"{va:#x} is guest-physical {physical:#x}, which is no memory of the guest's")
        return physical

    def _bring_back(self) -> None:
        """Every frame that was taken away is back: a table among them would seem empty. Raises Refused."""
        domain = self._live.domain
        try:
            for gfn in list(domain.away):
                domain.give(gfn)
        except ValueError as error:
            raise Refused(f"frames of the guest are away and cannot be brought back: {error}") from error


def _pages(va: int, count: int) -> Iterator[tuple[int, int]]:
    """(address, bytes) of the part of `count` bytes at `va` that lies in each page."""
    end = va + count
    while va < end:
        size = min(end - va, bits.PAGE_SIZE - va % bits.PAGE_SIZE)
        yield va, size
        va += size
