"""The monitor in the ROM and the VMCB, as numpy dtypes, offsets and enumerations.

Definitions: `firmware/xi_monitor.h` (what monitor and harness share; a test compiles it and holds it against these),
AMD APM vol. 2, appendix B (VMCB) and appendix C (exit codes).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np

from harness.x86 import bits

# ---- boot info and area

MONITOR_MAGIC: Final = 0x4E4D4958
MONITOR_VERSION: Final = 1
AREA_MSRPM: Final = 0x8000
AREA_IOPM: Final = 0xA000
MSRPM_BYTES: Final = 0x2000
IOPM_BYTES: Final = 0x3000

VCPU_BYTES: Final = 0x10000
VCPU_MAILBOX: Final = 0x0000
VCPU_VMCB: Final = 0x1000
VCPU_HSAVE: Final = 0x2000
VCPU_PROBE_VMCB: Final = 0x3000
VCPU_STACK: Final = 0x4000
VCPU_PROBE_TABLES: Final = 0x6000
VCPU_PROBE_BYTES: Final = 0x6000
VCPU_BUFFER: Final = 0xC000
VCPU_BUFFER_BYTES: Final = 0x4000


def vcpu_block(area: int, index: int) -> int:
    """Machine address of the block of vCPU `index`."""
    return area + (index + 1) * VCPU_BYTES


def area_bytes(vcpus: int) -> int:
    """The least size of an area for so many vCPUs."""
    return (vcpus + 1) * VCPU_BYTES


# ---- the mailbox of a vCPU

VCPU_MAGIC: Final = 0x55435658
FEATURE_PKU: Final = 1
VCPU: Final = np.dtype(
    [
        ("magic", "<u4"),
        ("version", "<u4"),
        ("index", "<u4"),
        ("features", "<u4"),
        ("exits", "<u8"),
        ("answered", "<u8"),
        ("command", "<u4"),
        ("pkru", "<u4"),
        ("vmcb", "<u8"),
        ("argument", "<u8", (4,)),
        ("result", "<u8", (4,)),
        ("gpr", "<u8", (16,)),
        ("probe_root", "<u8", (2,)),
        ("probe_stub", "<u8", (2,)),
        ("host_cr4", "<u8"),
    ]
)


class Command(IntEnum):
    RUN = 0
    CPUID = 1
    COPY = 2
    RUN_PROBES = 3
    READ = 4
    WRITE = 5


# The host has them as the guest has, see `xi_monitor.h`.
HOST_CR4: Final = bits.CR4_PSE | bits.CR4_PGE | bits.CR4_LA57 | bits.CR4_SMEP | bits.CR4_SMAP
SECOND_ROOT: Final = 8  # in a probe's op, for the monitor only
PROBE_ASID: Final = 1  # and 2, for the second root
GUEST_ASID: Final = 3  # and up
STUB_LOAD: Final = 0x00
STUB_STORE: Final = 0x10
STUB_FETCH: Final = 0x20

# ---- the VMCB

SEGMENT: Final = np.dtype([("selector", "<u2"), ("attributes", "<u2"), ("limit", "<u4"), ("base", "<u8")])
SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr")
_SAVE: Final = 0x400


def _vmcb() -> np.dtype[Any]:
    fields: dict[str, tuple[Any, int]] = {
        "intercept_cr": ("<u4", 0x00),  # reads in bits 15:0, writes in bits 31:16
        "intercept_dr": ("<u4", 0x04),
        "intercept_exceptions": ("<u4", 0x08),
        "intercept": ("<u8", 0x0C),  # the vectors 3 and 4 of appendix B
        "pause_filter_threshold": ("<u2", 0x3C),
        "pause_filter_count": ("<u2", 0x3E),
        "iopm_base": ("<u8", 0x40),
        "msrpm_base": ("<u8", 0x48),
        "tsc_offset": ("<u8", 0x50),
        "asid": ("<u4", 0x58),
        "tlb_control": ("u1", 0x5C),
        "virtual_interrupt": ("<u8", 0x60),
        "interrupt_shadow": ("<u8", 0x68),
        "exitcode": ("<u8", 0x70),
        "exitinfo1": ("<u8", 0x78),
        "exitinfo2": ("<u8", 0x80),
        "exitintinfo": ("<u8", 0x88),
        "nested_control": ("<u8", 0x90),
        "eventinj": ("<u8", 0xA8),
        "nested_cr3": ("<u8", 0xB0),
        "lbr_control": ("<u8", 0xB8),
        "clean_bits": ("<u4", 0xC0),
        "next_rip": ("<u8", 0xC8),
        "cpl": ("u1", 0x4CB),
        "efer": ("<u8", 0x4D0),
        "cr4": ("<u8", 0x548),
        "cr3": ("<u8", 0x550),
        "cr0": ("<u8", 0x558),
        "dr7": ("<u8", 0x560),
        "dr6": ("<u8", 0x568),
        "rflags": ("<u8", 0x570),
        "rip": ("<u8", 0x578),
        "rsp": ("<u8", 0x5D8),
        "rax": ("<u8", 0x5F8),
        "star": ("<u8", 0x600),
        "lstar": ("<u8", 0x608),
        "cstar": ("<u8", 0x610),
        "sfmask": ("<u8", 0x618),
        "kernel_gs_base": ("<u8", 0x620),
        "sysenter_cs": ("<u8", 0x628),
        "sysenter_esp": ("<u8", 0x630),
        "sysenter_eip": ("<u8", 0x638),
        "cr2": ("<u8", 0x640),
        "g_pat": ("<u8", 0x668),
        "debug_control": ("<u8", 0x670),
    }
    fields |= {name: (SEGMENT, _SAVE + number * SEGMENT.itemsize) for number, name in enumerate(SEGMENTS)}
    names = sorted(fields, key=lambda name: fields[name][1])
    return np.dtype(
        {
            "names": names,
            "formats": [fields[name][0] for name in names],
            "offsets": [fields[name][1] for name in names],
            "itemsize": 4096,
        }
    )


VMCB: Final = _vmcb()

# Byte offsets of the fields that every exit reads or writes.
ASID: Final = 0x58
TLB_CONTROL: Final = 0x5C
V_TPR: Final = 0x60
EXITCODE: Final = 0x70
EXITINFO1: Final = 0x78
EXITINFO2: Final = 0x80
EXITINTINFO: Final = 0x88
EVENTINJ: Final = 0xA8
CPL: Final = 0x4CB
EFER: Final = 0x4D0
CR4: Final = 0x548
CR3: Final = 0x550
CR0: Final = 0x558
RFLAGS: Final = 0x570
RIP: Final = 0x578
RSP: Final = 0x5D8
RAX: Final = 0x5F8
KERNEL_GS_BASE: Final = 0x620
CR2: Final = 0x640


def segment_offset(name: str) -> int:
    """Byte offset of segment register `name`: selector, attributes (2 bytes each), limit (4), base (8)."""
    return _SAVE + SEGMENTS.index(name) * SEGMENT.itemsize


TLB_FLUSH_ALL: Final = 1  # tlb_control (APM vol. 2, 15.16.2)

# Flat segments of ring 0, as SEGMENT has them. The attributes are bits 55:52 and 47:40 of the descriptor (APM vol. 2,
# 15.5.1).
FLAT_CODE32: Final = (0x08, 0xC9B, 0xFFFF_FFFF, 0)
FLAT_CODE64: Final = (0x08, 0xA9B, 0xFFFF_FFFF, 0)
FLAT_DATA: Final = (0x10, 0xC93, 0xFFFF_FFFF, 0)
FLAT_DATA_SEGMENTS: Final = ("es", "ss", "ds", "fs", "gs")

# What these registers hold after a reset (APM vol. 2, 14.1.3; 7.8 for PAT).
DR6_RESET: Final = 0xFFFF_0FF0
DR7_RESET: Final = 0x400
PAT_RESET: Final = 0x0007_0406_0007_0406

# ---- exits


class ExitCode(IntEnum):
    """EXITCODE (APM vol. 2, appendix C). EXCEPTION_BASE + vector for exceptions."""

    READ_CR0 = 0x00
    READ_CR3 = 0x03
    READ_CR4 = 0x04
    READ_CR8 = 0x08
    WRITE_CR0 = 0x10
    WRITE_CR3 = 0x13
    WRITE_CR4 = 0x14
    WRITE_CR8 = 0x18
    EXCEPTION_BASE = 0x40
    EXCEPTION_DB = 0x41
    EXCEPTION_UD = 0x46
    EXCEPTION_DF = 0x48
    EXCEPTION_GP = 0x4D
    EXCEPTION_PF = 0x4E
    INTR = 0x60
    NMI = 0x61
    SMI = 0x62
    INIT = 0x63
    VINTR = 0x64
    CR0_SEL_WRITE = 0x65
    IDTR_READ = 0x66
    GDTR_READ = 0x67
    LDTR_READ = 0x68
    TR_READ = 0x69
    IDTR_WRITE = 0x6A
    GDTR_WRITE = 0x6B
    LDTR_WRITE = 0x6C
    TR_WRITE = 0x6D
    RDTSC = 0x6E
    RDPMC = 0x6F
    PUSHF = 0x70
    POPF = 0x71
    CPUID = 0x72
    RSM = 0x73
    IRET = 0x74
    SWINT = 0x75
    INVD = 0x76
    PAUSE = 0x77
    HLT = 0x78
    INVLPG = 0x79
    INVLPGA = 0x7A
    IOIO = 0x7B
    MSR = 0x7C
    TASK_SWITCH = 0x7D
    FERR_FREEZE = 0x7E
    SHUTDOWN = 0x7F
    VMRUN = 0x80
    VMMCALL = 0x81
    VMLOAD = 0x82
    VMSAVE = 0x83
    STGI = 0x84
    CLGI = 0x85
    SKINIT = 0x86
    RDTSCP = 0x87
    ICEBP = 0x88
    WBINVD = 0x89
    MONITOR = 0x8A
    MWAIT = 0x8B
    MWAIT_CONDITIONAL = 0x8C
    XSETBV = 0x8D
    RDPRU = 0x8E
    INVLPGB = 0xA0
    INVPCID = 0xA2
    INVALID = 0xFFFF_FFFF  # all 64 bits set on silicon; QEMU (7.2) writes the lower half


def intercept_bit(code: ExitCode) -> int:
    """The bit of field `intercept` that makes the instruction or event exit with `code` (INTR .. XSETBV)."""
    return 1 << (code - ExitCode.INTR)


CR_EXITS: Final = (
    ExitCode.READ_CR0,
    ExitCode.READ_CR3,
    ExitCode.READ_CR4,
    ExitCode.WRITE_CR0,
    ExitCode.WRITE_CR3,
    ExitCode.WRITE_CR4,
)
INTERCEPT_CR_READS: Final = 1 << 0 | 1 << 3 | 1 << 4
INTERCEPT_CR_WRITES: Final = INTERCEPT_CR_READS << 16

# The guest's processor offers no SVM: these are undefined there.
SVM_INSTRUCTION_EXITS: Final = (
    ExitCode.VMRUN,
    ExitCode.VMMCALL,
    ExitCode.VMLOAD,
    ExitCode.VMSAVE,
    ExitCode.STGI,
    ExitCode.CLGI,
    ExitCode.SKINIT,
    ExitCode.INVLPGA,
)
_GUEST_EXITS: Final = (
    ExitCode.NMI,
    ExitCode.CPUID,
    ExitCode.HLT,
    ExitCode.INVLPG,
    ExitCode.IOIO,
    ExitCode.MSR,
    ExitCode.SHUTDOWN,
    *SVM_INSTRUCTION_EXITS,
)
INTERCEPTS: Final = sum(intercept_bit(code) for code in _GUEST_EXITS)
