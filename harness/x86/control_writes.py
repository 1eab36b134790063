"""What a write to CR0, CR3, CR4 or EFER makes of a guest's control state, and which writes raise #GP(0).

The rules are rows of tables. The guest of live mode must find what it would find on QEMU's own processor, which checks
less than silicon: each row says what the manuals ask for, what QEMU (7.2) does (read in target/i386/helper.c and
target/i386/tcg/sysemu/misc_helper.c, and seen in a guest of a few lines), and what is done here.

Sources: Intel SDM vol. 2B, MOV to control registers, LMSW, CLTS; vol. 3A, 2.5 (control registers), 4.1.2 (enabling
paging), 4.4.1 (PDPTEs); vol. 4, IA32_EFER; AMD APM vol. 2, 3.1 (system registers), 14.6 (long mode).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from harness.x86 import bits, modes
from harness.x86.control import ControlState


@dataclass(frozen=True, slots=True)
class GP:
    """The write raises #GP(0) and changes nothing."""


_LOW: Final = 0xFFFF_FFFF

Cpuid = Callable[[int, int], tuple[int, int, int, int]]
"""(leaf, subleaf) -> (EAX, EBX, ECX, EDX)."""

_EAX, _EBX, _ECX, _EDX = range(4)

# QEMU takes these whatever CPUID says (its CR4_RESERVED_MASK), PCIDE among them. Of the others it knows:
CR4_ALWAYS: Final = (
    *(bits.CR4_VME, bits.CR4_PVI, bits.CR4_TSD, bits.CR4_DE, bits.CR4_PSE, bits.CR4_PAE, bits.CR4_MCE, bits.CR4_PGE),
    *(bits.CR4_PCE, bits.CR4_OSFXSR, bits.CR4_OSXMMEXCPT, bits.CR4_PCIDE),
)
# bit of CR4 -> (leaf, register, bit) of CPUID that offers it; the subleaf is 0.
CR4_OFFERED_BY: Final = {
    bits.CR4_UMIP: (7, _ECX, 2),
    bits.CR4_LA57: (7, _ECX, 16),
    bits.CR4_FSGSBASE: (7, _EBX, 0),
    bits.CR4_OSXSAVE: (1, _ECX, 26),
    bits.CR4_SMEP: (7, _EBX, 7),
    bits.CR4_SMAP: (7, _EBX, 20),
    bits.CR4_PKE: (7, _ECX, 3),
    bits.CR4_PKS: (7, _ECX, 31),
}
EFER_OFFERED_BY: Final = {
    bits.EFER_SCE: (0x8000_0001, _EDX, 11),
    bits.EFER_LME: (0x8000_0001, _EDX, 29),
    bits.EFER_NXE: (0x8000_0001, _EDX, 20),
    bits.EFER_FFXSR: (0x8000_0001, _EDX, 25),
    bits.EFER_SVME: (0x8000_0001, _ECX, 2),
}


@dataclass(frozen=True, slots=True)
class Processor:
    """What the guest's processor has of these registers. cr4: the bits that may be set. efer: the bits that WRMSR
    changes. phys_bits: width of physical addresses. pcid: whether CPUID offers PCIDs."""

    cr4: int
    efer: int
    phys_bits: int = modes.PHYS_BITS_DEFAULT
    pcid: bool = False

    @classmethod
    def described_by(cls, cpuid: Cpuid) -> Processor:
        """As CPUID tells *the guest*: what is hidden from it (see `harness.x86.cpuid`) it does not have."""
        basic, extended = cpuid(0, 0)[_EAX], cpuid(0x8000_0000, 0)[_EAX]

        def offered(leaf: int, register: int, bit: int) -> bool:
            return leaf <= (extended if leaf >> 31 else basic) and bool(cpuid(leaf, 0)[register] >> bit & 1)

        return cls(
            cr4=sum(CR4_ALWAYS) + sum(bit for bit, where in CR4_OFFERED_BY.items() if offered(*where)),
            efer=sum(bit for bit, where in EFER_OFFERED_BY.items() if offered(*where)),
            phys_bits=cpuid(0x8000_0008, 0)[_EAX] & 0xFF if extended >= 0x8000_0008 else 36,
            pcid=offered(1, _ECX, 17),
        )


