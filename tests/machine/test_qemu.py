"""A real QEMU's life: launched, watched, lost, always reaped."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.catalogue import FIRMWARE
from harness.machine import qemu
from harness.machine.deadline import Deadline
from harness.machine.errors import MachineError, MachineLost, MachineUnavailable, StubClosed
from harness.machine.gdbstub import breakpoint_packet
from harness.machine.image import load_image
from harness.machine.mailbox import BOOT_MAGIC
from harness.machine.qemu import Machine, MachineSpec
from harness.placement import place

SPEC = MachineSpec(bios=FIRMWARE, ram_mib=16)
ENTRY = 0x100000

# Prints "hi", adds 1 to a word in RAM, ends QEMU with status (0x10 << 1) | 1.
SOURCE = """
.code32
.globl _start
_start:
    cmp $0x54424958, %eax
    jne 1f
    mov $0x3f8, %dx
    mov $'h', %al
    out %al, %dx
    mov $'i', %al
    out %al, %dx
    mov $10, %al
    out %al, %dx
    incl 0x200000
    mov $0x10, %eax
    mov $0xf4, %dx
    out %eax, %dx
1:  hlt
    jmp 1b
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.S").write_text(SOURCE)
    build = f"gcc -m32 -c tiny.S -o tiny.o && ld -m elf_i386 -Ttext {ENTRY:#x} -o tiny.elf tiny.o"
    subprocess.run(build, shell=True, cwd=folder, check=True, timeout=60)
    return folder / "tiny.elf"


@pytest.fixture
def machine(tiny: Path) -> Machine:
    return Machine(SPEC, place(load_image(tiny), seed=7))


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_the_firmware_enters_the_guest_as_the_header_says(machine: Machine) -> None:
    with machine:
        machine.gdb.checked(breakpoint_packet(ENTRY))
        machine.gdb.resume()
        machine.gdb.wait_stop(Deadline(10))
        registers = machine.gdb.read_registers()
    assert registers["rip"] == ENTRY
    assert registers["rax"] == BOOT_MAGIC
    assert (registers["rbx"], registers["rsp"]) == (0x500, 0x7000)
    assert (registers["cs"], registers["ds"]) == (0x08, 0x10)
    assert registers["cr0"] & 0x80000001 == 1, "protected mode, paging off"


def test_console_ram_and_exit_status_reach_the_harness(machine: Machine) -> None:
    with machine:
        machine.gdb.resume()
        with pytest.raises(StubClosed):
            while not machine.gdb.wait_stop(Deadline(10)).exited:
                machine.gdb.resume()
            raise StubClosed("said goodbye")
        assert machine.wait_exit(5) == 0x21
        machine.console.finish()
        assert machine.console.lines == ["hi"]
        assert machine.ram.bytes[0x200000] == 1


def test_nothing_is_left_of_a_closed_machine(machine: Machine) -> None:
    with machine:
        pid = machine.process.pid
        assert alive(pid)
    assert not alive(pid)
    machine.close()  # a second time is harmless


def test_files_and_sockets_have_no_name_while_the_machine_runs(machine: Machine) -> None:
    with machine:
        scratch = Path(machine.command[machine.command.index("-chardev") + 1].split("path=")[1].split(",")[0]).parent
        assert not scratch.exists()


def test_a_killed_qemu_is_lost_with_its_command_line_and_status(machine: Machine) -> None:
    with machine:
        os.kill(machine.process.pid, signal.SIGKILL)
        with pytest.raises(MachineError):
            machine.gdb.request(b"g")
        with pytest.raises(MachineLost, match=r"(?s)exit status -9.*command: .*qemu"):
            machine.raise_lost("killed by this test")


def test_a_killed_harness_takes_its_qemu_along(tiny: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from harness.machine.qemu import Machine, MachineSpec\n"
        f"machine = Machine(MachineSpec(bios=Path({str(FIRMWARE)!r}), ram_mib=16))\n"
        "print(machine.process.pid, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as harness:
        assert harness.stdout is not None
        pid = int(harness.stdout.readline())
        assert alive(pid)
        harness.kill()
    limit = Deadline(5)
    while alive(pid) and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        limit.check("QEMU's end")
        time.sleep(0.02)


def test_a_missing_qemu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(qemu.BINARY_VARIABLE, "no-such-qemu")
    qemu.find_qemu.cache_clear()
    with pytest.raises(MachineUnavailable, match="make setup"):
        Machine(SPEC)
    qemu.find_qemu.cache_clear()


@pytest.mark.parametrize(
    ("prints", "complaint"),
    [("QEMU emulator version 5.2.0", "7.2 or newer"), ("hello", "not a QEMU")],
)
def test_an_odd_qemu_is_refused(prints: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "qemu-odd"
    odd.write_text(f"#!/bin/sh\necho '{prints}'\n")
    odd.chmod(odd.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(qemu.BINARY_VARIABLE, str(odd))
    qemu.find_qemu.cache_clear()
    with pytest.raises(MachineUnavailable, match=complaint):
        Machine(SPEC)
    qemu.find_qemu.cache_clear()


def test_a_qemu_that_ends_at_once_is_lost_with_its_stderr() -> None:
    with pytest.raises(MachineLost, match=r"(?s)did not come up.*no-such-cpu"):
        Machine(MachineSpec(cpu="no-such-cpu", bios=FIRMWARE, ram_mib=16))
