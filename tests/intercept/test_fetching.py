"""Fetching the instruction at which the processor left, through the tables that the processor walks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.engine import ShadowRoot
from harness.intercept.instructions import CS_ATTRIBUTES, CS_BASE, EFER, RIP, Instructions
from harness.machine.errors import MachineError
from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.modes import LONG4, LONG5, PAE, PagingMode

FRAMES = 1024
ROOT, PDPT, PD, PT, PML4, LARGE = 1, 2, 3, 4, 5, 512
PAGE = bits.PAGE_SIZE
LONG_CS = 0xA9B << 16
CS32 = 0xC9B << 16
CS16 = 0x09B << 16


class Tables:
    """Machine memory with tables in it: byte n of the frame f is (f * 7 + n) mod 251, unless it is a table."""

    def __init__(self, mode: PagingMode, va: int) -> None:
        content = (np.arange(FRAMES)[:, None] * 7 + np.arange(PAGE)) % 251
        self.memory = content.astype(np.uint8).reshape(-1)
        self.words = self.memory.view(np.uint64).reshape(-1, 512)
        self.mode = mode
        tables = [ROOT, *{PAE: (PD, PT), LONG4: (PDPT, PD, PT), LONG5: (PML4, PDPT, PD, PT)}[mode]]
        for frame in tables:
            self.words[frame] = 0
        for level, table, below in zip(mode.levels, tables, tables[1:], strict=False):
            self.words[table, level.index(va)] = below << 12 | bits.PTE_P

    def map(self, va: int, mfn: int) -> None:
        self.words[PT, self.mode.levels[-1].index(va)] = mfn << 12 | bits.PTE_P | bits.PTE_NX

    def fetch(self, rip: int, cs: int = LONG_CS, base: int = 0) -> tuple[bytes, int]:
        vmcb = [0] * 512
        vmcb[RIP], vmcb[CS_ATTRIBUTES], vmcb[CS_BASE], vmcb[EFER] = rip, cs, base, bits.EFER_LMA
        vcpu: Any = SimpleNamespace(vmcb=vmcb)
        instructions = Instructions(vcpu, self.memory, lambda state, va: None)
        live: Any = SimpleNamespace(engine=SimpleNamespace(root=ShadowRoot(self.mode, ROOT << 12, ControlState())))
        instructions.attach(live)
        return instructions.code()

    def expected(self, mfn: int, at: int, count: int = 15) -> bytes:
        start = mfn * PAGE + at
        return self.memory[start : start + count].tobytes()


@pytest.mark.parametrize(
    ("mode", "va"),
    [(LONG4, 0xFFFF_8000_1234_5678), (LONG4, 0x7FFF_FFFF_F123), (LONG5, 0xFF12_3456_789A_B123), (PAE, 0xFFC0_1123)],
)
def test_each_format_is_walked(mode: PagingMode, va: int) -> None:
    tables = Tables(mode, va)
    tables.map(va, 99)
    assert tables.fetch(va, CS32 if mode is PAE else LONG_CS)[0] == tables.expected(99, va & 0xFFF)


def test_a_large_page_ends_the_walk() -> None:
    va = 0x4030_2123
    tables = Tables(LONG4, va)
    tables.words[PD, LONG4.level(2).index(va)] = LARGE << 12 | bits.PTE_P | bits.PTE_PS | 1 << 12  # bit 12 is PAT
    assert tables.fetch(va) == (tables.expected(LARGE + 0x102, 0x123), 64)


def test_an_instruction_may_go_on_in_a_page_elsewhere() -> None:
    va = 0x40_0FF8
    tables = Tables(LONG4, va)
    tables.map(va, 700)
    tables.map(va + PAGE, 40)
    assert tables.fetch(va)[0] == tables.expected(700, 0xFF8, 8) + tables.expected(40, 0, 7)


def test_what_is_behind_a_page_that_is_not_there_is_not_read() -> None:
    va = 0x40_0FF8
    tables = Tables(LONG4, va)
    tables.map(va, 700)
    assert tables.fetch(va)[0] == tables.expected(700, 0xFF8, 8)


def test_an_instruction_may_end_with_its_page() -> None:
    va = 0x40_0FF1
    tables = Tables(LONG4, va)
    tables.map(va, 700)
    assert tables.fetch(va)[0] == tables.expected(700, 0xFF1, 15)


@pytest.mark.parametrize(("cs", "width"), [(LONG_CS, 64), (CS32, 32), (CS16, 16)])
def test_only_code_with_a_segment_has_a_base(cs: int, width: int) -> None:
    linear = 0x1234 + (0 if width == 64 else 0x7000)
    tables = Tables(LONG4, linear)
    tables.map(linear, 77)
    assert tables.fetch(0x1234, cs, 0x7000) == (tables.expected(77, 0x234), width)


def test_an_address_wraps_at_4_gib() -> None:
    tables = Tables(PAE, 0x2000)
    tables.map(0x2000, 55)
    assert tables.fetch(0xFFFF_F000, CS32, 0x3010)[0] == tables.expected(55, 0x10)


def test_what_is_not_mapped_was_not_executed() -> None:
    tables = Tables(LONG4, 0x5000)
    with pytest.raises(MachineError, match="left the guest at 0x5000, which its tables do not map"):
        tables.fetch(0x5000)
