"""What CPUID tells a guest in live mode: the processor's answer without what the harness cannot honour.

Sources: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from harness.x86.bits import CR4_OSXSAVE, CR4_PKE

Registers = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""

EAX, EBX, ECX, EDX = range(4)
ALL: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Hidden:
    """`bits` of one register of CPUID that read as 0. subleaf None: in every subleaf."""

    leaf: int
    subleaf: int | None
    register: int
    bits: int
    why: str


HIDDEN: Final = (
    Hidden(0x1, None, ECX, 1 << 5, "VMX: there is no second level of virtualisation"),
    Hidden(0x1, None, ECX, 1 << 17, "PCID: CR3 loads flush"),
    Hidden(0x7, 0, EBX, 1 << 10, "INVPCID: as PCID"),
    Hidden(0x7, 0, ECX, 1 << 7, "CET_SS: shadow-stack pages are not shadowed"),
    Hidden(0x7, 0, ECX, 1 << 31, "PKS: keys of supervisor pages are not shadowed"),
    Hidden(0x7, 0, EDX, 1 << 20, "CET_IBT: CR4.CET is not the guest's"),
    Hidden(0x7, 1, EAX, 1 << 6, "LASS: linear addresses are checked before the walk"),
    Hidden(0x7, 1, EAX, 1 << 17, "FRED: events are injected as IDT events"),
    Hidden(0x7, 1, EAX, 1 << 26, "LAM: linear addresses are masked before the walk"),
    Hidden(0x8000_0001, None, ECX, 1 << 2, "SVM: the monitor's"),
    Hidden(0x8000_0001, None, ECX, 1 << 12, "SKINIT: SVM's"),
    Hidden(0x8000_0008, None, EBX, 1 << 3, "INVLPGB: not intercepted"),
    *(Hidden(0x8000_000A, None, register, ALL, "SVM's features") for register in (EAX, EBX, ECX, EDX)),
    *(Hidden(0x8000_001F, None, register, ALL, "memory encryption: bits of addresses") for register in (EAX, EBX)),
    Hidden(0x8000_0021, None, EAX, 1 << 7, "upper address ignore: linear addresses are masked before the walk"),
)


@dataclass(frozen=True, slots=True)
class Mirrored:
    """A bit of CPUID that shows a bit of CR4, which is the guest's own and not the processor's."""

    leaf: int
    register: int
    bit: int
    cr4: int
    name: str


MIRRORED: Final = (
    Mirrored(0x1, ECX, 27, CR4_OSXSAVE, "OSXSAVE"),
    Mirrored(0x7, ECX, 4, CR4_PKE, "OSPKE"),
)

_LEAVES: Final = frozenset([row.leaf for row in HIDDEN] + [row.leaf for row in MIRRORED])


def mask_cpuid(leaf: int, subleaf: int, registers: Registers, cr4: int) -> Registers:
    """What the guest gets. registers: the processor's answer. cr4: as the guest believes it."""
    if leaf not in _LEAVES:
        return registers
    out = list(registers)
    for hidden in HIDDEN:
        if hidden.leaf == leaf and hidden.subleaf in (None, subleaf):
            out[hidden.register] &= ~hidden.bits
    for mirror in MIRRORED:
        if mirror.leaf == leaf and (leaf != 7 or subleaf == 0):
            out[mirror.register] &= ~(1 << mirror.bit)
            out[mirror.register] |= bool(cr4 & mirror.cr4) << mirror.bit
    eax, ebx, ecx, edx = out
    return eax, ebx, ecx, edx
