"""Operands as the processor takes them: registers by hardware number, memory by its linear address.

Sources: Intel SDM vol. 2A, 2.1 and 2.2.1 (ModR/M, SIB, REX); vol. 1, 3.7.5 (address calculation); AMD APM vol. 1, 2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import capstone
from capstone import x86_const as x86

MAX_INSTRUCTION: Final = 15

NONE: Final = -1  # no register in this place
RIP: Final = 16  # a base that counts from the next instruction; no general register has this number

GPR_NAMES: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)


@dataclass(frozen=True, slots=True)
class Register:
    """A general register or a part of one. number: 0 = RAX .. 15 = R15 (SDM vol. 2A, table 2-2).

    size: bytes, 1 to 8. high: bits 15:8 (AH, CH, DH, BH); `number` is then the register they lie in, 0 to 3.
    """

    number: int
    size: int
    high: bool = False

    def read(self, gpr: Callable[[int], int]) -> int:
        value = gpr(self.number)
        if self.high:
            value >>= 8
        return value & (1 << self.size * 8) - 1

    def write(self, gpr: Callable[[int], int], set_gpr: Callable[[int, int], None], value: int) -> None:
        """A 32-bit result clears the upper half, narrower ones leave the rest (SDM vol. 1, 3.4.1.1)."""
        value &= (1 << self.size * 8) - 1
        if self.size < 4:
            shift = 8 if self.high else 0
            mask = (1 << self.size * 8) - 1 << shift
            value = gpr(self.number) & ~mask | value << shift
        set_gpr(self.number, value)


@dataclass(frozen=True, slots=True)
class MemoryOperand:
    """base + index * scale + displacement in `segment`.

    base, index: hardware numbers, NONE, or RIP as a base. address_bits: 16, 32 or 64, what the sum is cut to.
    code_bits: 16, 32 or 64. segment: es, cs, ss, ds, fs or gs, the default one where no prefix names another.
    """

    base: int
    index: int
    scale: int
    displacement: int
    segment: str
    address_bits: int
    code_bits: int

    def effective(self, gpr: Callable[[int], int], next_rip: int) -> int:
        """The offset in the segment. next_rip: of the instruction that follows, used by RIP-relative operands."""
        address = self.displacement
        if self.base == RIP:
            address += next_rip
        elif self.base != NONE:
            address += gpr(self.base)
        if self.index != NONE:
            address += gpr(self.index) * self.scale
        return address & (1 << self.address_bits) - 1

    def linear(self, gpr: Callable[[int], int], segment_base: Callable[[str], int], next_rip: int) -> int:
        """The linear address. In 64-bit code only FS and GS have a base (SDM vol. 1, 3.4.2.1)."""
        address = self.effective(gpr, next_rip)
        if self.code_bits == 64:
            if self.segment in ("fs", "gs"):
                address += segment_base(self.segment)
            return address & (1 << 64) - 1
        return address + segment_base(self.segment) & 0xFFFF_FFFF


def _registers() -> dict[int, Register]:
    """capstone's register -> ours."""
    found = {}
    legacy = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"]
    for number, name in enumerate(GPR_NAMES):
        if number < 8:
            names = {8: name, 4: f"e{legacy[number]}", 2: legacy[number]}
            names[1] = f"{legacy[number][0]}l" if number < 4 else f"{legacy[number]}l"
        else:
            names = {8: name, 4: f"{name}d", 2: f"{name}w", 1: f"{name}b"}
        for size, spelling in names.items():
            found[getattr(x86, f"X86_REG_{spelling.upper()}")] = Register(number, size)
    for number, name in enumerate(("AH", "CH", "DH", "BH")):
        found[getattr(x86, f"X86_REG_{name}")] = Register(number, 1, high=True)
    return found


REGISTERS: Final = _registers()
_IP: Final = frozenset((x86.X86_REG_RIP, x86.X86_REG_EIP))
_NO_INDEX: Final = frozenset((x86.X86_REG_INVALID, x86.X86_REG_EIZ, x86.X86_REG_RIZ))
SEGMENTS: Final = {
    x86.X86_REG_ES: "es",
    x86.X86_REG_CS: "cs",
    x86.X86_REG_SS: "ss",
    x86.X86_REG_DS: "ds",
    x86.X86_REG_FS: "fs",
    x86.X86_REG_GS: "gs",
}
_STACK_BASES: Final = (4, 5)  # RSP and RBP as a base address the stack segment


@lru_cache(maxsize=3)
def disassembler(bits: int) -> capstone.Cs:
    """capstone for 16-, 32- or 64-bit code, with operands."""
    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    engine = capstone.Cs(capstone.CS_ARCH_X86, mode)
    engine.detail = True
    return engine


# capstone has no types: its instructions and operands are `Any` here.


def first_instruction(code: bytes, bits: int) -> Any | None:
    """capstone's instruction at the start of `code`, None where there is none."""
    return next(disassembler(bits).disasm(code[:MAX_INSTRUCTION], 0, count=1), None)


def memory_operand(instruction: Any, memory: Any, bits: int) -> MemoryOperand:
    """`memory`: capstone's operand of `instruction`, in `bits`-bit code. Vector registers as an index are not known."""
    if memory.base in _IP:
        base = RIP
    else:
        base = REGISTERS[memory.base].number if memory.base else NONE
    index = NONE if memory.index in _NO_INDEX else REGISTERS[memory.index].number
    segment = SEGMENTS.get(memory.segment, "ss" if base in _STACK_BASES else "ds")
    return MemoryOperand(base, index, memory.scale, memory.disp, segment, instruction.addr_size * 8, bits)
