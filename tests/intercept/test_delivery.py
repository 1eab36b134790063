"""Faults in the middle of a delivery: a guest on the shadow tables must end as it does without a harness."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.catalogue import FIRMWARE, load_catalogue
from harness.intercept.interception import Outcome
from harness.live.session import LiveSession
from harness.machine.deadline import Deadline
from harness.machine.image import load_image
from harness.machine.mailbox import EXIT_PORT
from harness.machine.qemu import Machine, MachineSpec
from harness.options import RunOptions
from harness.placement import place
from tests.x86.assemble import link, needs_assembler

pytestmark = [needs_assembler, pytest.mark.two_cores]

SOURCE = """
.code32
.globl _start
_start:
    movl $0x7000, %esp
    lgdt gdtr
    ljmp $8, $1f
1:  GATES
    lidt idtr
    movl $0x83, 0x300000
    movl $0x300000, %eax
    movl %eax, %cr3
    movl $0x10, %eax
    movl %eax, %cr4
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    xorl %ecx, %ecx
    EVENT
    movl $99, %eax
    jmp out
HANDLERS
out: movl $EXIT_PORT, %edx
    outl %eax, %dx
1:  jmp 1b
    .balign 16
idt: .rept 0x81
    .word 0, 8, 0x0e00, 0
    .endr
idtr: .word 0x81 * 8 - 1
    .long idt
gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdtr: .word 23
    .long gdt
"""


@dataclass(frozen=True)
class Case:
    """name; the instruction that begins it; vectors whose gates are present; the vector whose handler is reached, None
    for a shutdown."""

    name: str
    event: str
    present: tuple[int, ...]
    reached: int | None

    def source(self) -> str:
        gates = "".join(
            f"movl $h{v}, %eax\nmovw %ax, idt + {v} * 8\nshrl $16, %eax\nmovw %ax, idt + {v} * 8 + 6\n"
            f"movw $0x8e00, idt + {v} * 8 + 4\n"
            for v in self.present
        )
        handlers = "".join(f"h{v}: movl ${v}, %eax\njmp out\n" for v in self.present)
        text = SOURCE.replace("GATES", gates).replace("HANDLERS", handlers).replace("EVENT", self.event)
        return text.replace("EXIT_PORT", f"{EXIT_PORT:#x}")


TOUCH = "movl 0x1000000, %eax"
NO_STACK = "movl $0x1000000, %esp\n"
CASES = (
    Case("a page fault", TOUCH, (8, 11, 13, 14), 14),
    Case("a page fault without a gate", TOUCH, (8, 11, 13), 8),
    Case("and without one for the double fault", TOUCH, (11, 13), None),
    Case("a page fault on the stack of a page fault", NO_STACK + TOUCH, (11, 13, 14), None),
    Case("a contributory exception without a gate", "divl %ecx", (8, 11, 13), 8),
    Case("a benign one", "ud2", (8, 11, 13), 11),
    Case("an INT n", "int $0x80", (8, 11, 13), 11),
    Case("an INT n past the table", "int $0x90", (8, 11, 13), 13),
    Case("an INT n on a stack that is not there", NO_STACK + "int $0x80", (0x80, 11, 13), None),
)


@pytest.fixture
def elf(case: Case, tmp_path: Path) -> Path:
    path = tmp_path / "guest.elf"
    path.write_bytes(link(case.source(), 0x10_0000))
    return path


def status(vector: int | None) -> int:
    """QEMU's exit status; a shutdown is a reset, which ends it too."""
    return 0 if vector is None else vector << 1 | 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_without_a_harness(case: Case, elf: Path) -> None:
    with Machine(MachineSpec(bios=FIRMWARE), place(load_image(elf), 1)) as machine:
        machine.gdb.resume()
        assert machine.wait_exit(10) == status(case.reached)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_on_the_shadow_tables(case: Case, elf: Path) -> None:
    guest = replace(load_catalogue()["basic"], image=elf)
    with LiveSession(guest, "nopae", RunOptions()) as session:
        ran = session.live.run(Deadline(10))
        if case.reached is None:
            assert ran.outcome is Outcome.SHUTDOWN
        else:
            assert ran.outcome is Outcome.EXITED
            assert session.machine.wait_exit(5) == status(case.reached)
