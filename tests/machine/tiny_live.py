"""A machine under the monitor with next to nothing in it: a page of code, and tables that map RAM onto itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from harness.catalogue import FIRMWARE
from harness.engine import ShadowRoot
from harness.machine import monitor_abi as abi
from harness.machine.deadline import Deadline
from harness.machine.mailbox import BOOT_INFO
from harness.machine.qemu import Machine, MachineSpec
from harness.machine.ram import RamMap
from harness.machine.vcpu import Vcpu, start_vcpus
from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.modes import LONG4, LONG5, MODES, PAE

AREA = 0x100000
TABLES = 0x400000  # one page each: PML5, PML4, PDPT, four PDs, PDPTEs of PAE
PML5, PML4, PDPT, PD, PDPTES = (TABLES + (page << 12) for page in (0, 1, 2, 3, 7))
CODE = 0x500000
RAM_MIB = 16
ALL = bits.PTE_P | bits.PTE_RW | bits.PTE_US
VMMCALL = b"\x0f\x01\xd9"
ROOTS = {LONG4.name: PML4, LONG5.name: PML5, PAE.name: PDPTES}


def boot_info(vcpus: int, area: int = AREA, room: int | None = None) -> bytes:
    size = abi.area_bytes(vcpus) if room is None else room
    return struct.pack("<4I", abi.MONITOR_MAGIC, vcpus, area, size)


def identity_tables(ram: RamMap) -> None:
    """4 GiB onto themselves with 2 MiB pages, all rights, in every format; the upper entries of the roots are empty."""
    words = ram.bytes.view(np.uint64)
    words[PML5 >> 3] = PML4 | ALL
    words[PML4 >> 3] = PDPT | ALL
    words[PDPT >> 3 : (PDPT >> 3) + 4] = np.arange(4, dtype=np.uint64) * 4096 + (PD | ALL)
    words[PDPTES >> 3 : (PDPTES >> 3) + 4] = np.arange(4, dtype=np.uint64) * 4096 + (PD | bits.PTE_P)
    words[PD >> 3 : (PD >> 3) + 2048] = (np.arange(2048, dtype=np.uint64) << np.uint64(21)) + (ALL | bits.PTE_PS)


def shadow_root(mode: str, cr4: int = 0, root: int | None = None) -> ShadowRoot:
    long = MODES[mode].canonical
    cr4 |= bits.CR4_PAE | (bits.CR4_LA57 if mode == LONG5.name else 0)
    efer = bits.EFER_NXE | (bits.EFER_LME | bits.EFER_LMA if long else 0)
    address = ROOTS[mode] if root is None else root
    return ShadowRoot(MODES[mode], address, ControlState(0x80010031, address, cr4, efer))


def enter(vcpu: Vcpu, mode: str, cr4: int = 0, rip: int = CODE) -> None:
    """A guest in ring 0 with flat segments, on the identity tables, about to execute at `rip`."""
    root, vmcb = shadow_root(mode, cr4), vcpu.vmcb_fields
    vmcb.fill(0)
    vmcb["intercept_exceptions"], vmcb["intercept"] = 0xFFFF_FFFF, abi.INTERCEPTS
    vmcb["iopm_base"], vmcb["msrpm_base"] = vcpu.iopm_address, vcpu.msrpm_address
    for name in abi.FLAT_DATA_SEGMENTS:
        vmcb[name] = abi.FLAT_DATA
    vmcb["cs"] = abi.FLAT_CODE64 if root.mode.canonical else abi.FLAT_CODE32
    vmcb["cr0"], vmcb["cr3"], vmcb["cr4"] = root.control.cr0, root.root, root.control.cr4
    vmcb["efer"] = root.control.efer | bits.EFER_SVME
    vmcb["rflags"], vmcb["rip"], vmcb["rsp"] = 2, rip, 0x7000


def run(vcpu: Vcpu, seconds: float = 5.0) -> int:
    """Lets the guest run to its next exit. Gives the exit code."""
    vcpu.resume()
    vcpu.wait(Deadline(seconds))
    return vcpu.vmcb[abi.EXITCODE >> 3]


@dataclass
class Live:
    machine: Machine
    vcpus: list[Vcpu]

    @property
    def vcpu(self) -> Vcpu:
        return self.vcpus[0]


@contextmanager
def live_machine(code: bytes = VMMCALL, vcpus: int = 1, threads: str = "single", cpu: str = "max") -> Iterator[Live]:
    def prepare(ram: RamMap) -> None:
        ram.write(BOOT_INFO, boot_info(vcpus))
        identity_tables(ram)
        ram.write(CODE, code)

    spec = MachineSpec(cpu=cpu, bios=FIRMWARE, ram_mib=RAM_MIB, smp=vcpus, threads=threads)
    with Machine(spec, prepare) as machine:
        yield Live(machine, start_vcpus(machine, AREA, vcpus, Deadline(10)))
