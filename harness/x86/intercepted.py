"""The instruction at which the processor left a guest: what it is, how long, and with which operands.

SVM under QEMU (7.2) has neither next-RIP save nor decode assists (AMD APM vol. 2, 15.7.1, 15.8.4): every exit but I/O
leaves RIP at the instruction and tells nothing of it. Sources: Intel SDM vol. 2, the instructions' own pages; AMD APM
vol. 3, chapter 4, and its note on LOCK MOV CR0 (CR8 in 32-bit code).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from capstone import x86_const as x86

from harness.x86.operands import GPR_NAMES, MAX_INSTRUCTION, REGISTERS, MemoryOperand, first_instruction, memory_operand


@dataclass(frozen=True, slots=True)
class Intercepted:
    """One decoded instruction.

    kind: its mnemonic (``invlpg``, ``wrmsr``, ``cpuid`` ...), and ``mov_to_cr`` or ``mov_from_cr``. length: bytes, all
    prefixes included. cr: which control register, for the MOVs; CLTS, LMSW and SMSW have 0 here; else -1.
    register: hardware number (0 = RAX) of the general register operand, -1 if there is none. size: bytes of that
    operand (of the memory one, where there is no register). memory: the memory operand. immediate: of INT n.
    Operands that the architecture fixes (WRMSR's RCX, OUT's DX ...) are not told.
    """

    kind: str
    length: int
    text: str
    cr: int = -1
    register: int = -1
    size: int = 0
    memory: MemoryOperand | None = None
    immediate: int = 0

    @property
    def register_name(self) -> str | None:
        """The register operand's 64-bit name, e.g. ``rax``."""
        return GPR_NAMES[self.register] if self.register >= 0 else None

    def value(self, gpr: Callable[[int], int]) -> int:
        """The register operand, cut to its size. Raises ValueError if the instruction has none."""
        if self.register < 0:
            raise ValueError(f"{self.text}: no register operand")
        return gpr(self.register) & (1 << self.size * 8) - 1

    def linear(self, gpr: Callable[[int], int], segment_base: Callable[[str], int], rip: int) -> int:
        """The memory operand's linear address; rip: of this instruction. Raises ValueError if there is no such operand.

        segment_base: base of es, cs, ss, ds, fs or gs; in 64-bit code it is asked for fs and gs only.
        """
        if self.memory is None:
            raise ValueError(f"{self.text}: no memory operand")
        return self.memory.linear(gpr, segment_base, rip + self.length)


_KINDS: Final = {
    x86.X86_INS_CLTS: "clts",
    x86.X86_INS_LMSW: "lmsw",
    x86.X86_INS_SMSW: "smsw",
    x86.X86_INS_INVLPG: "invlpg",
    x86.X86_INS_INVPCID: "invpcid",
    x86.X86_INS_RDMSR: "rdmsr",
    x86.X86_INS_WRMSR: "wrmsr",
    x86.X86_INS_CPUID: "cpuid",
    x86.X86_INS_HLT: "hlt",
    x86.X86_INS_VMMCALL: "vmmcall",
    x86.X86_INS_VMRUN: "vmrun",
    x86.X86_INS_VMLOAD: "vmload",
    x86.X86_INS_VMSAVE: "vmsave",
    x86.X86_INS_STGI: "stgi",
    x86.X86_INS_CLGI: "clgi",
    x86.X86_INS_SKINIT: "skinit",
    x86.X86_INS_INVLPGA: "invlpga",
    x86.X86_INS_INT: "int",
    x86.X86_INS_INT3: "int3",
    x86.X86_INS_INTO: "into",
    x86.X86_INS_IN: "in",
    x86.X86_INS_OUT: "out",
    **{getattr(x86, f"X86_INS_INS{size}"): "ins" for size in "BWD"},
    **{getattr(x86, f"X86_INS_OUTS{size}"): "outs" for size in "BWD"},
}
KINDS: Final = frozenset((*_KINDS.values(), "mov_to_cr", "mov_from_cr"))

# The explicit operands that an exit's handler asks for; those of the others are fixed by the architecture.
_WITH_OPERANDS: Final = frozenset(("lmsw", "smsw", "invlpg", "invpcid"))
_IMPLIES_CR0: Final = frozenset(("clts", "lmsw", "smsw"))

_LOCK: Final = 0xF0
_LEGACY_PREFIXES: Final = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, _LOCK, 0xF2, 0xF3))
_MOV_CR: Final = {b"\x0f\x20": "mov_from_cr", b"\x0f\x22": "mov_to_cr"}
_HAS_CR: Final = frozenset((0, 2, 3, 4, 8))


@lru_cache(maxsize=4096)
def decode_exit(code: bytes, bits: int) -> Intercepted | None:
    """The instruction at the start of `code` (up to 15 bytes) in 16-, 32- or 64-bit code.

    None when it is none of `KINDS`, or when `code` ends too early.
    """
    code = code[:MAX_INSTRUCTION]
    moved = _mov_cr(code, bits)
    if moved is not None:
        return moved
    instruction = first_instruction(code, bits)
    kind = _KINDS.get(instruction.id) if instruction is not None else None
    if instruction is None or kind is None:
        return None
    text = f"{instruction.mnemonic} {instruction.op_str}".strip()
    cr = 0 if kind in _IMPLIES_CR0 else -1
    register, size, memory, immediate = -1, 0, None, 0
    if kind in _WITH_OPERANDS:
        for operand in instruction.operands:
            if operand.type == x86.X86_OP_REG:
                register, size = REGISTERS[operand.reg].number, operand.size
            else:
                memory = memory_operand(instruction, operand.mem, bits)
                size = size or operand.size
    elif kind == "int":
        immediate = instruction.operands[0].imm & 0xFF
    return Intercepted(kind, instruction.size, text, cr, register, size, memory, immediate)


def _mov_cr(code: bytes, bits: int) -> Intercepted | None:
    """MOV to and from a control register, by hand: the processor takes any ModR/M for a register operand, and LOCK
    makes CR0 CR8 (QEMU's processors have AltMovCr8); capstone knows neither."""
    at, lock, rex = 0, False, 0
    while at < len(code):
        byte = code[at]
        if byte in _LEGACY_PREFIXES:
            lock |= byte == _LOCK
            rex = 0  # a REX prefix that another prefix follows is ignored (SDM vol. 2A, 2.2.1)
        elif bits == 64 and byte & 0xF0 == 0x40:
            rex = byte
        else:
            break
        at += 1
    kind = _MOV_CR.get(code[at : at + 2])
    if kind is None or at + 3 > len(code):
        return None
    modrm = code[at + 2]
    register = modrm & 7 | (rex & 1) << 3
    cr = modrm >> 3 & 7 | (rex & 4) << 1
    if lock and cr == 0:
        cr = 8
    if cr not in _HAS_CR:
        return None
    name = GPR_NAMES[register]
    text = f"mov cr{cr}, {name}" if kind == "mov_to_cr" else f"mov {name}, cr{cr}"
    return Intercepted(kind, at + 3, text, cr, register, 8 if bits == 64 else 4)
