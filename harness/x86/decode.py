"""Finding and decoding the instructions that change how addresses are translated.

Two steps, because a byte scan alone is wrong and a linear disassembly of unknown memory is worse: `candidates`
finds where such an instruction *could* start, `decode` asks capstone what really is there once the processor
is about to execute it. Sources: Intel SDM vol. 2, MOV to control registers, INVLPG, INVPCID, LMSW, WRMSR.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from capstone import x86_const as x86

from harness.x86.operands import MAX_INSTRUCTION, disassembler

# 0F 22 /r (MOV CRn), 0F 30 (WRMSR), 0F 01 /7 with a memory operand (INVLPG), 0F 01 /6 (LMSW),
# 66 0F 38 82 (INVPCID; the 66 is one of the prefixes looked for below).
_OPCODE = re.compile(
    rb"\x0f(?:\x22[\xc0-\xc7\xd8-\xdf\xe0-\xe7]|\x30|\x01[\x38-\x3f\x78-\x7f\xb8-\xbf]"
    rb"|\x01[\x30-\x37\x70-\x77\xb0-\xb7\xf0-\xf7]|\x38\x82)",
    re.DOTALL,
)
# Bytes that may stand before the opcode and belong to the instruction: REX, segment, operand and address size.
_PREFIX = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, *range(0x40, 0x50)))
_MAX_PREFIXES: Final = 3


@dataclass(frozen=True, slots=True)
class Operand:
    """Where the instruction's value or address comes from. Register names as the gdbstub names them (64-bit).

    register: a plain register operand. Otherwise memory: base + index * scale + displacement, with segment
    ``fs`` or ``gs`` adding its base; `rip_relative` counts from the next instruction.
    """

    register: str | None = None
    base: str | None = None
    index: str | None = None
    scale: int = 1
    displacement: int = 0
    segment: str | None = None


@dataclass(frozen=True, slots=True)
class ControlInstruction:
    """One decoded instruction. kind: cr0, cr3, cr4, wrmsr, invlpg, invpcid or lmsw. length in bytes."""

    kind: str
    length: int
    text: str
    operand: Operand

    def value(self, registers: Mapping[str, int], bits: int) -> int:
        """The register operand's value, or the memory operand's linear address, before the instruction runs.

        bits: 64 in 64-bit code, else 32 (values and addresses are cut to it).
        """
        operand, mask = self.operand, (1 << bits) - 1
        if operand.register is not None:
            return registers[operand.register] & mask
        address = operand.displacement
        if operand.base == "rip":
            address += registers["rip"] + self.length
        elif operand.base is not None:
            address += registers[operand.base]
        if operand.index is not None:
            address += registers[operand.index] * operand.scale
        if operand.segment is not None:
            address += registers[f"{operand.segment}_base"]
        return address & mask


def candidates(code: bytes) -> list[int]:
    """Offsets in `code` at which such an instruction may start, sorted. Each encoding is reported with every
    run of prefixes before it, since the bytes alone cannot say where the instruction before ends."""
    starts: set[int] = set()
    for match in _OPCODE.finditer(code):
        at = match.start()
        starts.add(at)
        for back in range(1, _MAX_PREFIXES + 1):
            if at - back < 0 or code[at - back] not in _PREFIX:
                break
            starts.add(at - back)
    return sorted(starts)


_KINDS: Final = {
    x86.X86_INS_INVLPG: "invlpg",
    x86.X86_INS_INVPCID: "invpcid",
    x86.X86_INS_LMSW: "lmsw",
    x86.X86_INS_WRMSR: "wrmsr",
}
_CONTROL: Final = {x86.X86_REG_CR0: "cr0", x86.X86_REG_CR3: "cr3", x86.X86_REG_CR4: "cr4"}

_WIDEN: Final = {
    **{f"e{name}": f"r{name}" for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp", "ip")},
    **{name: f"r{name}" for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")},
    **{f"r{n}d": f"r{n}" for n in range(8, 16)},
}


@lru_cache(maxsize=1024)
def decode(code: bytes, bits: int) -> ControlInstruction | None:
    """The instruction at the start of `code` (up to 15 bytes) in 16-, 32- or 64-bit code.

    None when it is something else: the candidate was a false positive.
    """
    engine = disassembler(bits)
    instruction = next(engine.disasm(code[:MAX_INSTRUCTION], 0, count=1), None)
    if instruction is None:
        return None
    text = f"{instruction.mnemonic} {instruction.op_str}".strip()

    def name(register: int) -> str | None:
        if register == x86.X86_REG_INVALID:
            return None
        plain = str(engine.reg_name(register))
        return _WIDEN.get(plain, plain)

    operands = instruction.operands
    if instruction.id == x86.X86_INS_MOV:
        kind = _CONTROL.get(operands[0].reg) if operands[0].type == x86.X86_OP_REG else None
        if kind is None:
            return None
        return ControlInstruction(kind, instruction.size, text, Operand(register=name(operands[1].reg)))
    kind = _KINDS.get(instruction.id)
    if kind is None:
        return None
    if kind == "wrmsr":
        return ControlInstruction(kind, instruction.size, text, Operand(register="rcx"))
    last = operands[-1]
    if last.type == x86.X86_OP_REG:
        return ControlInstruction(kind, instruction.size, text, Operand(register=name(last.reg)))
    memory = last.mem
    segment = {x86.X86_REG_FS: "fs", x86.X86_REG_GS: "gs"}.get(memory.segment)
    operand = Operand(None, name(memory.base), name(memory.index), memory.scale, memory.disp, segment)
    return ControlInstruction(kind, instruction.size, text, operand)