MAX: Final = Processor(
    cr4=sum(CR4_ALWAYS) + sum(bit for bit in CR4_OFFERED_BY if bit != bits.CR4_PKS),
    efer=bits.EFER_SCE | bits.EFER_LME | bits.EFER_NXE,
)
"""QEMU's `max` (7.2) as a guest of live mode sees it."""


@dataclass(frozen=True, slots=True)
class Write:
    """One write, as the rules see it. state: before it. value: what is written, cut to the operand's width.
    code64: the instruction is in 64-bit code (CS.L). pdptes: of a PAE guest, as a load of CR3 would find them."""

    state: ControlState
    value: int
    code64: bool
    processor: Processor
    pdptes: tuple[int, ...] = ()

    @property
    def long(self) -> bool:
        """Long mode is active (EFER.LMA)."""
        return bool(self.state.efer & bits.EFER_LMA)

    def sets(self, bit: int, old: int) -> bool:
        return bool(self.value & ~old & bit)

    def clears(self, bit: int, old: int) -> bool:
        return bool(old & ~self.value & bit)


class Native(Enum):
    """What QEMU (7.2, TCG) does with a write that the manuals forbid."""

    FAULTS = "raises #GP(0) as well"
    ACCEPTS = "writes the register"
    DROPS = "leaves the register as it is"
    IS_LOST = "takes a #VMEXIT without a guest, loads its state from physical address 0, and is reset in the end"


class Here(Enum):
    """What is done with such a write in live mode."""

    FAULT = "#GP(0)"
    ACCEPT = "the register is written"
    DROP = "the register stays as it is"


@dataclass(frozen=True, slots=True)
class Rule:
    """One reason for #GP(0). source: where the manuals say so. why: needed where `here` is not what QEMU does."""

    name: str
    source: str
    broken_by: Callable[[Write], bool]
    native: Native
    here: Here
    why: str = ""


_NOT_OURS: Final = "QEMU's processor does not survive it: silicon's answer"

CR0_RULES: Final = (
    Rule(
        "bits 63:32",
        "SDM vol. 3A, 2.5",
        lambda w: bool(w.value >> 32),
        Native.ACCEPTS,  # and forgets them
        Here.ACCEPT,
    ),
    Rule(
        "PG without PE",
        "SDM vol. 3A, 2.5, PG; APM vol. 2, 3.1.1",
        lambda w: bool(w.value & bits.CR0_PG) and not w.value & bits.CR0_PE,
        Native.ACCEPTS,
        Here.ACCEPT,
    ),
    Rule(
        "NW without CD",
        "SDM vol. 3A, 2.5, CD",
        lambda w: bool(w.value & bits.CR0_NW) and not w.value & bits.CR0_CD,
        Native.ACCEPTS,
        Here.ACCEPT,
    ),
    Rule(
        "PG set with LME and without PAE",
        "SDM vol. 3A, 4.1.2; APM vol. 2, 14.6.1",
        lambda w: (
            w.sets(bits.CR0_PG, w.state.cr0) and bool(w.state.efer & bits.EFER_LME) and not w.state.cr4 & bits.CR4_PAE
        ),
        Native.DROPS,
        Here.DROP,
    ),
    Rule(
        "PG cleared in 64-bit code",
        "SDM vol. 3A, 4.1.2; APM vol. 2, 14.7",
        lambda w: w.clears(bits.CR0_PG, w.state.cr0) and w.code64,
        Native.ACCEPTS,  # and cuts RIP to 32 bits
        Here.ACCEPT,
    ),
    Rule(
        "PG cleared with PCIDE",
        "SDM vol. 3A, 4.10.1",
        lambda w: w.clears(bits.CR0_PG, w.state.cr0) and bool(w.state.cr4 & bits.CR4_PCIDE),
        Native.ACCEPTS,
        Here.ACCEPT,
    ),
)


