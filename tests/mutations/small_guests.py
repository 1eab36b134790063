"""Guests of a few instructions, for what no guest of the catalogue does: assembler text for `tests.x86.assemble.link`.

They are entered as all guests are, turn paging on (32-bit tables, the first 32 MiB in 4 MiB pages), and print one TAP
line: ok if ZF is set at `report`. They have no checkpoints.
"""

from __future__ import annotations

from typing import Final

from harness.machine.mailbox import EXIT_PASS, EXIT_PORT
from harness.x86.bits import VECTOR_DB, VECTOR_GP
from harness.x86.events import VECTOR_DF, VECTOR_NP

_GUEST: Final = """
.code32
.globl _start
_start:
    movl $0x7000, %esp
    lgdt gdtr
    ljmp $8, $1f
1:
GATES
    lidt idtr
    xorl %ecx, %ecx
    movl $0x83, %eax
1:  movl %eax, 0x300000(, %ecx, 4)
    addl $0x400000, %eax
    incl %ecx
    cmpl $8, %ecx
    jb 1b
    movl $0x300000, %eax
    movl %eax, %cr3
    movl $0x10, %eax
    movl %eax, %cr4
    movl $0x80000011, %eax
    movl %eax, %cr0
BODY
stray:
    orl $1, %eax
report:
    movl $right, %esi
    jz 1f
    movl $wrong, %esi
1:  movl $16, %ecx
    movl $0x3f8, %edx
    rep outsb
    movl $EXIT_PORT, %edx
    movl $EXIT_PASS, %eax
    outl %eax, %dx
1:  jmp 1b
right: .ascii "1..1\\nok 1 right\\n"
wrong: .ascii "1..1\\nnot ok 1 \\n "
gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdtr: .word 23
    .long gdt
idtr: .word 32 * 8 - 1
    .long idt
    .balign 4096
idt: .rept 32
    .word 0, 8, 0, 0
    .endr
"""


_GATE: Final = """
    movl $LABEL, %eax
    movw %ax, idt + VECTOR * 8
    shrl $16, %eax
    movw %ax, idt + VECTOR * 8 + 6
    movw $0x8e00, idt + VECTOR * 8 + 4
"""


def _guest(body: str, vector: int) -> str:
    """vector: the exception that `handler` in `body` takes; all but that and what comes of a missing gate (`stray`)
    have no gate."""
    labels = {VECTOR_NP: "stray", VECTOR_GP: "stray"} | {vector: "handler"}
    gates = "".join(_GATE.replace("LABEL", label).replace("VECTOR", str(number)) for number, label in labels.items())
    text = _GUEST.replace("GATES", gates).replace("BODY", body)
    return text.replace("EXIT_PORT", f"{EXIT_PORT:#x}").replace("EXIT_PASS", f"{EXIT_PASS:#x}")


# Single steps: the first trap finds an IDT that the shadow does not have yet. Nothing repeats a trap that is lost.
SINGLE_STEPS: Final = _guest(
    """
    xorl %ebx, %ebx
    pushfl
    orl $0x100, (%esp)
    popfl
    nop
    nop
    pushfl
    andl $~0x100, (%esp)
    popfl
    cmpl $5, %ebx
    jmp report
handler:
    incl %ebx
    iretl
""",
    VECTOR_DB,
)

# A #PF for which there is no gate is a double fault.
NO_GATE: Final = _guest(
    """
    movl 0x2000000, %eax
    jmp stray
handler:
    cmpl %eax, %eax
    jmp report
""",
    VECTOR_DF,
)

# What CPUID offers must be there: SVM, if it is offered, can be turned on in EFER.
SVM_OFFERED: Final = _guest(
    """
    movl $0x80000001, %eax
    cpuid
    notl %ecx
    testl $4, %ecx
    jnz 1f
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x1000, %eax
    wrmsr
    rdmsr
    notl %eax
    testl $0x1000, %eax
    jmp report
1:  cmpl %eax, %eax
    jmp report
handler:
""",
    VECTOR_GP,
)

# CR0, CR3, CR4 and EFER read as they were written.
REGISTERS: Final = _guest(
    """
    movl %cr0, %eax
    cmpl $0x80000011, %eax
    jne report
    movl %cr3, %eax
    cmpl $0x300000, %eax
    jne report
    movl %cr4, %eax
    cmpl $0x10, %eax
    jne report
    movl $0xc0000080, %ecx
    rdmsr
    testl %eax, %eax
    jmp report
handler:
""",
    VECTOR_GP,
)


def _stores(count: int) -> str:
    """Stores all over large pages, and through one of two aliases of a page, both of which it uses; between any two
    stores to a place the guest exits."""
    return _guest(
        f"""
    movl $0x1f00063, 0x301000
    movl $0x1f00063, 0x301004
    movl $0x301063, 0x300080
    movl $1, 0x8000000
    movl $1, 0x8001000
    movl $0x400000, %edi
    movl ${count}, %esi
1:  xorl %eax, %eax
    cpuid
    movl %esi, (%edi)
    movl %esi, 0x8000000
    movl 0x8001000, %eax
    addl $0x133000, %edi
    cmpl $0x1800000, %edi
    jb 2f
    subl $0x1400000, %edi
2:  decl %esi
    jnz 1b
    cmpl $1, 0x8001000
    jmp report
handler:
""",
        VECTOR_GP,
    )


STORES: Final = _stores(400)
MANY_STORES: Final = _stores(6000)
