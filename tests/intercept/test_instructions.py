"""Intercepted instructions on the shadow tables: a guest reads what it reads on a processor without SVM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from harness.catalogue import load_catalogue
from harness.intercept.interception import Outcome
from harness.live.session import LiveSession
from harness.machine.deadline import Deadline
from harness.options import RunOptions
from harness.x86.bits import CR4_OSXSAVE
from harness.x86.msrs import MSR_VM_CR, MSR_VM_HSAVE_PA
from tests.x86 import test_control_writes_native as native
from tests.x86.assemble import link, needs_assembler

pytestmark = [needs_assembler, pytest.mark.two_cores]


def cpuid(leaf: int) -> str:
    text = f"movl ${leaf:#x}, %eax\nxorl %ecx, %ecx\ncpuid\nstosl\n"
    return text + "".join(f"movl %{name}, %eax\nstosl\n" for name in ("ebx", "ecx", "edx"))


def rdmsr(number: int) -> str:
    return f"movl ${number:#x}, %ecx\nrdmsr\nstosl\nmovl %edx, %eax\nstosl\n"


def wrmsr(number: int) -> str:
    return f"movl ${number:#x}, %ecx\nmovl $0x5000, %eax\nmovl $6, %edx\nwrmsr\n"


MISCELLANY: Final = "\n".join(
    (
        native.START,
        "lgdt gdtr",
        *(cpuid(leaf) for leaf in (0, 1, 7, 0x8000_0001, 0x8000_0008, 0x8000_000A)),
        f"movl ${CR4_OSXSAVE:#x}, %eax\nmovl %eax, %cr4",
        cpuid(1),
        "movl %cr0, %eax\norl $0x10008, %eax\nmovl %eax, %cr0",
        "xorl %eax, %eax\nsmsw %eax\nstosl",
        "movl $-1, %eax\nsmsw %ax\nstosl",
        "clts\nmovl %cr0, %ebx\nmovl %ebx, %eax\nstosl",
        "movw $0xa, word\nlmsw word\nmovl %cr0, %eax\nstosl",
        "movl $word - 0x20, %ecx\nmovl $8, %edx\nmovw $1, word\nlmsw (%ecx,%edx,4)\nmovl %cr0, %eax\nstosl",
        *(rdmsr(number) for number in (0x12345, 0xC000_0080, MSR_VM_CR, MSR_VM_HSAVE_PA, 0x1B)),
        *(wrmsr(number) + rdmsr(number) for number in (0x12345, MSR_VM_CR, MSR_VM_HSAVE_PA)),
        "ljmp $0x20, $sixteen - 0x100000",
        ".code16\nsixteen: movl $-1, %eax\nmovl %cr0, %eax\nljmpl $8, $back\n.code32\nback: stosl",
        native.END.replace("gdtr: .word 31", "gdtr: .word 39").replace(
            "0x00af9b000000ffff", "0x00af9b000000ffff, 0x00009b100000ffff\nword: .long 0"
        ),
    )
)
PROGRAMS: Final = {
    "control registers, 32-bit": native.source(native.FLAT_CASES, False),
    "control registers, 64-bit": native.source(native.LONG_CASES, True),
    "the rest": MISCELLANY,
}
# What live mode hides of `max`; without SVM QEMU would have fewer leaves too.
CPU: Final = "max,-svm,-pks,xlevel=0x8000000a"
SIZE: Final = 0xE00  # the rest of the page is a tagged frame's


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_guest_cannot_tell(name: str, tmp_path: Path) -> None:
    expected = native.run(PROGRAMS[name], CPU, SIZE)
    path = tmp_path / "guest.elf"
    path.write_bytes(link(PROGRAMS[name], native.ENTRY))
    with LiveSession(replace(load_catalogue()["basic"], image=path), "long4", RunOptions()) as session:
        ran = session.live.run(Deadline(10))
        assert ran.outcome is Outcome.EXITED
        assert session.machine.wait_exit(5) == 3, "the guest did not get to its end"
        found = session.domain.view.bytes[native.RESULTS : native.RESULTS + SIZE].tobytes()
    words = [
        (4 * n, expected[4 * n : 4 * n + 4][::-1].hex(), found[4 * n : 4 * n + 4][::-1].hex()) for n in range(SIZE // 4)
    ]
    assert [word for word in words if word[1] != word[2]] == [], "(offset, native, live)"
