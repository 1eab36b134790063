"""The monitor in the ROM on a real QEMU: runs, commands, hand-overs, several vCPUs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest

from harness.catalogue import FIRMWARE
from harness.machine import monitor_abi as abi
from harness.machine.deadline import Deadline
from harness.machine.errors import DeadlineExceeded, MachineError, MachineUnavailable, StubClosed
from harness.machine.mailbox import BOOT_INFO, EXIT_NO_GUEST
from harness.machine.monitor_abi import Command, ExitCode
from harness.machine.qemu import Machine, MachineSpec
from harness.machine.vcpu import Vcpu, start_vcpus
from harness.x86 import bits
from tests.machine.tiny_live import AREA, CODE, RAM_MIB, VMMCALL, Live, boot_info, enter, live_machine, run

pytestmark = pytest.mark.two_cores

MOV_EAX = b"\xb8"  # imm32 follows
SPIN = b"\xeb\xfe"
DATA = 0x600000


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with live_machine() as running:
        yield running


def test_a_vcpu_is_ready_with_its_index_and_features(live: Live) -> None:
    box = live.machine.ram.view(abi.vcpu_block(AREA, 0), abi.VCPU)
    assert (int(box["index"]), int(box["version"])) == (0, abi.MONITOR_VERSION)
    assert int(box["features"]) & abi.FEATURE_PKU


@pytest.mark.parametrize("mode", ["long4", "long5", "pae"])
def test_the_guest_leaves_with_rip_and_registers(live: Live, mode: str) -> None:
    vcpu = live.vcpu
    # add $1, %eax .. not in any register's place twice: each gets a value of its own, and EBX EDI are swapped
    vcpu.write_code(CODE, b"\x87\xdf\x83\xc0\x01" + VMMCALL)
    enter(vcpu, mode)
    numbers = [n for n in range(16 if mode != "pae" else 8) if n != 4]
    for number in numbers:
        vcpu.set_gpr(number, 0x1000 + number)
    assert run(vcpu) == ExitCode.VMMCALL
    expected = {number: 0x1000 + number for number in numbers}
    expected[0], expected[3], expected[7] = 0x1001, 0x1007, 0x1003
    assert {number: vcpu.gpr(number) for number in numbers} == expected
    registers = vcpu.registers()
    assert (registers["rip"], registers["rax"], registers["rbx"]) == (CODE + 5, 0x1001, 0x1007)
    assert (registers["rsp"], registers["cs"], registers["ss"]) == (0x7000, 8, 0x10)
    assert registers["cr3"] == vcpu.vmcb_fields["cr3"]


def test_registers_have_the_names_of_the_gdbstub(live: Live) -> None:
    assert live.vcpu.registers().keys() == set(live.machine.gdb._names)


def test_a_page_fault_tells_code_and_address(live: Live) -> None:
    vcpu = live.vcpu
    vcpu.write_code(CODE, b"\x89\x03")  # mov %eax, (%rbx)
    enter(vcpu, "long4")
    vcpu.set_gpr(3, 1 << 40)
    assert run(vcpu) == ExitCode.EXCEPTION_PF
    assert vcpu.vmcb[abi.EXITINFO1 >> 3] == bits.PF_W
    assert vcpu.vmcb[abi.EXITINFO2 >> 3] == 1 << 40


def test_a_state_that_vmrun_refuses(live: Live) -> None:
    vcpu = live.vcpu
    enter(vcpu, "long4")
    vcpu.vmcb_fields["efer"] ^= 0x1000  # SVME must be set (APM vol. 2, 15.5.1)
    assert run(vcpu) == ExitCode.INVALID


def test_code_written_through_the_processor_is_executed(live: Live) -> None:
    vcpu = live.vcpu
    for value in (1, 2, 3):  # from the second on a translated block of QEMU's would be stale
        vcpu.write_code(CODE, MOV_EAX + value.to_bytes(4, "little") + VMMCALL)
        enter(vcpu, "long4")
        assert run(vcpu) == ExitCode.VMMCALL
        assert vcpu.gpr(0) == value


@pytest.mark.parametrize("count", [1, 8, 4096, abi.VCPU_BUFFER_BYTES + 5])
@pytest.mark.parametrize("skew", [0, 3])
def test_bytes_are_copied(live: Live, count: int, skew: int) -> None:
    ram, vcpu = live.machine.ram, live.vcpu
    data = bytes(np.random.default_rng(count).integers(0, 256, count, np.uint8))
    ram.bytes[DATA : DATA + 0x10000] = 0xEE
    vcpu.write_code(DATA + skew, data)
    assert bytes(ram.bytes[DATA + skew : DATA + skew + count]) == data
    vcpu.copy(DATA + 0x8000, DATA + skew, count)
    assert bytes(ram.bytes[DATA + 0x8000 : DATA + 0x8000 + count]) == data
    assert ram.bytes[DATA + 0x8000 + count] == 0xEE
    with pytest.raises(MachineError, match="outside RAM"):
        vcpu.copy(0, (RAM_MIB << 20) - 4, 8)


def test_cpuid_is_the_processors(live: Live) -> None:
    vendor = live.vcpu.cpuid(0)
    assert b"".join(word.to_bytes(4, "little") for word in (vendor[1], vendor[3], vendor[2])) == b"AuthenticAMD"
    assert live.vcpu.cpuid(7, 0) != live.vcpu.cpuid(7, 1)


def test_devices_are_read_and_written_with_one_access_of_the_size_asked_for(live: Live) -> None:
    vcpu, ram = live.vcpu, live.machine.ram
    assert vcpu.read_device(0xFEE00030, 4) & 0xFF == 0x14  # the local APIC's version
    vcpu.write_device(0xFEE000F0, 4, 0x1AB)  # its spurious vector
    assert vcpu.read_device(0xFEE000F0, 4) & 0x1FF == 0x1AB
    for size in (1, 2, 4, 8):
        ram.write(DATA, b"\xff" * 16)
        vcpu.write_device(DATA, size, 0x1122334455667788_99)
        assert bytes(ram.bytes[DATA : DATA + 9]) == 0x2233445566778899.to_bytes(8, "little")[:size] + b"\xff" * (
            9 - size
        )
        assert vcpu.read_device(DATA, size) == 0x2233445566778899 & (1 << 8 * size) - 1
    with pytest.raises(ValueError, match="3 bytes"):
        vcpu.read_device(DATA, 3)
    with pytest.raises(ValueError, match="0x100000000"):
        vcpu.write_device(1 << 32, 4, 0)


def test_pkru_goes_in_and_comes_out(live: Live) -> None:
    vcpu = live.vcpu
    # xor ecx,ecx; rdpkru; mov ebx,eax; xor edx,edx; mov eax,0x5a; wrpkru; vmmcall
    vcpu.write_code(CODE, b"\x31\xc9\x0f\x01\xee\x89\xc3\x31\xd2\xb8\x5a\0\0\0\x0f\x01\xef" + VMMCALL)
    for pkru in (0xC, 0x30):
        enter(vcpu, "long4", bits.CR4_PKE)
        vcpu.pkru = pkru
        assert run(vcpu) == ExitCode.VMMCALL
        assert (vcpu.gpr(3), vcpu.pkru) == (pkru, 0x5A)
        vcpu.cpuid(0)  # a command leaves it alone
        assert vcpu.pkru == 0x5A


def test_every_run_has_a_new_asid_and_all_are_flushed_when_there_is_none(live: Live) -> None:
    vcpu = live.vcpu
    vcpu.write_code(CODE, VMMCALL)
    enter(vcpu, "long4")
    seen: list[tuple[int, int]] = []
    for _ in range(40):
        assert run(vcpu) == ExitCode.VMMCALL
        seen.append((int(vcpu.vmcb_fields["asid"]), int(vcpu.vmcb_fields["tlb_control"])))
    asids = vcpu.cpuid(0x8000000A)[1]
    assert {asid for asid, _ in seen} == set(range(abi.GUEST_ASID, asids))
    last = (0, 0)
    for now in seen[1:]:
        assert now[0] > last[0] if not now[1] else now[0] == abi.GUEST_ASID
        last = now


def test_the_host_takes_on_the_guests_cr4(live: Live) -> None:
    vcpu = live.vcpu
    vcpu.write_code(CODE, VMMCALL)
    hsave = live.machine.ram.view(abi.vcpu_block(AREA, 0) + abi.VCPU_HSAVE, abi.VMCB)
    extra = bits.CR4_PSE | bits.CR4_SMAP | bits.CR4_PGE
    for mode, cr4 in (("pae", 0), ("long5", 0), ("pae", extra), ("long5", extra), ("long4", extra), ("long5", 0)):
        enter(vcpu, mode, cr4)
        assert run(vcpu) == ExitCode.VMMCALL
        assert vcpu.cpuid(0)[0]
        wanted = cr4 | (bits.CR4_LA57 if mode == "long5" else 0)
        assert int(hsave["cr4"]) & abi.HOST_CR4 == wanted
        assert int(hsave["cr4"]) & (bits.CR4_PAE | bits.CR4_PKE) == bits.CR4_PAE | bits.CR4_PKE


def test_a_guest_that_does_not_leave_is_waited_for_and_kicked(live: Live) -> None:
    vcpu, calls = live.vcpu, [0]

    def idle() -> None:
        calls[0] += 1

    vcpu.write_code(CODE, SPIN)
    enter(vcpu, "long4")
    vcpu.resume()
    with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
        vcpu.wait(Deadline(0.05), idle)
    assert calls[0] > 10
    assert vcpu.kick is not None
    for _ in range(3):
        assert not vcpu.poll()
        vcpu.kick()
        vcpu.wait(Deadline(5))
        assert vcpu.vmcb[abi.EXITCODE >> 3] == ExitCode.NMI
        assert vcpu.registers()["rip"] == CODE
        vcpu.resume()  # the NMI is gone: the guest stays in this time
        time.sleep(0.02)
    vcpu.kick()
    vcpu.wait(Deadline(5))


def test_an_unknown_command_is_answered_and_does_nothing(live: Live) -> None:
    before = bytes(live.machine.ram.bytes[DATA : DATA + 64])
    live.vcpu.mailbox[32 >> 3] |= 0xFFFF
    live.vcpu.resume()
    live.vcpu.wait(Deadline(5))
    live.vcpu.cpuid(0)
    assert bytes(live.machine.ram.bytes[DATA : DATA + 64]) == before


@pytest.mark.parametrize("threads", ["single", "multi"])
def test_two_vcpus_run_their_own_guests(threads: str) -> None:
    # lock incl (%rbx); vmmcall
    with live_machine(b"\xf0\xff\x03" + VMMCALL, 2, threads) as live:
        rounds = 20
        for vcpu in live.vcpus:
            enter(vcpu, ("long4", "pae")[vcpu.index])
            vcpu.set_gpr(3, DATA)
            vcpu.set_gpr(6, 0x100 + vcpu.index)
        for _ in range(rounds):
            for vcpu in live.vcpus:
                vcpu.vmcb[abi.RIP >> 3] = CODE
                vcpu.resume()
            for vcpu in live.vcpus:
                vcpu.wait(Deadline(5))
                assert vcpu.vmcb[abi.EXITCODE >> 3] == ExitCode.VMMCALL
                assert vcpu.gpr(6) == 0x100 + vcpu.index
        assert int(live.machine.ram.bytes[DATA]) == 2 * rounds
        assert [vcpu.cpuid(1)[1] >> 24 for vcpu in live.vcpus] == [0, 1]


def test_the_end_of_qemu_ends_the_wait() -> None:
    with live_machine(SPIN) as live:
        enter(live.vcpu, "long4")
        live.vcpu.resume()
        os.kill(live.machine.process.pid, signal.SIGKILL)
        with pytest.raises(StubClosed, match="QEMU ended"):
            live.vcpu.wait(Deadline(5))


def test_one_processor_for_both_sides_makes_progress() -> None:
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(own)})
    try:
        with live_machine() as live:
            for _ in range(5):
                enter(live.vcpu, "long4")
                assert run(live.vcpu) == ExitCode.VMMCALL
    finally:
        os.sched_setaffinity(0, own)


def test_a_processor_without_svm_is_refused_in_plain_words() -> None:
    with pytest.raises(MachineUnavailable, match="has no SVM: live mode needs `max`"), live_machine(cpu="qemu64,-svm"):
        pass


@pytest.mark.parametrize(
    "info",
    [boot_info(1, AREA + 0x1000), boot_info(1, 0), boot_info(0), boot_info(2, room=abi.area_bytes(1))],
    ids=["unaligned", "no area", "no vCPU", "too small"],
)
def test_a_boot_info_that_makes_no_sense_is_refused(info: bytes) -> None:
    with Machine(MachineSpec(bios=FIRMWARE, ram_mib=RAM_MIB), lambda ram: ram.write(BOOT_INFO, info)) as machine:
        with pytest.raises((StubClosed, DeadlineExceeded)):
            start_vcpus(machine, AREA, 1, Deadline(5))
        assert machine.wait_exit(5) == EXIT_NO_GUEST << 1 | 1
        machine.console.finish()
        assert machine.console.lines == ["xi-firmware: the boot info's monitor area makes no sense"]


def test_a_processor_that_the_boot_info_does_not_count_stays_out() -> None:
    with Machine(
        MachineSpec(bios=FIRMWARE, ram_mib=RAM_MIB, smp=2), lambda ram: ram.write(BOOT_INFO, boot_info(1))
    ) as machine:
        (vcpu,) = start_vcpus(machine, AREA, 1, Deadline(5))
        second = Vcpu(machine.ram, AREA, 1, machine.ended)
        assert vcpu.call(Command.CPUID, 0, 0)[0] > 0
        with pytest.raises(DeadlineExceeded):
            second.wait_ready(Deadline(0.05))
