"""The rules against QEMU's own processor: a guest of a few lines makes the writes and tells what it reads then."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final

import pytest

from harness.catalogue import FIRMWARE
from harness.machine.mailbox import BOOT_INFO, BOOT_MAGIC, EXIT_PORT
from harness.machine.qemu import Machine, MachineSpec
from harness.machine.ram import RamMap
from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.control_writes import GP, MAX, Processor, lmsw, write_cr0, write_cr3, write_cr4, write_efer
from harness.x86.cpuid import mask_cpuid
from tests.x86.assemble import build, needs_assembler

pytestmark = needs_assembler

ENTRY: Final = 0x10_0000
RESULTS: Final = 0x20_0000
TABLES: Final = 0x30_0000
FAULTED: Final = 13


@dataclass(frozen=True)
class Case:
    """One write by a guest whose registers are `state`. kind: cr0, cr3, cr4, lmsw or efer."""

    kind: str
    value: int
    state: ControlState

    def expected(self, code64: bool) -> ControlState | GP:
        if self.kind == "cr3":
            return write_cr3(self.state, self.value)
        if self.kind == "efer":
            return write_efer(self.state, self.value)
        if self.kind == "lmsw":
            return lmsw(self.state, self.value, code64)
        return (write_cr0 if self.kind == "cr0" else write_cr4)(self.state, self.value, code64)


FLAT: Final = ControlState(cr0=0x11)
LONG: Final = ControlState(0x8000_0011, TABLES, bits.CR4_PAE, bits.EFER_LME | bits.EFER_LMA)
WITH_LME: Final = replace(FLAT, efer=bits.EFER_LME)

# Only what QEMU survives, and what leaves the guest in the code it is in.
FLAT_CASES: Final = (
    *(Case("cr0", value, FLAT) for value in (0x1, 0x2000_0011, 0x6000_0011, 0x0FF0_FF91, 0x1_0011, 0x19)),
    *(Case("cr0", value, WITH_LME) for value in (0x8000_0011, 0x13)),
    *(Case("cr3", value, FLAT) for value in (0xFFFF_FFFF, 0x1018)),
    *(Case("cr4", 1 << n, FLAT) for n in range(32) if MAX.cr4 >> n & 1),
    *(Case("lmsw", value, replace(FLAT, cr0=0x19)) for value in (0, 0xFFF0, 0xFFFF)),
    *(Case("efer", value, FLAT) for value in (0, (1 << 64) - 1, bits.EFER_LMA, bits.EFER_NXE)),
    Case("efer", 0, replace(FLAT, efer=MAX.efer)),
)
LONG_CASES: Final = (
    *(Case("cr0", value, LONG) for value in (0x8000_0001, 0xFFFF_FFFF_8001_0011, 0xA000_0011)),
    *(Case("cr3", TABLES | low, LONG) for low in (0, 0x18, 0xFFF)),
    *(Case("cr4", value, LONG) for value in (0x20, 0x2_00A0, 0x1020, 0x1820)),  # PCIDE; LA57: #GP
    *(Case("efer", value, LONG) for value in (bits.EFER_LME, (1 << 64) - 1, bits.EFER_LME | bits.EFER_NXE)),
)

# Faults store 13 in %ebp and go on at the address in %esi.
START: Final = """
.code32
    movl $gate, %eax
    movw %ax, idt + 13 * 8
    shrl $16, %eax
    movw %ax, idt + 13 * 8 + 6
    lidt idtr
    movl $0x200000, %edi
"""
ENTER_LONG: Final = """
    movl $0x301003, 0x300000
    movl $0x302003, 0x301000
    movl $0x83, 0x302000
    movl $0x200083, 0x302008
    movl $0x300000, %eax
    movl %eax, %cr3
    movl $0x20, %eax
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    movl $0x100, %eax
    xorl %edx, %edx
    wrmsr
    movl $gate64, %eax
    movw %ax, idt64 + 13 * 16
    shrl $16, %eax
    movw %ax, idt64 + 13 * 16 + 6
    lidt idtr64
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    lgdt gdtr
    ljmp $0x18, $long
.code64
long:
"""
END: Final = f"""
    movl $1, %eax
    movl ${EXIT_PORT}, %edx
    outl %eax, %dx
1:  jmp 1b
.code32
gate:
    movl $13, %ebp
    movl $0x7000, %esp
    jmp *%esi
