"""Bits of page-table entries, control registers and #PF error codes.

Sources: Intel SDM vol. 3A, sections 2.5 (control registers), 4.3-4.5 (entries) and 4.7 (error code);
AMD APM vol. 2, sections 3.1 (system registers) and 5.3-5.6.
"""

from __future__ import annotations

from typing import Final

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
ENTRIES: Final = 512  # eight-byte entries in one table page

# Page-table entries.
PTE_P: Final = 1 << 0
PTE_RW: Final = 1 << 1
PTE_US: Final = 1 << 2
PTE_PWT: Final = 1 << 3
PTE_PCD: Final = 1 << 4
PTE_A: Final = 1 << 5
PTE_D: Final = 1 << 6
PTE_PS: Final = 1 << 7  # in entries that may map a large page; PAT in 4 KiB leaves
PTE_G: Final = 1 << 8
PTE_ADDR: Final = 0x000F_FFFF_FFFF_F000
PTE_PK_SHIFT: Final = 59
PTE_PK: Final = 0xF << PTE_PK_SHIFT
PTE_NX: Final = 1 << 63

# CR0
CR0_PE: Final = 1 << 0
CR0_MP: Final = 1 << 1
CR0_EM: Final = 1 << 2
CR0_TS: Final = 1 << 3
CR0_ET: Final = 1 << 4
CR0_WP: Final = 1 << 16
CR0_NW: Final = 1 << 29
CR0_CD: Final = 1 << 30
CR0_PG: Final = 1 << 31

# CR4
CR4_VME: Final = 1 << 0
CR4_PVI: Final = 1 << 1
CR4_TSD: Final = 1 << 2
CR4_DE: Final = 1 << 3
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_MCE: Final = 1 << 6
CR4_PGE: Final = 1 << 7
CR4_PCE: Final = 1 << 8
CR4_OSFXSR: Final = 1 << 9
CR4_OSXMMEXCPT: Final = 1 << 10
CR4_UMIP: Final = 1 << 11
CR4_LA57: Final = 1 << 12
CR4_FSGSBASE: Final = 1 << 16
CR4_PCIDE: Final = 1 << 17
CR4_OSXSAVE: Final = 1 << 18
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
CR4_PKE: Final = 1 << 22
CR4_PKS: Final = 1 << 24

RFLAGS_IF: Final = 1 << 9

# EFER
EFER_SCE: Final = 1 << 0
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11
EFER_SVME: Final = 1 << 12
EFER_FFXSR: Final = 1 << 14
MSR_EFER: Final = 0xC000_0080

# #PF error code
PF_P: Final = 1 << 0
PF_W: Final = 1 << 1
PF_U: Final = 1 << 2
PF_RSVD: Final = 1 << 3
PF_I: Final = 1 << 4
PF_PK: Final = 1 << 5

VECTOR_DB: Final = 1
VECTOR_UD: Final = 6
VECTOR_GP: Final = 13
VECTOR_PF: Final = 14


def error_code_text(code: int) -> str:
    """`code` as the field writes it, e.g. ``0x7 [P W U]``; ``0x0 [not-present read supervisor]`` for 0."""
    names = ((PF_P, "P"), (PF_W, "W"), (PF_U, "U"), (PF_RSVD, "RSVD"), (PF_I, "I"), (PF_PK, "PK"))
    flags = [name for bit, name in names if code & bit]
    return f"{code:#x} [{' '.join(flags) or 'not-present read supervisor'}]"
