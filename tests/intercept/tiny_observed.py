"""An observed guest of a few instructions, 32-bit paging, that stores to a table, flushes and reloads CR3 in a loop."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from harness.catalogue import Guest
from harness.options import RunOptions
from harness.session import Session

PD: Final = 0x200000
PT: Final = 0x201000  # the table that the loop stores to; in physical memory, and through the identity mapping
DATA: Final = 0x300000
COUNTER: Final = 0x310000
PAGE: Final = 0x800000  # PT[0] maps it

LOOP: Final = ["table_write", "invlpg", "cr3_load", "table_write", "cr3_load", "table_write", "cr3_load"]  # its events

SOURCE: Final = f"""
.code32
.globl _start, again, store, flush, reload, fetch, other, copy, wide, spin, rest
_start:
    movl ${PT | 7:#x}, {PD + 8:#x}
    movl $0x87, {PD:#x}                 # 4 MiB onto themselves
    movl ${DATA | 7:#x}, {PT:#x}
    mov %cr4, %eax
    or $0x10, %eax                      # PSE
    mov %eax, %cr4
    mov ${PD:#x}, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80010000, %eax                # PG, WP
    mov %eax, %cr0
again:
    incl {COUNTER:#x}
store:
    xorl $0x200, {PT:#x}                # another value each time, of a bit that is software's
flush:
    invlpg {PAGE:#x}
    mov ${PD:#x}, %eax
reload:
    mov %eax, %cr3
fetch:
    mov {PAGE:#x}, %ebx
other:
    xorl $0x200, {PT + 0x20:#x}
    mov %eax, %cr3
    mov ${DATA:#x}, %esi
    mov ${PT + 0x40:#x}, %edi
copy:
    movsl
    mov %eax, %cr3
    jmp again
spin:
    jmp spin
    .zero 16, 0x90
wide:
    fldz
    fstpt {PT + 0x60:#x}                # two stores: of 8 bytes, and of 2
    mov %eax, %cr3
    jmp wide
rest:
    cli
    hlt
    jmp rest
"""


def build(folder: Path) -> Path:
    """The guest's ELF file in `folder`."""
    (folder / "tiny.S").write_text(SOURCE)
    commands = "gcc -m32 -c tiny.S -o tiny.o && ld -m elf_i386 -Ttext 0x100000 -o tiny.elf tiny.o"
    subprocess.run(commands, shell=True, cwd=folder, check=True, timeout=60)
    return folder / "tiny.elf"


@contextmanager
def tiny_session(elf: Path) -> Iterator[Session]:
    """The guest, observed, at its first instruction."""
    guest = Guest("tiny", "a loop", ("nopae",), memory_mib=16, image=elf)
    with Session(guest, "nopae", RunOptions()) as session:
        yield session
