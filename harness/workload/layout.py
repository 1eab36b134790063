"""Where a kernel of 2006 has what, by paging mode, and the entries that it writes."""

from __future__ import annotations

from typing import Final

from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.modes import PagingMode

# The kernel's map of all its memory, one to one (PAGE_OFFSET of Linux 2.6: include/asm-{i386,x86_64}/page.h).
_DIRECT_32: Final = 0xC000_0000
_DIRECT_64: Final = 0xFFFF_8100_0000_0000
LOWMEM_FRAMES: Final = 896 << 8  # what fits into the kernel map of a 32-bit kernel

# Of a process: text and heap from the bottom, libraries and files from the middle, the stack below the top.
_TEXT: Final = {False: 0x0800_0000, True: 0x0040_0000}  # by whether the mode is a 64-bit one
_FILES: Final = {False: 0x4000_0000, True: 0x2AAA_AAA0_0000}
_TOP: Final = {False: _DIRECT_32, True: 0x8000_0000_0000}

_P, _RW, _US, _A, _D = bits.PTE_P, bits.PTE_RW, bits.PTE_US, bits.PTE_A, bits.PTE_D
TABLE: Final = _P | _RW | _US | _A | _D  # _PAGE_TABLE
KERNEL_PAGE: Final = _P | _RW | _A | _D | bits.PTE_G  # PAGE_KERNEL
READ_ONLY: Final = _P | _US | _A  # a page of a file, or one to be copied on write
WRITABLE: Final = _P | _RW | _US | _A | _D  # a page that a store has brought in

_CR0: Final = bits.CR0_PE | bits.CR0_PG | bits.CR0_WP | bits.CR0_ET
_LONG: Final = bits.EFER_LME | bits.EFER_LMA | bits.EFER_NXE


def control_state(mode: PagingMode, root: int) -> ControlState:
    """The registers of a kernel in `mode` with the root table at gfn `root`."""
    cr4 = bits.CR4_PGE | (bits.CR4_PSE if mode.entry_bytes == 4 else bits.CR4_PAE)
    if len(mode.levels) == 5:
        cr4 |= bits.CR4_LA57
    efer = _LONG if mode.canonical else bits.EFER_NXE if mode.has_nx else 0
    return ControlState(_CR0, root << bits.PAGE_SHIFT, cr4, efer)


def direct_base(mode: PagingMode) -> int:
    """Address of frame 0 in the kernel map."""
    return _DIRECT_64 if mode.canonical else _DIRECT_32


def table_span(mode: PagingMode) -> int:
    """Bytes of address space that an L1 table covers."""
    return mode.level(2).span


def user_tables(mode: PagingMode, count: int) -> list[int]:
    """Addresses of what the `count` L1 tables of a process cover: text and heap, then files, the stack last.

    Raises ValueError for more than there is room for.
    """
    span, wide = table_span(mode), mode.canonical
    stack = 1 if count > 2 else 0
    text = (count - stack + 1) // 2
    files = count - stack - text
    if _TEXT[wide] + text * span > _FILES[wide] or _FILES[wide] + (files + stack) * span > _TOP[wide]:
        raise ValueError(f"{count} L1 tables do not fit into an address space in {mode.name}")
    return [
        *(_TEXT[wide] + number * span for number in range(text)),
        *(_FILES[wide] + number * span for number in range(files)),
        *(_TOP[wide] - span for _ in range(stack)),
    ]


def table_flags(mode: PagingMode, level: int) -> int:
    """Flags of an entry of `level` that leads to a table: PDPTEs of a PAE guest know only P."""
    return TABLE if mode.level(level).has_rights else _P
