"""The processor's state under live mode: what the VMCB holds while the guest believes something else.

The guest runs on the shadow's root in the shadow's format, with paging always on; its own CR0, CR3, CR4 and EFER
are only believed. Source: AMD APM vol. 2, 15.5 (VMRUN), appendix B (VMCB).
"""

from __future__ import annotations

from typing import Final

from harness.engine import ShadowRoot
from harness.machine import monitor_abi as abi
from harness.machine.mailbox import BOOT_INFO, BOOT_MAGIC, STOP_PORT
from harness.machine.ram import RamMap
from harness.machine.vcpu import Vcpu
from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.events import FAULTS_OF_DELIVERY
from harness.x86.msrs import msr_permission_map

EFER_SCE: Final = 1 << 0
EFER_SVME: Final = 1 << 12
# Bits of CR4 that have nothing to do with translation: the processor gets the guest's.
CR4_PASSED: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x40 | 0x100 | 0x200 | 0x400 | 0x800 | 1 << 16 | 1 << 18
#                   VME   PVI   TSD   DE    MCE    PCE     OSFXSR  OSXMM   UMIP    FSGSBASE  OSXSAVE
# CR4 keeps translations with PCID only where the monitor offers it; it does not (see `harness.x86.control_writes`).

CODE32: Final = (0x08, 0xC9B)  # selector and attributes (APM vol. 2, 15.5.1: bits 55:52 and 47:40 of the descriptor)
DATA32: Final = (0x10, 0xC93)
FLAT_LIMIT: Final = 0xFFFF_FFFF
ENTRY_ESP: Final = 0x7000
PAT_RESET: Final = 0x0007_0406_0007_0406

_CR0, _CR3, _CR4, _EFER = (offset >> 3 for offset in (abi.CR0, abi.CR3, abi.CR4, abi.EFER))

INTERCEPTED_EXCEPTIONS: Final = sum(1 << vector for vector in (bits.VECTOR_PF, *FAULTS_OF_DELIVERY))


def enter_guest(vcpu: Vcpu, entry: int) -> ControlState:
    """Writes the state in which the firmware would enter a guest (see `xi_abi.h`), with every intercept that live mode
    needs. Gives the control registers as the guest finds them."""
    vmcb = vcpu.vmcb_fields
    vmcb.fill(0)
    vmcb["intercept_cr"] = abi.INTERCEPT_CR_READS | abi.INTERCEPT_CR_WRITES
    vmcb["intercept_exceptions"] = INTERCEPTED_EXCEPTIONS
    vmcb["intercept"] = abi.INTERCEPTS
    vmcb["iopm_base"], vmcb["msrpm_base"] = vcpu.iopm_address, vcpu.msrpm_address
    vmcb["asid"] = 1
    vmcb["tlb_control"] = abi.TLB_FLUSH_ALL
    for name in ("es", "ss", "ds", "fs", "gs"):
        _segment(vcpu, name, *DATA32, FLAT_LIMIT)
    _segment(vcpu, "cs", *CODE32, FLAT_LIMIT)
    _segment(vcpu, "gdtr", 0, 0, 0xFFFF)
    _segment(vcpu, "ldtr", 0, 0x82, 0xFFFF)
    _segment(vcpu, "idtr", 0, 0, 0x3FF)
    _segment(vcpu, "tr", 0, 0x8B, 0xFFFF)
    vmcb["dr7"], vmcb["dr6"] = 0x400, 0xFFFF_0FF0
    vmcb["rflags"], vmcb["rip"], vmcb["rsp"] = 2, entry, ENTRY_ESP
    vmcb["rax"] = BOOT_MAGIC
    vmcb["g_pat"] = PAT_RESET
    for number in range(16):
        if number not in (0, 4):
            vcpu.set_gpr(number, 0)
    vcpu.set_gpr(3, BOOT_INFO)
    return ControlState(cr0=0x11)


def _segment(vcpu: Vcpu, name: str, selector: int, attributes: int, limit: int) -> None:
    segment = vcpu.vmcb_fields[name]
    segment["selector"], segment["attributes"], segment["limit"], segment["base"] = selector, attributes, limit, 0


def run_on(vcpu: Vcpu, root: ShadowRoot, guest: ControlState) -> None:
    """From the next entry on the processor walks the tables of `root`; the rest of the registers are the guest's."""
    vmcb, control = vcpu.vmcb, root.control
    vmcb[_CR3] = root.root
    # PG without PE, paged real mode, is there for exactly this (APM vol. 2, 15.9).
    vmcb[_CR0] = control.cr0 & ~bits.CR0_PE | guest.cr0 & bits.CR0_PE
    vmcb[_CR4] = control.cr4 | guest.cr4 & CR4_PASSED
    vmcb[_EFER] = control.efer | EFER_SVME | guest.efer & EFER_SCE


def prepare_maps(ram: RamMap, vcpu: Vcpu) -> None:
    """Writes the permission maps: which MSRs and which I/O ports make the guest leave (APM vol. 2, 15.10, 15.11)."""
    ram.write(vcpu.msrpm_address, msr_permission_map())
    ports = bytearray(abi.IOPM_BYTES)
    ports[STOP_PORT >> 3] |= 1 << (STOP_PORT & 7)
    ram.write(vcpu.iopm_address, bytes(ports))
