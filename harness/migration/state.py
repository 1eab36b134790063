"""What of a guest is not in its memory: the registers of its vCPU, taken from one machine and put into another.

Devices are not taken along: the firmware sets COM1 up the same on both machines, and the test guests change neither
it nor the local APIC or the HPET. Nor are DR0 to DR3, MSRs outside the VMCB (MTRRs, TSC_AUX) and the vector registers,
which guests that are built without floating point leave alone. The time stamp counter is each machine's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy.typing as npt

from harness.machine.monitor_abi import SEGMENTS
from harness.machine.vcpu import Vcpu

# CR0, CR3, CR4 and EFER are not among them: they are the shadow root's, and the other machine has another one. Nor are
# intercepts, maps and ASID, which belong to the machine. An event that is to be delivered at the next entry is.
GUEST_FIELDS: Final = (
    *("virtual_interrupt", "interrupt_shadow", "eventinj"),
    *SEGMENTS,
    *("cpl", "dr7", "dr6", "rflags", "rip", "rsp", "rax"),
    *("star", "lstar", "cstar", "sfmask", "kernel_gs_base", "sysenter_cs", "sysenter_esp", "sysenter_eip"),
    *("cr2", "g_pat", "debug_control"),
)
_IN_VMCB: Final = (0, 4)  # RAX and RSP


@dataclass(frozen=True, slots=True, eq=False)
class VcpuState:
    """The guest's part of a vCPU between two entries. vmcb: the fields of GUEST_FIELDS; general: the other general
    registers by number."""

    vmcb: dict[str, npt.NDArray[Any]]
    general: dict[int, int]
    pkru: int

    @classmethod
    def take(cls, vcpu: Vcpu) -> Self:
        """Of a guest that stands at an exit which has been dealt with."""
        fields = vcpu.vmcb_fields
        return cls(
            {name: fields[name].copy() for name in GUEST_FIELDS},
            {number: vcpu.gpr(number) for number in range(16) if number not in _IN_VMCB},
            vcpu.pkru,
        )

    def put(self, vcpu: Vcpu) -> None:
        """Into a vCPU that was prepared as for a guest's entry."""
        fields = vcpu.vmcb_fields
        for name, value in self.vmcb.items():
            fields[name] = value
        for number, word in self.general.items():
            vcpu.set_gpr(number, word)
        vcpu.pkru = self.pkru
