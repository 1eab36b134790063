"""A guest of a few dozen instructions that a debugger may meet, in each paging mode, with a label at each of interest.

Page A (0x400000) and page B (0x401000) are mapped by the table at 0x301000, which is mapped as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from harness.catalogue import load_catalogue
from harness.live.session import LiveSession
from harness.machine.image import Image, load_image
from harness.machine.mailbox import EXIT_PORT
from harness.options import RunOptions
from harness.x86 import bits
from tests.x86.assemble import link

PAGE_A, PAGE_B = 0x40_0000, 0x40_1000
FRAME_A, FRAME_B = 0x30_2000, 0x30_3000
TABLE = 0x30_1000  # of both pages, mapped at its own address
NOWHERE = 0x80_0000  # not mapped
STATUS = 7  # what the guest ends with
ENTRY = 0x10_0000
MEMORY_MIB = 8  # each frame is mapped and tagged before the guest starts

_LONG_PD = "movl $0x83, 0x304000\nmovl $0x200083, 0x304008\nmovl $0x301003, 0x304010\n"


@dataclass(frozen=True)
class Mode:
    """tables: code that builds them; root: of them. word: bytes of an entry."""

    name: str
    tables: str
    root: int
    cr4: int
    word: int = 8

    @property
    def long(self) -> bool:
        return self.name.startswith("long")


_FOUR = _LONG_PD + "movl $0x305003, 0x300000\nmovl $0x304003, 0x305000\n"
TABLES = {
    "nopae": Mode("nopae", "movl $0x83, 0x300000\nmovl $0x301003, 0x300004\n", 0x30_0000, bits.CR4_PSE, 4),
    "pae": Mode("pae", _LONG_PD + "movl $0x304001, 0x300000\n", 0x30_0000, bits.CR4_PAE),
    "long4": Mode("long4", _FOUR, 0x30_0000, bits.CR4_PAE),
    "long5": Mode("long5", _FOUR + "movl $0x300003, 0x306000\n", 0x30_6000, bits.CR4_PAE | bits.CR4_LA57),
}

_SOURCE = """
.code32
.globl _start
_start:
    movl $0x7000, %esp
    lgdt gdtr
    ljmp $8, $1f
1:  movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    GATES
    lidt idtr
    TABLES
    movl $0x302003, 0x301000
    movl $0x303003, 0x301000 + WORD
    movl $CR4, %eax
    movl %eax, %cr4
    movl $ROOT, %eax
    movl %eax, %cr3
    EFER
    movl %cr0, %eax
    orl $0x80000000, %eax
on: movl %eax, %cr0
    ENTER
paged:
    movl $0x11, 0x400000
    movl $0x22, 0x401000
store: movl $5, counter
inc: incl counter
load: movl counter, %ebx
edit: movl $0x303003, 0x301000
flush: invlpg 0x400000
moved: movl 0x400000, %ebx
    mov %cr3, %REGax
reload: mov %REGax, %cr3
    xorl %eax, %eax
    cpuid
    xorl %eax, %eax
    xorl %ebx, %ebx
    xorl %ecx, %ecx
    xorl %edx, %edx
rom: movl 0xc0000, %ebx
fault: movl $1, 0x800000
    nop
faulted: nop
bad: ud2
good: movl $0x100000, %esi
    movl $0x400100, %edi
    movl $4, %ecx
    rep movsb
    call sub
end: movl $7, %eax
leave: movl $EXIT_PORT, %edx
    outl %eax, %dx
spin: jmp spin
sub: ret
idle: sti
halt: hlt
    jmp end
timer: # one interrupt, some 55 ms from now
    movb $0x11, %al
    outb %al, $0x20
    movb $0x20, %al
    outb %al, $0x21
    movb $4, %al
    outb %al, $0x21
    movb $1, %al
    outb %al, $0x21
    movb $0xfe, %al
    outb %al, $0x21
    movb $0x30, %al
    outb %al, $0x43
    movb $0xff, %al
    outb %al, $0x40
    outb %al, $0x40
    jmp idle
HANDLERS
    .balign 16
idt: .fill 0x21 * 16, 1, 0
idtr: .word 0x21 * 16 - 1
    .long idt, 0
gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
gdtr: .word 31
    .long gdt
    .balign 16
counter: .quad 0
"""

_HANDLERS = {
    6: "h6: SET $good, (%REGsp)\nIRET\n",
    14: "h14: add $WIDE, %REGsp\nSET $faulted, (%REGsp)\nIRET\n",
    32: "h32: push %REGax\nmovb $0x20, %al\noutb %al, $0x20\npop %REGax\nIRET\n",
}


def source(mode: Mode) -> str:
    size, selector = (16, 0x18) if mode.long else (8, 8)
    gates = "".join(
        f"movl $h{vector}, %eax\nmovw %ax, idt + {vector * size}\nmovw ${selector}, idt + {vector * size + 2}\n"
        f"movw $0x8e00, idt + {vector * size + 4}\nshrl $16, %eax\nmovw %ax, idt + {vector * size + 6}\n"
        for vector in _HANDLERS
    )
    enter = "ljmp $0x18, $1f\n.code64\n1:" if mode.long else ""
    efer = "movl $0xc0000080, %ecx\nrdmsr\nbts $8, %eax\nwrmsr\n" if mode.long else ""
    wide = {"REG": "r", "WIDE": "8", "SET": "movq", "IRET": "iretq"}
    narrow = {"REG": "e", "WIDE": "4", "SET": "movl", "IRET": "iret"}
    text = _SOURCE.replace("HANDLERS", "".join(_HANDLERS.values())).replace("GATES", gates)
    for name, value in (
        ("EXIT_PORT", f"{EXIT_PORT:#x}"),
        ("TABLES", mode.tables),
        ("WORD", str(mode.word)),
        ("CR4", f"{mode.cr4:#x}"),
        ("ROOT", f"{mode.root:#x}"),
        ("EFER", efer),
        ("ENTER", enter),
        *(wide if mode.long else narrow).items(),
    ):
        text = text.replace(name, value)
    return text


def tiny_image(paging: str, directory: Path) -> Image:
    path = directory / f"tiny.{paging}.elf"
    path.write_bytes(link(source(TABLES[paging]), ENTRY))
    return load_image(path)


def tiny_session(paging: str, directory: Path, stress: bool = False) -> LiveSession:
    """The guest in live mode, at its entry once it is entered."""
    guest = replace(load_catalogue()["basic"], image=tiny_image(paging, directory).path)
    return LiveSession(guest, paging, RunOptions(mode="live", stress=stress, memory_mib=MEMORY_MIB))
