"""Intercepted instructions in live mode: control registers, MSRs, CPUID, INVLPG and HLT, done as the guest expects."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from harness.engine import ShadowRoot
from harness.intercept.interception import Outcome
from harness.machine import monitor_abi as abi
from harness.machine.errors import MachineError
from harness.machine.ram import Bytes
from harness.machine.vcpu import Vcpu
from harness.x86 import bits, control_writes
from harness.x86.control import ControlState
from harness.x86.control_writes import GP
from harness.x86.cpuid import mask_cpuid
from harness.x86.intercepted import Intercepted, decode_exit
from harness.x86.modes import MODES
from harness.x86.msrs import HiddenMsrs
from harness.x86.operands import MAX_INSTRUCTION

if TYPE_CHECKING:
    from harness.intercept.live import Live

Translate = Callable[[ControlState, int], int | None]

# Indices into the VMCB as 64-bit words.
RIP: Final = abi.RIP >> 3
EFER: Final = abi.EFER >> 3
CS_ATTRIBUTES: Final = abi.segment_offset("cs") >> 3  # selector, attributes and limit in one word
CS_BASE: Final = (abi.segment_offset("cs") >> 3) + 1
ATTRIBUTE_L: Final = 1 << 9 + 16  # of the word at CS_ATTRIBUTES
ATTRIBUTE_D: Final = 1 << 10 + 16
RCX: Final = 1
RDX: Final = 2
RBX: Final = 3

CR_NAMES: Final = {0: "cr0", 3: "cr3", 4: "cr4"}  # of the registers as `ControlState` has them

# Shadow format -> for each level from the root down: shift and mask of the index, and the bit that makes a leaf.
WALKS: Final = {
    name: tuple(
        (level.shift, level.entries - 1, bits.PTE_P if level.number == 1 else level.may_map_large * bits.PTE_PS)
        for level in mode.levels
    )
    for name, mode in MODES.items()
}


@lru_cache(maxsize=4096)
def _cr3_written(cr0: int, cr4: int, efer: int, pkru: int, value: int) -> ControlState | GP:
    """`write_cr3`, for guests that load the same few values over and over."""
    return control_writes.write_cr3(ControlState(cr0, 0, cr4, efer, pkru), value)


def fetches(vmcb: memoryview) -> tuple[int, int]:
    """The linear address of the instruction at RIP, and the width of the code there: 16, 32 or 64."""
    attributes, rip = vmcb[CS_ATTRIBUTES], vmcb[RIP]
    if attributes & ATTRIBUTE_L and vmcb[EFER] & bits.EFER_LMA:
        return rip, 64
    return rip + vmcb[CS_BASE] & 0xFFFF_FFFF, 32 if attributes & ATTRIBUTE_D else 16


class Instructions:
    """Fetches, decodes and carries out the instructions that the guest's processor left at.

    translate: (state, virtual address) -> guest-physical address or None, a walk of the guest's own tables.
    """

    def __init__(self, vcpu: Vcpu, machine: Bytes, translate: Translate) -> None:
        self._vcpu = vcpu
        self._bytes = machine.data.cast("B")
        self._q = self._bytes.cast("Q")
        self._translate = translate
        self._live: Live
        self._msrs = HiddenMsrs()
        self._handlers: dict[str, Callable[[Intercepted, int], Outcome | None]] = {
            "mov_to_cr": self._mov_to_cr,
            "mov_from_cr": self._mov_from_cr,
            "clts": self._clts,
            "lmsw": self._lmsw,
            "smsw": self._smsw,
            "invlpg": self._invlpg,
            "rdmsr": self._rdmsr,
            "wrmsr": self._wrmsr,
            "cpuid": self._do_cpuid,
            "hlt": self._hlt,
        }

    def attach(self, live: Live) -> None:
        self._live = live

    # ---- fetching

    def translate(self, va: int) -> int | None:
        """The guest-physical address behind `va` by the guest's own tables, None where there is none."""
        return self._translate(self._live.state, va)

    def code(self) -> tuple[bytes, int]:
        """Up to 15 bytes at RIP, as the processor fetched them just now, and the width of the code: 16, 32 or 64."""
        va, width = fetches(self._vcpu.vmcb)
        root = self._live.engine.root
        address = self._shadowed(root, va)
        if address < 0:
            raise MachineError(f"the processor left the guest at {va:#x}, which its tables do not map")
        room = bits.PAGE_SIZE - (address & (bits.PAGE_SIZE - 1))
        if room >= MAX_INSTRUCTION:
            return bytes(self._bytes[address : address + MAX_INSTRUCTION]), width
        code = bytes(self._bytes[address : address + room])
        following = self._shadowed(root, va + room)
        if following >= 0:  # else the instruction ends in front of the page that is not there
            code += bytes(self._bytes[following : following + MAX_INSTRUCTION - room])
        return code, width

    def _shadowed(self, root: ShadowRoot, va: int) -> int:
        """Machine address behind `va` in the tables that the processor itself has just fetched through; -1: none."""
        q, table = self._q, root.root
        for shift, mask, leaf in WALKS[root.mode.name]:
            entry = q[(table >> 3) + (va >> shift & mask)]
            if not entry & bits.PTE_P:
                return -1
            table = entry & bits.PTE_ADDR
            if entry & leaf:
                break
        return table & -1 << shift | va & (1 << shift) - 1

    # ---- carrying out

    def handle(self) -> Outcome | None:
        """Does what the instruction at RIP does, and moves RIP behind it unless it faults.

        Raises MachineError for one that nobody expects here.
        """
        instruction, width = self.decode()
        return self._handlers[instruction.kind](instruction, width)

    def decode(self) -> tuple[Intercepted, int]:
        """The instruction at RIP, and the width of the code. Raises MachineError for one that nobody expects here."""
        code, width = self.code()
        instruction = decode_exit(code, width)
        if instruction is None or instruction.kind not in self._handlers:
            rip = self._vcpu.vmcb[RIP]
            what = code.hex(" ") if instruction is None else instruction.text
            raise MachineError(f"the processor left the guest at rip {rip:#x} with an instruction not known: {what}")
        return instruction, width

    def _done(self, instruction: Intercepted, width: int) -> None:
        vmcb = self._vcpu.vmcb
        rip = vmcb[RIP] + instruction.length
        vmcb[RIP] = rip if width == 64 else rip & 0xFFFF_FFFF

    def _segment_base(self, name: str) -> int:
        return self._vcpu.vmcb[(abi.segment_offset(name) >> 3) + 1]

    def _changed(self, state: ControlState | GP, instruction: Intercepted, width: int, value: int) -> None:
        """The guest wrote a control register: takes over what it then has, or raises #GP in it."""
        live = self._live
        if isinstance(state, GP):
            live.fault(bits.VECTOR_GP, 0)
            return
        live.write_control(state, "cr3_load" if instruction.cr == 3 else "control", value, instruction.text)
        self._done(instruction, width)

    def _mov_to_cr(self, instruction: Intercepted, width: int) -> Outcome | None:
        state = self._live.state
        value = instruction.value(self._vcpu.gpr)
        if instruction.cr == 3:
            after = _cr3_written(state.cr0, state.cr4, state.efer, state.pkru, value)
        elif instruction.cr == 0:
            after = control_writes.write_cr0(state, value, width == 64)
        else:
            after = control_writes.write_cr4(state, value, width == 64)
        self._changed(after, instruction, width, value)
        return None

    def _mov_from_cr(self, instruction: Intercepted, width: int) -> Outcome | None:
        value: int = getattr(self._live.state, CR_NAMES[instruction.cr])
        self._vcpu.set_gpr(instruction.register, value & (1 << instruction.size * 8) - 1)
        self._done(instruction, width)
        return None

    def _clts(self, instruction: Intercepted, width: int) -> Outcome | None:
        state = self._live.state
        self._changed(control_writes.clts(state), instruction, width, state.cr0)
        return None

    def _memory_word(self, instruction: Intercepted) -> int:
        """Machine address of the 16-bit memory operand of LMSW or SMSW. Raises MachineError where nothing is mapped."""
        vmcb = self._vcpu.vmcb
        va = instruction.linear(self._vcpu.gpr, self._segment_base, vmcb[RIP])
        address = self._shadowed(self._live.engine.root, va)
        if address < 0 or address & 0xFFF == 0xFFF:
            raise MachineError(f"{instruction.text}: its operand at {va:#x} is not mapped in one page")
        return address

    def _lmsw(self, instruction: Intercepted, width: int) -> Outcome | None:
        state = self._live.state
        if instruction.memory is None:
            value = instruction.value(self._vcpu.gpr)
        else:
            address = self._memory_word(instruction)
            value = int.from_bytes(self._bytes[address : address + 2], "little")
        self._changed(control_writes.lmsw(state, value & 0xFFFF), instruction, width, value)
        return None

    def _smsw(self, instruction: Intercepted, width: int) -> Outcome | None:
        if instruction.memory is not None:
            raise MachineError(f"{instruction.text}: a store by an intercepted instruction is not carried out")
        number = instruction.register
        kept = self._vcpu.gpr(number) & 0xFFFF_FFFF_FFFF_0000 if instruction.size == 2 else 0
        self._vcpu.set_gpr(number, kept | control_writes.smsw(self._live.state, instruction.size))
        self._done(instruction, width)
        return None

    def _invlpg(self, instruction: Intercepted, width: int) -> Outcome | None:
        live = self._live
        rip = self._vcpu.vmcb[RIP]
        va = instruction.linear(self._vcpu.gpr, self._segment_base, rip)
        live.log.add("invlpg", rip, va, instruction.text)
        live.engine.invlpg(va)
        self._done(instruction, width)
        return None

    def _rdmsr(self, instruction: Intercepted, width: int) -> Outcome | None:
        live, vcpu = self._live, self._vcpu
        msr = vcpu.gpr(RCX) & 0xFFFF_FFFF
        live.log.add("msr", vcpu.vmcb[RIP], msr, instruction.text)
        value = live.state.efer if msr == bits.MSR_EFER else self._msrs.read(msr)
        vcpu.set_gpr(0, value & 0xFFFF_FFFF)
        vcpu.set_gpr(RDX, value >> 32)
        self._done(instruction, width)
        return None

    def _wrmsr(self, instruction: Intercepted, width: int) -> Outcome | None:
        live, vcpu = self._live, self._vcpu
        msr = vcpu.gpr(RCX) & 0xFFFF_FFFF
        value = vcpu.gpr(0) & 0xFFFF_FFFF | (vcpu.gpr(RDX) & 0xFFFF_FFFF) << 32
        if msr != bits.MSR_EFER:
            live.log.add("msr", vcpu.vmcb[RIP], msr, instruction.text)
            self._msrs.write(msr, value)
            self._done(instruction, width)
            return None
        self._changed(control_writes.write_efer(live.state, value), instruction, width, value)
        return None

    def _do_cpuid(self, instruction: Intercepted, width: int) -> Outcome | None:
        live, vcpu = self._live, self._vcpu
        leaf, subleaf = vcpu.gpr(0) & 0xFFFF_FFFF, vcpu.gpr(RCX) & 0xFFFF_FFFF
        live.log.add("cpuid", vcpu.vmcb[RIP], leaf, instruction.text)
        found = mask_cpuid(leaf, subleaf, vcpu.cpuid(leaf, subleaf), live.state.cr4)
        for number, value in zip((0, RBX, RCX, RDX), found, strict=True):
            vcpu.set_gpr(number, value)
        self._done(instruction, width)
        return None

    def _hlt(self, instruction: Intercepted, width: int) -> Outcome | None:
        vmcb = self._vcpu.vmcb
        if not vmcb[abi.RFLAGS >> 3] & bits.RFLAGS_IF:
            return Outcome.HALTED
        self._live.log.add("hlt", vmcb[RIP], 0)
        self._live.halt_in_guest()
        return None