def _beyond_physical(write: Write) -> bool:
    return write.long and bool(write.value >> write.processor.phys_bits)


def _bad_pdpte(write: Write) -> bool:
    """SDM table 4-8: bits 2:1, 8:5 and everything above MAXPHYADDR."""
    reserved = 0x1E6 | (1 << 64) - (1 << write.processor.phys_bits)
    return any(entry & bits.PTE_P and entry & reserved for entry in write.pdptes)


CR3_RULES: Final = (
    Rule(
        "bits above MAXPHYADDR in long mode",
        "SDM vol. 2B, MOV to CR3; vol. 3A, 2.5",
        _beyond_physical,
        Native.IS_LOST,
        Here.FAULT,
        _NOT_OURS,
    ),
    # A processor loads four PDPTEs with CR3 and checks them. QEMU reads them at each walk and checks only NX then
    # (see `harness.x86.modes.reserved_bits`): this row is off, or a guest that runs on QEMU would fault here.
    Rule(
        "reserved bits in a PDPTE of a PAE guest",
        "SDM vol. 3A, 4.4.1",
        _bad_pdpte,
        Native.ACCEPTS,
        Here.ACCEPT,
    ),
)

CR4_RULES: Final = (
    Rule(
        "bits that the processor does not have",
        "SDM vol. 3A, 2.5; APM vol. 2, 3.1.3",
        lambda w: bool(w.value & ~w.processor.cr4),
        Native.IS_LOST,
        Here.FAULT,
        _NOT_OURS,
    ),
    Rule(
        "PCIDE that CPUID does not offer",
        "SDM vol. 3A, 4.10.1",
        lambda w: bool(w.value & bits.CR4_PCIDE) and not w.processor.pcid,
        Native.ACCEPTS,  # and keeps no translations apart by it: the bit is only remembered, here as there
        Here.ACCEPT,
    ),
    Rule(
        "PCIDE set outside long mode, or with CR3[11:0] not 0",
        "SDM vol. 3A, 4.10.1",
        lambda w: w.sets(bits.CR4_PCIDE, w.state.cr4) and (not w.long or bool(w.state.cr3 & 0xFFF)),
        Native.ACCEPTS,
        Here.ACCEPT,
    ),
    Rule(
        "PAE cleared in long mode",
        "SDM vol. 3A, 4.1.2; APM vol. 2, 14.7",
        lambda w: w.clears(bits.CR4_PAE, w.state.cr4) and w.long,
        Native.ACCEPTS,
        Here.FAULT,
        "64-bit code on two-level tables is no mode that a shadow can have; QEMU's guest seldom lives to the next line",
    ),
    Rule(
        "LA57 changed in 64-bit code",
        "SDM vol. 3A, 4.1.2",
        lambda w: bool((w.value ^ w.state.cr4) & bits.CR4_LA57) and w.code64,
        Native.FAULTS,
        Here.FAULT,
    ),
    Rule(
        "LA57 changed in compatibility mode",
        "SDM vol. 3A, 4.1.2",
        lambda w: bool((w.value ^ w.state.cr4) & bits.CR4_LA57) and w.long and not w.code64,
        Native.ACCEPTS,
        Here.ACCEPT,
    ),
)

