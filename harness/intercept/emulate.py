"""A guest's access to what is not its RAM: the instruction is carried out for it.

Plain moves of data only, which is what drivers and probes use; anything else is refused by name rather than done
wrong. Sources: Intel SDM vol. 2, MOV, MOVZX, MOVSX/MOVSXD, MOVNTI; vol. 1, 3.4.1.1 (32-bit results).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

from capstone import x86_const as x86

from harness.x86.bits import PAGE_SIZE
from harness.x86.operands import REGISTERS, RIP, MemoryOperand, Register, first_instruction, memory_operand


class CannotEmulate(Exception):
    """The instruction is not one of those that are carried out here. The text tells which it is and why not."""


class Registers(Protocol):
    """The guest's general registers, by hardware number (0 = RAX .. 15 = R15)."""

    def gpr(self, number: int) -> int: ...
    def set_gpr(self, number: int, value: int) -> None: ...


class Bus(Protocol):
    """What answers at guest-physical addresses. size: 1, 2, 4 or 8."""

    def read(self, gpa: int, size: int) -> int: ...
    def write(self, gpa: int, size: int, value: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Move:
    """One decoded move between memory and a register, or from an immediate to memory.

    size: bytes of the memory access. register: None for an immediate. signed: a load into a wider register extends the
    sign, else zeroes.
    """

    length: int
    text: str
    memory: MemoryOperand
    size: int
    store: bool
    register: Register | None
    immediate: int = 0
    signed: bool = False


_MOVES: Final = frozenset(
    (x86.X86_INS_MOV, x86.X86_INS_MOVABS, x86.X86_INS_MOVNTI, x86.X86_INS_MOVZX, x86.X86_INS_MOVSX, x86.X86_INS_MOVSXD)
)
_SIGNED: Final = frozenset((x86.X86_INS_MOVSX, x86.X86_INS_MOVSXD))
_SIZES: Final = frozenset((1, 2, 4, 8))


@lru_cache(maxsize=1024)
def decode_move(code: bytes, bits: int) -> Move:
    """The move at the start of `code` (up to 15 bytes) in 16-, 32- or 64-bit code. Raises CannotEmulate."""
    instruction = first_instruction(code, bits)
    if instruction is None:
        raise CannotEmulate(f"{code.hex(' ')} is no instruction of {bits}-bit code")
    text = f"{instruction.mnemonic} {instruction.op_str}".strip()
    if instruction.id not in _MOVES:
        raise CannotEmulate(f"`{text}` accesses a device: only MOV, MOVZX, MOVSX and MOVNTI are carried out")
    target, source = instruction.operands
    store = target.type == x86.X86_OP_MEM
    if not store and source.type != x86.X86_OP_MEM:
        raise CannotEmulate(f"`{text}` has no memory operand")
    there, other = (target, source) if store else (source, target)
    register = None
    if other.type == x86.X86_OP_REG:
        register = REGISTERS.get(other.reg)
        if register is None:
            raise CannotEmulate(f"`{text}` moves a register that is not a general one")
    if there.size not in _SIZES:
        raise CannotEmulate(f"`{text}` accesses {there.size} bytes at once")
    return Move(
        instruction.size,
        text,
        memory_operand(instruction, there.mem, bits),
        there.size,
        store,
        register,
        0 if register is not None else other.imm & (1 << there.size * 8) - 1,
        instruction.id in _SIGNED,
    )


def emulate(code: bytes, bits: int, registers: Registers, gpa: int, bus: Bus, rip: int | None = None) -> int:
    """Carries out the move at the start of `code`, whose access met the guest-physical address `gpa`.

    rip: of the instruction, needed only to see whether a RIP-relative operand crosses into the page of `gpa`.
    Returns the instruction's length; the caller moves RIP. Raises CannotEmulate, with nothing done.
    """
    move = decode_move(code, bits)
    _refuse_crossing(move, registers, gpa, rip)
    try:
        if move.store:
            value = move.immediate if move.register is None else move.register.read(registers.gpr)
            bus.write(gpa, move.size, value)
        else:
            assert move.register is not None  # a MOV to memory is the only one with an immediate
            value = bus.read(gpa, move.size)
            if move.signed and value >> move.size * 8 - 1:
                value -= 1 << move.size * 8
            move.register.write(registers.gpr, registers.set_gpr, value)
    except ValueError as error:  # not a device after all
        raise CannotEmulate(f"`{move.text}`: {error}") from error
    return move.length


def _refuse_crossing(move: Move, registers: Registers, gpa: int, rip: int | None) -> None:
    offset = gpa & (PAGE_SIZE - 1)
    crosses = offset + move.size > PAGE_SIZE
    if offset == 0 and (rip is not None or move.memory.base != RIP):
        # The processor reports the second page of an access where that one faults: the operand then begins in front of
        # it. Segment bases are taken for multiples of 16, as they are in real mode and in every flat model.
        crosses |= move.memory.effective(registers.gpr, (rip or 0) + move.length) & 15 != 0
    if crosses:
        raise CannotEmulate(f"`{move.text}` crosses a page at guest-physical {gpa:#x}")
