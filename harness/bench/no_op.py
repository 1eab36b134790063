"""An exit that means nothing: the floor under the cost of every other."""

from __future__ import annotations

import time
from typing import Final

from harness.live.session import LiveSession
from harness.machine import monitor_abi as abi
from harness.machine.deadline import Deadline
from harness.machine.errors import MachineError
from harness.machine.monitor_abi import ExitCode
from harness.x86 import bits

SECONDS: Final = 5.0  # for one hand-over
_VMMCALL: Final = b"\x0f\x01\xd9"
_TABLE: Final = bits.PTE_P | bits.PTE_RW | bits.PTE_A
_FROM_GUEST: Final = (
    *("intercept_cr", "intercept_exceptions", "intercept", "iopm_base", "msrpm_base", "g_pat", "dr6", "dr7"),
)
_MAILBOX_VMCB: Final = abi.VCPU.fields["vmcb"][1] >> 3  # type: ignore[index]  # a record type has fields
_EXITCODE: Final = abi.EXITCODE >> 3
_CONTROL: Final = (abi.CR0 >> 3, abi.CR4 >> 3, abi.EFER >> 3)


class NoOp:
    """A VMCB of its own, on tables of its own, whose RIP stands on a VMMCALL: RUN -> #VMEXIT -> seen, and nothing done.

    It has the guest's intercepts and control registers, is run through the same mailbox by the same `Vcpu`, and asks
    for the same flush of the TLB; its frames are spare ones of the domain. Only for long4, whose format of tables and
    of code it has.
    """

    def __init__(self, session: LiveSession) -> None:
        """`session` stands at its guest's entry, or later. Raises ValueError for another paging mode than long4."""
        if session.paging != "long4":
            raise ValueError(f"a no-op exit is there for long4, not for {session.paging}")
        ram, self._vcpu = session.machine.ram, session.vcpu
        self._resume, self._wait = session.vcpu.resume, session.vcpu.wait  # as they are now: see `ExitClock`
        self._address, root, *below, code = (session.domain.spare.popleft() << bits.PAGE_SHIFT for _ in range(6))
        above = root
        for table in (*below, code):
            ram.write(above, (table | _TABLE).to_bytes(bits.PAGE_SIZE, "little"))
            above = table
        ram.write(code, _VMMCALL)
        ram.write(self._address, bytes(bits.PAGE_SIZE))
        vmcb, guest = ram.view(self._address, abi.VMCB), session.vcpu.vmcb_fields
        for name in _FROM_GUEST:
            vmcb[name] = guest[name]
        vmcb["cs"] = abi.FLAT_CODE64
        vmcb["rflags"], vmcb["cr3"] = 2, root
        self._vmcb = ram.bytes[self._address : self._address + bits.PAGE_SIZE].data.cast("B").cast("Q")

    def run(self) -> float:
        """One no-op exit, with the guest standing in long mode.

        Gives the seconds from the decision to run until the hand-over is seen. Raises MachineError when the processor
        left for another reason.
        """
        vcpu, guest = self._vcpu, self._vcpu.vmcb
        for word in _CONTROL:
            self._vmcb[word] = guest[word]
        mailbox, deadline = vcpu.mailbox, Deadline(SECONDS)
        mailbox[_MAILBOX_VMCB], vcpu.vmcb = self._address, self._vmcb
        began = time.perf_counter()
        self._resume()
        self._wait(deadline)
        ended = time.perf_counter()
        mailbox[_MAILBOX_VMCB], vcpu.vmcb = vcpu.vmcb_address, guest
        code = self._vmcb[_EXITCODE]
        if code != ExitCode.VMMCALL:
            raise MachineError(f"a no-op exit came with exit code {code:#x}")
        return ended - began
