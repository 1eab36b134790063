"""A guest that a debugger can be tried on without QEMU: some instructions, executed by Python, behind the proxy."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from harness.debug.debuggee import Refused
from harness.debug.description import Narrow
from harness.debug.proxy import INTERRUPTED, TRAPPED, Proxy, Resume, StopReason
from harness.debug.rsp import GdbServer
from harness.debug.scene import CommandError
from harness.intercept.points import Point, PointKind, PointSet
from harness.machine.errors import MachineError

CODE: Final = 0x100000
DATA: Final = 0x200000
SOURCE: Final = """
.globl _start, again, store, load, spin, finish, counter
_start: nop
again:  inc %eax
store:  mov %eax, (%{b}bx)
load:   mov (%{b}bx), %ecx
        jmp again
spin:   jmp spin
finish: hlt
.data
counter: .long 0
"""

GENERAL: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
SEGMENTS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
CONTROL: Final = ("fs_base", "gs_base", "k_gs_base", "cr0", "cr2", "cr3", "cr4", "cr8", "efer")
FLOAT: Final = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
LAYOUT: Final = (
    *((name, 64, "int64") for name in GENERAL),
    ("rip", 64, "code_ptr"),
    *((name, 32, "int32") for name in ("eflags", *SEGMENTS)),
    *((name, 64, "int64") for name in CONTROL),
    *((f"st{number}", 80, "i387_ext") for number in range(8)),
    *((name, 32, "int") for name in FLOAT),
    *((f"xmm{number}", 128, "uint128") for number in range(16)),
    ("mxcsr", 32, "int"),
)
"""The registers of QEMU's 64-bit description, in its order: name, bits, type."""

DOCUMENTS: Final = {
    "target.xml": b'<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>'
    b'<architecture>i386:x86-64</architecture><xi:include href="i386-64bit.xml"/></target>',
    "i386-64bit.xml": (
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><feature name="org.gnu.gdb.i386.core">'
        + "".join(f'<reg name="{name}" bitsize="{bits}" type="{kind}"/>\n' for name, bits, kind in LAYOUT)
        + "</feature>"
    ).encode(),
}