EFER_RULES: Final = (
    Rule(
        "bits that the processor does not have",  # SVME among them: no SVM is offered to a guest
        "SDM vol. 4, IA32_EFER; APM vol. 2, 3.1.7",
        lambda w: bool(w.value & ~(w.processor.efer | bits.EFER_LMA)),
        Native.ACCEPTS,  # and forgets them
        Here.ACCEPT,
    ),
    Rule(
        "LMA changed",
        "APM vol. 2, 3.1.7",  # Intel's processors ignore it
        lambda w: bool((w.value ^ w.state.efer) & bits.EFER_LMA),
        Native.ACCEPTS,  # and leaves it as it is
        Here.ACCEPT,
    ),
    Rule(
        "LME changed with paging on",
        "SDM vol. 3A, 4.1.2; APM vol. 2, 3.1.7",
        lambda w: bool((w.value ^ w.state.efer) & bits.EFER_LME & w.processor.efer) and bool(w.state.cr0 & bits.CR0_PG),
        Native.ACCEPTS,
        Here.FAULT,
        "LME and LMA that differ while paging is on are no mode of `harness.x86.modes`",
    ),
)


def _on(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules if rule.here is not Here.ACCEPT)


_CR0, _CR3, _CR4, _EFER = map(_on, (CR0_RULES, CR3_RULES, CR4_RULES, EFER_RULES))


def write_cr0(state: ControlState, value: int, code64: bool, processor: Processor = MAX) -> ControlState | GP:
    """MOV to CR0. EFER.LMA follows PG and LME. Where PG is cleared in 64-bit code, the caller cuts RIP to 32 bits."""
    verdict = _judge(_CR0, Write(state, value, code64, processor))
    if verdict is not Here.ACCEPT:
        return GP() if verdict is Here.FAULT else state
    new = value & _LOW | bits.CR0_ET  # reserved bits below 32 are kept, as QEMU does; ET is 1 in every processor
    efer = state.efer
    if new & ~state.cr0 & bits.CR0_PG and efer & bits.EFER_LME:
        efer |= bits.EFER_LMA
    elif not new & bits.CR0_PG:
        efer &= ~bits.EFER_LMA
    return replace(state, cr0=new, efer=efer)


def clts(state: ControlState) -> ControlState:
    return replace(state, cr0=state.cr0 & ~bits.CR0_TS)


def lmsw(state: ControlState, value: int, code64: bool = False, processor: Processor = MAX) -> ControlState | GP:
    """LMSW: PE, MP, EM and TS of `value`; PE can be set and not cleared."""
    low = bits.CR0_PE | bits.CR0_MP | bits.CR0_EM | bits.CR0_TS
    return write_cr0(state, state.cr0 & ~low | state.cr0 & bits.CR0_PE | value & low, code64, processor)


def smsw(state: ControlState, size: int) -> int:
    """What SMSW stores in an operand of `size` bytes: the low part of CR0 (QEMU: of all of it, SDM: bits 15:0)."""
    return state.cr0 & (1 << size * 8) - 1


def write_cr3(
    state: ControlState, value: int, processor: Processor = MAX, pdptes: tuple[int, ...] = ()
) -> ControlState | GP:
    """MOV to CR3. Outside long mode it has 32 bits. pdptes: the four that a PAE guest would load (see `CR3_RULES`)."""
    if not state.efer & bits.EFER_LMA:
        value &= _LOW
    verdict = _judge(_CR3, Write(state, value, False, processor, pdptes))
    return GP() if verdict is Here.FAULT else replace(state, cr3=value)


def write_cr4(state: ControlState, value: int, code64: bool, processor: Processor = MAX) -> ControlState | GP:
    """MOV to CR4."""
    verdict = _judge(_CR4, Write(state, value, code64, processor))
    return GP() if verdict is Here.FAULT else replace(state, cr4=value)


def write_efer(state: ControlState, value: int, processor: Processor = MAX) -> ControlState | GP:
    """WRMSR to EFER. Bits that the processor does not have, and LMA, keep their value."""
    verdict = _judge(_EFER, Write(state, value, False, processor))
    if verdict is Here.FAULT:
        return GP()
    return replace(state, efer=state.efer & ~processor.efer | value & processor.efer)


def _judge(rules: tuple[Rule, ...], write: Write) -> Here:
    """What becomes of `write`. rules: those of one register that are on."""
    for rule in rules:
        if rule.broken_by(write):
            return rule.here
    return Here.ACCEPT
