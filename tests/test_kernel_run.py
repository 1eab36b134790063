"""A foreign kernel: no mailbox, no probe server, SeaBIOS beneath it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.options import RunOptions
from harness.runs import run_kernel as run

# A multiboot kernel of a few lines: identity map of 4 MiB pages, then edits of one entry with INVLPG, for ever.
SOURCE = """
.code32
.align 4
.long 0x1badb002, 0, -0x1badb002
.globl _start
_start:
    mov $directory, %edi
    xor %ecx, %ecx
1:  mov %ecx, %eax
    shl $22, %eax
    or $0x83, %eax
    mov %eax, (%edi, %ecx, 4)
    inc %ecx
    cmp $8, %ecx
    jne 1b
    mov %cr4, %eax
    or $0x10, %eax
    mov %eax, %cr4
    mov $directory, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80000000, %eax
    mov %eax, %cr0
2:  xorl $0x400000, directory + 28
    invlpg 0x1c00000
    mov $0x20000, %ecx
3:  loop 3b
    mov %cr3, %eax
    mov %eax, %cr3
    jmp 2b
.section .bss
.align 4096
directory: .skip 4096
"""


@pytest.fixture(scope="module")
def multiboot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.S").write_text(SOURCE)
    build = "gcc -m32 -c kernel.S -o kernel.o && ld -m elf_i386 -Ttext 0x100000 -o kernel.elf kernel.o"
    subprocess.run(build, shell=True, cwd=folder, check=True, timeout=60)
    return folder / "kernel.elf"


def test_a_kernel_is_observed_and_checked_until_its_time_limit(multiboot: Path) -> None:
    record = run(multiboot, RunOptions(time_limit=4.0, memory_mib=32))
    assert (record.verdict, record.paging) == ("pass", "nopae"), record.reason
    assert "time limit" in record.reason
    assert (record.mismatches, record.audit_failures) == (0, 0)
    assert record.events["cr3_load"] > 0
    assert record.events["invlpg"] > 0
    assert record.checks["gva2gpa"] > 0
    assert record.checks["memory"] > 0
    assert record.checks["probe"] == 0


def test_a_file_that_is_no_kernel_is_an_error_with_qemu_s_own_words(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"not a kernel" * 1000)
    record = run(path, RunOptions(time_limit=5.0, memory_mib=32))
    assert record.verdict == "error"
    assert "kernel" in record.reason


def test_a_kernel_that_never_turns_paging_on_is_a_timeout(tmp_path: Path) -> None:
    (tmp_path / "idle.S").write_text(
        ".code32\n.align 4\n.long 0x1badb002, 0, -0x1badb002\n.globl _start\n_start: jmp _start\n"
    )
    build = "gcc -m32 -c idle.S -o idle.o && ld -m elf_i386 -Ttext 0x100000 -o idle.elf idle.o"
    subprocess.run(build, shell=True, cwd=tmp_path, check=True, timeout=60)
    record = run(tmp_path / "idle.elf", RunOptions(time_limit=2.0, memory_mib=32))
    assert record.verdict == "timeout"
    assert "paging" in record.reason


def test_a_kernel_that_resets_the_machine_is_a_crash(tmp_path: Path) -> None:
    """However many stops came before it."""
    loop = "2:  xorl $0x400000, directory + 28"
    # Off to the upper half, where kernels are observed at once; it waits for that, some dozen looks long, in a page
    # without breakpoints, which QEMU would run one instruction at a time.
    rises = "    movl $0x83, directory + 2048\n    mov $4f + 0x80000000, %eax\n    jmp *%eax\n"
    spins = ".align 4096\n4:  mov $0x8000000, %edx\n5:  dec %edx\n    jnz 5b\n    mov $300, %ebp\n.align 4096\n"
    ends = "    dec %ebp\n    jnz 2b\n    lidt 6f\n    int $3\n6:  .long 0, 0"
    source = SOURCE.replace(loop, rises + spins + loop).replace("    jmp 2b", ends).replace("$0x20000", "$0x10")
    (tmp_path / "reset.S").write_text(source)
    build = "gcc -m32 -c reset.S -o reset.o && ld -m elf_i386 -Ttext 0x100000 -o reset.elf reset.o"
    subprocess.run(build, shell=True, cwd=tmp_path, check=True, timeout=60)
    record = run(tmp_path / "reset.elf", RunOptions(time_limit=120.0, memory_mib=32))
    assert record.verdict == "crash", record.reason
    assert record.reason.startswith("the machine was reset")
    assert record.events["cr3_load"] > 100