def build(folder: Path, bits: int) -> Path:
    """The ELF image of the guest's program for 32- or 64-bit code."""
    name = f"toy{bits}"
    (folder / f"{name}.s").write_text(SOURCE.format(b="r" if bits == 64 else "e"))
    emulation = "elf_x86_64" if bits == 64 else "elf_i386"
    layout = [f"-Ttext={CODE:#x}", f"-Tdata={DATA:#x}", "-e", "_start"]
    for command in (
        ["as", f"--{bits}", "-g", "-o", f"{name}.o", f"{name}.s"],
        ["ld", "-n", "-m", emulation, *layout, "-o", f"{name}.elf", f"{name}.o"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    return folder / f"{name}.elf"


class FakeGuest:
    """A `Debuggee` and its points. memory: page number -> 4096 bytes. refused: register number -> why it cannot be
    written. broken: every access raises MachineError. attention: asked while it runs."""

    def __init__(self, image: Path | None = None) -> None:
        self.documents = dict(DOCUMENTS)
        self.registers = {name: 0 for name, _, _ in LAYOUT}
        self.registers |= {"rip": CODE, "rbx": DATA, "eflags": 2, "cr0": 0x80010031, "cr3": 0x300000, "efer": 0x500}
        self.memory = {CODE >> 12: bytearray(4096), DATA >> 12: bytearray(4096)}
        self.points = PointSet()
        self.refused: dict[int, str] = {}
        self.broken = False
        self.attention: Callable[[], bool] = lambda: False
        if image is not None:
            # Assembled once more, to a flat file: what the ELF has at CODE.
            flat = image.with_suffix(".bin")
            command = ["objcopy", "-O", "binary", "-j", ".text", str(image), str(flat)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            code = flat.read_bytes()
            self.memory[CODE >> 12][: len(code)] = code

    # ---- Debuggee

    def read_registers(self) -> bytes:
        self._look()
        return b"".join(self.registers[name].to_bytes(bits // 8, "little") for name, bits, _ in LAYOUT)

    def write_register(self, number: int, value: bytes) -> None:
        self._look()
        if number in self.refused:
            raise Refused(self.refused[number])
        assert len(value) == LAYOUT[number][1] // 8
        self.registers[LAYOUT[number][0]] = int.from_bytes(value, "little")

    def read_memory(self, va: int, count: int) -> bytes:
        self._look()
        data = bytearray()
        for address in range(va, va + count):
            page = self.memory.get(address >> 12)
            if page is None:
                break
            data.append(page[address & 0xFFF])
        if not data:
            raise Refused(f"{va:#x} is not mapped")
        return bytes(data)

    def write_memory(self, va: int, data: bytes) -> None:
        self._look()
        if any(address >> 12 not in self.memory for address in range(va, va + len(data))):
            raise Refused(f"{va:#x} is not mapped")
        for address, byte in enumerate(data, va):
            self.memory[address >> 12][address & 0xFFF] = byte

    def _look(self) -> None:
        if self.broken:
            raise MachineError("QEMU has ended (exit status -9)")

    # ---- PointSetter

    def set_point(self, point: Point) -> None:
        self._look()
        self.points.add(point)

    def clear_point(self, point: Point) -> None:
        self._look()
        self.points.discard(point)

    # ---- running

    def step(self) -> Point | None:
        """Executes one instruction; the watchpoint that it hits."""
        at = self.registers["rip"]
        code = bytes(self.memory[at >> 12][at & 0xFFF :][:2])
        place = self.registers["rbx"]
        hit: tuple[PointKind, ...] = ()
        size = 2
        if code[:1] == b"\x90":
            size = 1
        elif code == b"\xff\xc0" or code[:1] == b"\x40":  # inc %eax, in 32-bit code in one byte
            size = 1 if code[:1] == b"\x40" else 2
            self.registers["rax"] = (self.registers["rax"] + 1) & 0xFFFF_FFFF
        elif code == b"\x89\x03":
            self.write_memory(place, (self.registers["rax"] & 0xFFFF_FFFF).to_bytes(4, "little"))
            hit = (PointKind.WRITE, PointKind.ACCESS)
        elif code == b"\x8b\x0b":
            self.registers["rcx"] = int.from_bytes(self.read_memory(place, 4), "little")
            hit = (PointKind.READ, PointKind.ACCESS)
        elif code[:1] == b"\xeb":
            size = 2 + int.from_bytes(code[1:2], "little", signed=True)
        else:
            raise AssertionError(f"the fake guest knows no {code.hex()} at {at:#x}")
        self.registers["rip"] = at + size
        return next((p for p in self.points.watching(place, 4) if p.kind in hit), None)

    @property
    def halts(self) -> bool:
        """Whether it is at its HLT, or where nothing is mapped: the end."""
        at = self.registers["rip"]
        page = self.memory.get(at >> 12)
        return page is None or page[at & 0xFFF] == 0xF4

    def run(self) -> StopReason | None:
        """Executes until something stops it; None once it has ended."""
        for count in range(1 << 62):
            if self.halts:
                return None
            if count % 100 == 0:
                if self.attention():
                    return StopReason(INTERRUPTED)
                time.sleep(0.0001)
            hit = self.step() or self.points.breaks_at(self.registers["rip"])
            if hit:
                return StopReason(TRAPPED, hit)
        return None


class FakeRun:
    """A debugging session over a `FakeGuest`, in a thread. ways: how gdb left each stop. first: the reason it is told
    first. alive: False once QEMU is to be dead."""

    def __init__(self, guest: FakeGuest, path: Path, narrow: bool = False) -> None:
        self.guest, self.narrow = guest, narrow
        self.ways: list[Resume] = []
        self.first = StopReason(text="at the entry")
        self.alive = True
        self.asked: StopReason | None = None  # the harness wants a stop of its own, as soon as can be
        self.server = GdbServer(path)
        guest.attention = lambda: self.server.wanted or self.asked is not None
        debuggee = Narrow(guest) if narrow else guest
        self.proxy = Proxy(self.server, debuggee, guest, self._command, lambda line: f"QEMU ran: {line}\r\n")
        self._closing = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait(self, seconds: float = 10.0) -> None:
        """Waits for the end of the session."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the debugging session does not end"

    def close(self) -> None:
        self._closing = True
        self.alive = False
        self.guest.attention = lambda: True
        self._thread.join(10.0)
        self.server.close()

    def _command(self, line: str) -> str:
        match line.split():
            case ["long"]:
                return "\n".join(f"line {number:04} äöü€𝄞" for number in range(1000))
            case ["mistake"]:
                raise ZeroDivisionError("on purpose")
            case ["help"]:
                return "walk VA"
        raise CommandError(f"xi knows no command {line!r}")

    def _work(self) -> None:
        reason: StopReason | None = self.first
        while reason is not None:
            how = self.proxy.serve(reason, lambda: self.alive)
            self.ways.append(how)
            if not self.alive:
                self.proxy.lost("QEMU has ended (exit status -9)")
                return
            if how is Resume.KILL:
                return
            reason = self._go(how)
        if not self._closing:
            self.proxy.exited(self.guest.registers["rax"] & 0xFF, "the guest has ended: verdict pass")

    def _go(self, how: Resume) -> StopReason | None:
        if how is not Resume.STEP:
            reason = self.guest.run()
        else:
            reason = None if self.guest.halts else StopReason(TRAPPED, self.guest.step())
        if reason is None or self.asked is None:
            return reason
        reason, self.asked = self.asked, None
        return reason
