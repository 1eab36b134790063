"""One vCPU under the monitor: its mailbox, its VMCBs, and the hand-overs between monitor and controller.

The monitor (`firmware/monitor.S`) runs the guest until the processor leaves it, counts `exits` up and reads `answered`
until the two are equal; here it is the other way round. Both sides spin: a hand-over costs less than a microsecond
while each has a processor of its own (see `harness.machine.pinning`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import numpy.typing as npt

from harness.machine import monitor_abi as abi
from harness.machine.deadline import Deadline
from harness.machine.errors import DeadlineExceeded, MachineError, MachineUnavailable, StubClosed
from harness.machine.mailbox import EXIT_NO_SVM
from harness.machine.monitor_abi import Command
from harness.machine.pinning import usable
from harness.machine.probing import ProbeTables, WalkRoot
from harness.machine.qemu import Machine
from harness.machine.ram import RamMap

NO_SVM: Final = "this -cpu model has no SVM: live mode needs `max`, or a model with +svm"
SVM_LEAF: Final = 0x8000_000A  # EBX: number of ASIDs
COMMAND_SECONDS: Final = 10.0
RUNAWAY_SECONDS: Final = 2.0  # a batch of probes takes milliseconds: longer, and a fetch does not come back
SIZES: Final = (1, 2, 4, 8)  # of an access to a device

_READS: Final = 64  # of `exits` before anything else is done
_LOOK_EVERY: Final = 256  # rounds of waiting between two looks at the deadline and at QEMU
_LOW: Final = 0xFFFF_FFFF
_RAX: Final = 0
_RSP: Final = 4

# Indices into the mailbox and the VMCB as 64-bit words.
_EXITS: Final = 16 >> 3
_ANSWERED: Final = 24 >> 3
_COMMAND: Final = 32 >> 3  # and the guest's PKRU in the upper half
_VMCB: Final = 40 >> 3
_ARGUMENT: Final = 48 >> 3
_RESULT: Final = 80 >> 3
_GPR: Final = 112 >> 3
_HOST_CR4: Final = 272 >> 3
_VMCB_CR4: Final = abi.CR4 >> 3
_VMCB_ASID: Final = abi.ASID >> 3  # and TLB_CONTROL in the upper half

GPR_NAMES: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
_VMCB_REGISTERS: Final = {
    "rax": abi.RAX,
    "rsp": abi.RSP,
    "rip": abi.RIP,
    "eflags": abi.RFLAGS,
    "k_gs_base": abi.KERNEL_GS_BASE,
    "cr0": abi.CR0,
    "cr2": abi.CR2,
    "cr3": abi.CR3,
    "cr4": abi.CR4,
    "efer": abi.EFER,
}


class Vcpu:
    """vCPU `index` of the monitor whose area is at machine address `area`. Not thread-safe: one owner.

    mailbox, vmcb: the two pages as 64-bit words, live: word = byte offset >> 3. vmcb_fields: the guest's VMCB as a
    record (dtype `monitor_abi.VMCB`), slow but readable. exits: hand-overs seen so far. kick: makes the processor leave
    whatever it runs (an NMI), for probes that run away; nobody does if it is None.
    """

    kick: Callable[[], None] | None = None

    def __init__(self, ram: RamMap, area: int, index: int, ended: Callable[[], bool]) -> None:
        """`ended` tells whether QEMU has ended. The monitor need not run yet: see `wait_ready`."""
        block = abi.vcpu_block(area, index)
        self.index = index
        self.vmcb_address = block + abi.VCPU_VMCB
        self.probe_vmcb_address = block + abi.VCPU_PROBE_VMCB
        self.buffer_address = block + abi.VCPU_BUFFER
        self.msrpm_address = area + abi.AREA_MSRPM
        self.iopm_address = area + abi.AREA_IOPM
        self._ram = ram
        self._ended = ended
        self.mailbox = _words(ram, block + abi.VCPU_MAILBOX)
        self.vmcb = _words(ram, self.vmcb_address)
        self.vmcb_fields = ram.view(self.vmcb_address, abi.VMCB)
        self._box = ram.view(block, abi.VCPU)
        self._probes = ProbeTables(ram, area, index)
        self.exits = 0
        # How many the processor has, and the last one used: at first none is left.
        self._asids = self._asid = abi.GUEST_ASID
        # Where the two sides share one processor, the monitor can only go on when this side lets go of it.
        self._alone = len(usable()) < 2

    # ---- hand-overs

    def wait_ready(self, deadline: Deadline) -> None:
        """Waits until the monitor has brought the vCPU up. Raises as `wait` does, MachineError for another version."""
        self.wait(deadline, os.sched_yield, self._is_up)
        version = int(self._box["version"])
        if version != abi.MONITOR_VERSION:
            raise MachineError(
                f"the firmware's monitor has version {version}, not {abi.MONITOR_VERSION}: `make guests`"
            )
        self.mailbox[_VMCB] = self.vmcb_address
        self._asids = self._asid = self.cpuid(SVM_LEAF)[1]

    def _is_up(self) -> bool:
        return int(self._box["magic"]) == abi.VCPU_MAGIC and self.poll()

    def resume(self) -> None:
        """Hands back: the guest runs from its VMCB, and uses no translation of before. Returns at once.

        It gets an ASID that no translation is tagged with, and when there is none left all are flushed (APM vol. 2,
        15.16). QEMU (7.2) flushes at every VMRUN, whatever the ASID, and once more where TLB_CONTROL asks for it;
        silicon only when it is told to: told it is, whatever has changed.
        """
        mailbox, vmcb = self.mailbox, self.vmcb
        asid = self._asid + 1
        if asid < self._asids:
            vmcb[_VMCB_ASID] = asid
        else:
            asid = abi.GUEST_ASID
            vmcb[_VMCB_ASID] = asid | abi.TLB_FLUSH_ALL << 32
        self._asid = asid
        mailbox[_HOST_CR4] = vmcb[_VMCB_CR4] & abi.HOST_CR4
        mailbox[_ANSWERED] = self.exits

    def poll(self) -> bool:
        """Whether the monitor has handed over since the last `resume`."""
        exits = self.mailbox[_EXITS]
        if exits == self.exits:
            return False
        self.exits = exits
        return True

    @property
    def came(self) -> bool:
        """Whether the monitor has handed over, without taking note of it: `wait` still finds it."""
        return self.mailbox[_EXITS] != self.exits

    def wait(
        self,
        deadline: Deadline,
        idle: Callable[[], object] | None = None,
        come: Callable[[], bool] | None = None,
    ) -> None:
        """Waits until the monitor hands over, with calls of `idle` until it gives False: it has nothing left to do.

        Raises DeadlineExceeded when the guest does not come back in time (it still runs), StubClosed when QEMU has
        ended.
        """
        mailbox, seen = self.mailbox, self.exits
        rounds = 0
        while True:
            for _ in range(1 if self._alone else _READS):
                exits = mailbox[_EXITS]
                if exits != seen and (come is None or come()):
                    self.exits = exits
                    return
            if self._alone:
                os.sched_yield()
            if idle is not None and idle() is False:
                idle = None
            rounds += 1
            if rounds % _LOOK_EVERY == 0 or deadline.passed:
                self._look(deadline)

    def _look(self, deadline: Deadline) -> None:
        if self._ended():
            raise StubClosed("QEMU ended while the monitor was waited for")
        deadline.check("the monitor")

    # ---- commands

    def call(self, command: Command, *arguments: int) -> tuple[int, int, int, int]:
        """Has the monitor carry out a command other than RUN. The guest stands meanwhile."""
        self._start(command, *arguments)
        return self._finish(COMMAND_SECONDS)

    def _start(self, command: Command, *arguments: int) -> None:
        mailbox = self.mailbox
        for number, argument in enumerate(arguments):
            mailbox[_ARGUMENT + number] = argument
        self._set_command(command)
        mailbox[_ANSWERED] = self.exits

    def _finish(self, seconds: float) -> tuple[int, int, int, int]:
        self.wait(Deadline(seconds))
        self._set_command(Command.RUN)
        mailbox = self.mailbox
        return mailbox[_RESULT], mailbox[_RESULT + 1], mailbox[_RESULT + 2], mailbox[_RESULT + 3]

    def _set_command(self, command: Command) -> None:
        self.mailbox[_COMMAND] = self.mailbox[_COMMAND] & ~_LOW | command

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX and EDX of CPUID on the machine's processor."""
        return self.call(Command.CPUID, leaf, subleaf)

    def copy(self, to: int, source: int, count: int) -> None:
        """Copies between machine addresses. The processor does it, so QEMU drops translated code of the target."""
        self._check(to, count)
        self._check(source, count)
        self.call(Command.COPY, to, source, count)

    def write_code(self, address: int, data: bytes) -> None:
        """Writes `data` at machine `address` as a processor would: the guest may execute it, or may have."""
        self._check(address, len(data))
        for start in range(0, len(data), abi.VCPU_BUFFER_BYTES):
            part = data[start : start + abi.VCPU_BUFFER_BYTES]
            self._ram.write(self.buffer_address, part)
            self.call(Command.COPY, address + start, self.buffer_address, len(part))

    def read_device(self, address: int, size: int) -> int:
        """One read of `size` (1, 2, 4 or 8) bytes at machine `address` below 4 GiB, RAM or not."""
        self._check_device(address, size)
        return self.call(Command.READ, address, size)[0]

    def write_device(self, address: int, size: int, value: int) -> None:
        """One write, as `read_device`."""
        self._check_device(address, size)
        self.call(Command.WRITE, address, size, value & (1 << 8 * size) - 1)

    def _check(self, address: int, count: int) -> None:
        if not 0 <= address <= address + count <= self._ram.size:
            raise MachineError(f"{count} bytes at machine address {address:#x} lie outside RAM ({self._ram.size:#x})")

    @staticmethod
    def _check_device(address: int, size: int) -> None:
        if size not in SIZES or not 0 <= address <= (1 << 32) - size:
            raise ValueError(f"no access of {size} bytes at machine address {address:#x} is possible")

    def probe(self, records: npt.NDArray[Any], root: WalkRoot, pkru: int = 0) -> npt.NDArray[Any]:
        """Runs the probes `records` (dtype `mailbox.PROBE`) on the hardware, in order, on the tables of `root`.

        Gives the same records with the answers filled in; a probe that neither completed nor met an exception is
        NOT_RUN, its `code` the exit code. The guest's own state is untouched; accessed and dirty bits are set below the
        root as the accesses set them.
        """
        return self._probes.run(self._run_probes, records, root, pkru)

    def _run_probes(self, buffer: int, count: int, pkru: int) -> None:
        self._start(Command.RUN_PROBES, buffer, count, pkru)
        for _ in range(2 * count):  # two kicks end a probe
            try:
                self._finish(RUNAWAY_SECONDS)
                return
            except DeadlineExceeded:
                if self.kick is None:
                    break
                self.kick()
        self._finish(COMMAND_SECONDS)

    # ---- the guest's registers

    @property
    def pkru(self) -> int:
        """The guest's PKRU at its last exit; 0 where the processor has none."""
        return self.mailbox[_COMMAND] >> 32

    @pkru.setter
    def pkru(self, value: int) -> None:
        self.mailbox[_COMMAND] = self.mailbox[_COMMAND] & _LOW | value << 32

    def gpr(self, number: int) -> int:
        """General register `number` in hardware numbering (0 = RAX, 4 = RSP)."""
        if number == _RAX:
            return self.vmcb[abi.RAX >> 3]
        if number == _RSP:
            return self.vmcb[abi.RSP >> 3]
        return self.mailbox[_GPR + number]

    def set_gpr(self, number: int, value: int) -> None:
        if number == _RAX:
            self.vmcb[abi.RAX >> 3] = value
        elif number == _RSP:
            self.vmcb[abi.RSP >> 3] = value
        else:
            self.mailbox[_GPR + number] = value

    def registers(self) -> dict[str, int]:
        """The guest's registers under the names that the gdbstub has for them. CR0, CR3, CR4 and EFER are the
        processor's, not what the guest believes."""
        vmcb = self.vmcb
        out = {name: self.gpr(number) for number, name in enumerate(GPR_NAMES)}
        for name, offset in _VMCB_REGISTERS.items():
            out[name] = vmcb[offset >> 3]
        for name in ("cs", "ss", "ds", "es", "fs", "gs"):
            out[name] = vmcb[abi.segment_offset(name) >> 3] & 0xFFFF
        for name in ("fs", "gs"):
            out[f"{name}_base"] = vmcb[(abi.segment_offset(name) >> 3) + 1]
        out["cr8"] = vmcb[abi.V_TPR >> 3] & 0xF
        return out


def _words(ram: RamMap, address: int) -> memoryview:
    return ram.bytes[address : address + 4096].data.cast("B").cast("Q")


def start_vcpus(machine: Machine, area: int, count: int, deadline: Deadline) -> list[Vcpu]:
    """Lets a machine whose RAM holds the monitor's boot info run, and waits for its vCPUs.

    Raises MachineUnavailable when the processor has no SVM, and whatever `Vcpu.wait` raises.
    """
    vcpus = [Vcpu(machine.ram, area, index, machine.ended) for index in range(count)]
    for vcpu in vcpus:
        vcpu.kick = lambda: machine.monitor.command("inject-nmi")
    machine.gdb.resume()
    try:
        for vcpu in vcpus:
            vcpu.wait_ready(deadline)
    except (StubClosed, DeadlineExceeded) as error:
        refuse_without_svm(machine, error)
        raise
    return vcpus


def refuse_without_svm(machine: Machine, cause: Exception) -> None:
    """Raises MachineUnavailable if the firmware has ended QEMU because its processor has no SVM."""
    if machine.wait_exit(0) == EXIT_NO_SVM << 1 | 1:
        raise MachineUnavailable(NO_SVM) from cause