.code64
gate64:
    movl $13, %ebp
    movl $0x7000, %esp
    jmp *%rsi
    .balign 16
idt: .rept 32
    .word 0, 0x08, 0x8e00, 0
    .endr
idtr: .word 255
    .long idt
idt64: .rept 32
    .word 0, 0x18, 0x8e00, 0, 0, 0, 0, 0
    .endr
idtr64: .word 511
    .quad idt64
gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
gdtr: .word 31
    .long gdt
"""


def write(kind: str, value: int, wide: bool) -> str:
    """Source that makes the write; a fault goes on at the end of it."""
    move = f"movabs ${value:#x}, %rax" if wide else f"movl ${value & 0xFFFF_FFFF:#x}, %eax"
    if kind == "efer":
        move = f"movl $0xc0000080, %ecx\nmovl ${value & 0xFFFF_FFFF:#x}, %eax\nmovl ${value >> 32:#x}, %edx"
    name = "rax" if wide else "eax"
    action = {"efer": "wrmsr", "lmsw": "lmsw %ax"}.get(kind, f"mov %{name}, %{kind}")
    return f"movl $1f, %esi\n{move}\n{action}\n1:\n"


def read(wide: bool) -> str:
    """Source that stores whether a fault came, and the four registers."""
    out = "movl %ebp, %eax\nstosl\n"
    for register in ("cr0", "cr3", "cr4"):
        if wide:
            out += f"mov %{register}, %rax\nstosq\n"
        else:
            out += f"mov %{register}, %eax\nstosl\nxorl %eax, %eax\nstosl\n"
    return out + "movl $0xc0000080, %ecx\nrdmsr\nstosl\nmovl %edx, %eax\nstosl\n"


def source(cases: tuple[Case, ...], wide: bool) -> str:
    out = START + (ENTER_LONG if wide else "")
    for case in cases:
        state = case.state
        for kind, value in (("cr4", state.cr4), ("efer", state.efer), ("cr3", state.cr3), ("cr0", state.cr0)):
            out += write(kind, value, wide)
        out += "xorl %ebp, %ebp\n" + write(case.kind, case.value, wide) + read(wide)
    return out + END


def run(text: str, cpu: str, size: int) -> bytes:
    """What a guest with code `text` left at RESULTS."""
    image = build(text, ENTRY)
    assert len(image) < RESULTS - ENTRY

    def fill(ram: RamMap) -> None:
        ram.write(ENTRY, image)
        ram.write(BOOT_INFO, struct.pack("<4I", BOOT_MAGIC, ENTRY, ram.size, 0))

    with Machine(MachineSpec(cpu=cpu, bios=FIRMWARE), fill) as machine:
        machine.gdb.resume()
        assert machine.wait_exit(10) == 3, "the guest did not get to its end"
        return machine.ram.bytes[RESULTS : RESULTS + size].tobytes()


@pytest.mark.parametrize(("cases", "wide"), [(FLAT_CASES, False), (LONG_CASES, True)], ids=["32-bit", "64-bit"])
def test_the_processor_does_the_same(cases: tuple[Case, ...], wide: bool) -> None:
    record = struct.Struct("<I4Q")
    found = run(source(cases, wide), "max,-svm", len(cases) * record.size)
    for case, (fault, cr0, cr3, cr4, efer) in zip(cases, record.iter_unpack(found), strict=True):
        expected = case.expected(wide)
        if isinstance(expected, GP):
            assert fault == FAULTED, case
        else:
            assert fault == 0, case
            assert ControlState(cr0, cr3, cr4, efer) == expected, case


def test_max_is_what_qemu_calls_so() -> None:
    """`MAX` is the processor that a guest of live mode is told of."""
    leaves = (0, 1, 7, 0x8000_0000, 0x8000_0001, 0x8000_0008)
    text = START
    for leaf in leaves:
        text += f"movl ${leaf:#x}, %eax\nxorl %ecx, %ecx\ncpuid\nstosl\n"
        text += "".join(f"movl %{name}, %eax\nstosl\n" for name in ("ebx", "ecx", "edx"))
    found = dict(zip(leaves, struct.iter_unpack("<4I", run(text + END, "max", 16 * len(leaves))), strict=True))
    assert Processor.described_by(lambda leaf, subleaf: mask_cpuid(leaf, subleaf, found[leaf], 0)) == MAX
