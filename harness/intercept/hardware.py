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

# Bits of CR4 that have nothing to do with translation: the processor gets the guest's.
CR4_PASSED: Final = (bits.CR4_VME | bits.CR4_PVI | bits.CR4_TSD | bits.CR4_DE | bits.CR4_MCE | bits.CR4_PCE) | (
    bits.CR4_OSFXSR | bits.CR4_OSXMMEXCPT | bits.CR4_UMIP | bits.CR4_FSGSBASE | bits.CR4_OSXSAVE
)
# CR4 keeps translations with PCID only where the monitor offers it; it does not (see `harness.x86.control_writes`).

ENTRY_ESP: Final = 0x7000

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
    for name in abi.FLAT_DATA_SEGMENTS:
        vmcb[name] = abi.FLAT_DATA
    vmcb["cs"] = abi.FLAT_CODE32
    vmcb["gdtr"], vmcb["idtr"] = (0, 0, 0xFFFF, 0), (0, 0, 0x3FF, 0)
    vmcb["ldtr"], vmcb["tr"] = (0, 0x82, 0xFFFF, 0), (0, 0x8B, 0xFFFF, 0)
    vmcb["dr7"], vmcb["dr6"] = abi.DR7_RESET, abi.DR6_RESET
    vmcb["rflags"], vmcb["rip"], vmcb["rsp"] = 2, entry, ENTRY_ESP
    vmcb["rax"] = BOOT_MAGIC
    vmcb["g_pat"] = abi.PAT_RESET
    for number in range(16):
        if number not in (0, 4):
            vcpu.set_gpr(number, 0)
    vcpu.set_gpr(3, BOOT_INFO)
    return ControlState(cr0=bits.CR0_PE | bits.CR0_ET)


def run_on(vcpu: Vcpu, root: ShadowRoot, guest: ControlState) -> None:
    """From the next entry on the processor walks the tables of `root`; the rest of the registers are the guest's."""
    vmcb, control = vcpu.vmcb, root.control
    vmcb[_CR3] = root.root
    # PG without PE, paged real mode, is there for exactly this (APM vol. 2, 15.9).
    vmcb[_CR0] = control.cr0 & ~bits.CR0_PE | guest.cr0 & bits.CR0_PE
    vmcb[_CR4] = control.cr4 | guest.cr4 & CR4_PASSED
    vmcb[_EFER] = control.efer | bits.EFER_SVME | guest.efer & bits.EFER_SCE


def prepare_maps(ram: RamMap, vcpu: Vcpu) -> None:
    """Writes the permission maps: which MSRs and which I/O ports make the guest leave (APM vol. 2, 15.10, 15.11)."""
    ram.write(vcpu.msrpm_address, msr_permission_map())
    ports = bytearray(abi.IOPM_BYTES)
    ports[STOP_PORT >> 3] |= 1 << (STOP_PORT & 7)
    ram.write(vcpu.iopm_address, bytes(ports))
