"""The standing guest of observe mode as a debugger sees it: registers and memory through QEMU's stub.

What the debugger writes is followed as if the guest had done it: control registers, page tables and code. As with the
guest's own stores, a translation that the processor holds already stays until it is flushed.
"""

from __future__ import annotations

import struct
from typing import Final

from harness.debug.control import CONTROL, TEXT, written
from harness.debug.debuggee import Refused
from harness.intercept.follow import control_state
from harness.intercept.observe import Observer, Translate
from harness.machine.errors import MachineError
from harness.machine.gdbstub import Register
from harness.machine.qemu import Machine
from harness.x86 import bits

PIECE: Final = 1024  # bytes of memory in a packet: QEMU (7.2) takes 4096 characters
_LOW: Final = 0xFFFF_FFFF

# The stub shows the registers in one layout whatever the width of the code, but outside 64-bit code it takes the
# numbers of a write (QEMU 7.2, x86_cpu_gdb_write_register) for those of the i386 order.
GPRS: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp")
NARROW: Final = {name: n for n, name in enumerate(("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"))}


class ObservedGuest:
    """`harness.debug.debuggee.Debuggee` for a guest that `observer` runs on `machine`.

    translate: (state, virtual address) -> physical address or None, a walk of the guest's own tables.
    """

    def __init__(self, machine: Machine, observer: Observer, translate: Translate) -> None:
        self._gdb = machine.gdb
        self._observer = observer
        self._translate = translate
        self._registers = {register.number: register for register in self._gdb.registers.values()}
        self.documents = self._gdb.documents

    # ---- registers

    def read_registers(self) -> bytes:
        return self._gdb.raw_registers()

    def write_register(self, number: int, value: bytes) -> None:
        register = self._registers.get(number)
        if register is None:
            raise Refused(f"there is no register number {number}")
        if len(value) > register.size:
            raise Refused(f"{register.name} has {register.size} bytes, not {len(value)}")
        value = value.ljust(register.size, b"\0")
        if register.name in CONTROL:
            self._write_control(register, int.from_bytes(value, "little"))
        elif register.name in GPRS:
            self._write_gpr(register, int.from_bytes(value, "little"))
        else:
            self._put(number, value)

    def _put(self, number: int, value: bytes) -> None:
        try:
            self._gdb.write_register(number, value)
        except MachineError as error:
            raise Refused(str(error)) from error

    def _write_control(self, register: Register, value: int) -> None:
        """As the guest's own instruction would: what raises #GP there is refused."""
        registers = self._gdb.read_registers()
        state = control_state(registers)
        after = written(state, register.name, value, bool(state.efer & bits.EFER_LMA))
        taken = getattr(after, register.name)
        self._put(register.number, struct.pack("<Q", taken)[: register.size])
        self._observer.control_written(register.name, f"{register.name} {TEXT}")

    def _write_gpr(self, register: Register, value: int) -> None:
        # Whether the code has 64 bits the stub does not tell (CS.L): what the write did tells.
        before = self._gdb.read_registers()
        self._put(register.number, struct.pack("<Q", value))
        after = self._gdb.read_registers()
        if after[register.name] == value and all(before[n] == after[n] for n in GPRS if n != register.name):
            return
        for other in GPRS:
            if before[other] != after[other]:
                self._put(NARROW[other], struct.pack("<Q", before[other]))
        self._put(NARROW[register.name], struct.pack("<Q", value & _LOW))

    # ---- memory

    def read_memory(self, va: int, count: int) -> bytes:
        data = b""
        for start, size in _pieces(va, count):
            (piece,) = self._gdb.read_memory([start], size)
            if piece is None:
                break
            data += piece
        if not data and count:
            raise Refused(f"nothing is mapped at {va:#x}")
        return data

    def write_memory(self, va: int, data: bytes) -> None:
        state = control_state(self._gdb.read_registers())
        writes: list[tuple[int, bytes]] = []
        for start, size in _pieces(va, len(data)):
            physical = self._translate(state, start)
            if physical is None:
                raise Refused(f"nothing is mapped at {start:#x}: nothing was written")
            at = start - va
            writes.append((physical, data[at : at + size]))
        self._gdb.write_physical(writes)
        self._observer.stored({physical >> bits.PAGE_SHIFT for physical, _ in writes})

    def flush(self, va: int | None) -> None:
        """What INVLPG of `va`, or a load of CR3 with the value that it has, would do."""
        cr3 = self._gdb.registers["cr3"]
        if va is None:
            self._write_control(cr3, self._gdb.read_registers()["cr3"])
            return
        # The stub has no INVLPG; a load of CR3 drops that translation too, and as far as XI is concerned no other.
        self._put(cr3.number, struct.pack("<Q", self._gdb.read_registers()["cr3"]))
        self._observer.invalidated(va, f"invlpg {TEXT}")


def _pieces(va: int, count: int) -> list[tuple[int, int]]:
    """(address, bytes) for `count` bytes at `va`, cut at the pages and to what a packet holds."""
    pieces = []
    end = va + count
    while va < end:
        size = min(end - va, PIECE - va % PIECE)
        pieces.append((va, size))
        va += size
    return pieces
