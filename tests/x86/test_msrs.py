"""The map of intercepted MSRs, bit by bit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.x86.bits import MSR_EFER
from harness.x86.msrs import (
    INTERCEPTED,
    MSR_VM_CR,
    MSR_VM_HSAVE_PA,
    READ,
    WRITE,
    HiddenMsrs,
    map_position,
    msr_permission_map,
)


def qemu_position(number: int) -> tuple[int, int]:
    """Where cpu_svm_check_intercept_param looks (QEMU 7.2): (byte, shift)."""
    if number < 0x2000:
        return number * 2 // 8, number * 2 % 8
    first, base = (8192, 0xC000_0000) if number < 0xC001_0000 else (16384, 0xC001_0000)
    bit = (first + number - base) * 2
    return bit // 8, bit % 8


@pytest.mark.parametrize("number", [0, 1, 0x1B, 0x1FFF, 0xC000_0000, MSR_EFER, 0xC000_1FFF, 0xC001_0117, 0xC001_1FFF])
def test_the_place_of_an_msr(number: int) -> None:
    assert map_position(number) == qemu_position(number)


@pytest.mark.parametrize("number", [0x2000, 0x4000_0000, 0xC000_2000, 0xC000_FFFF, 0xC001_2000, 0xFFFF_FFFF])
def test_an_msr_outside_the_map(number: int) -> None:
    assert map_position(number) is None
    with pytest.raises(ValueError, match=r"none of the map's ranges"):
        msr_permission_map([replace(INTERCEPTED[0], number=number)])


def test_exactly_the_intercepted_ones_are_set() -> None:
    content = msr_permission_map()
    assert len(content) == 8192
    assert sum(byte.bit_count() for byte in content) == sum(msr.accesses.bit_count() for msr in INTERCEPTED)
    for msr in INTERCEPTED:
        byte, shift = qemu_position(msr.number)
        assert content[byte] >> shift & 3 == msr.accesses == READ | WRITE, msr.name
    assert content[0x800 + (0x80 >> 2)] == 3, "EFER, AMD APM vol. 2, 15.11"


def test_reads_and_writes_have_a_bit_each() -> None:
    msr = replace(INTERCEPTED[0], number=0x1B)
    assert [msr_permission_map([replace(msr, accesses=a)])[6] for a in (READ, WRITE, READ | WRITE)] == [
        0x40,
        0x80,
        0xC0,
    ]


def test_a_guest_finds_what_a_processor_of_qemu_would_give() -> None:
    msrs = HiddenMsrs()
    for number in (MSR_VM_CR, MSR_VM_HSAVE_PA, 0x12345):
        assert msrs.read(number) == 0
        msrs.write(number, 0x5000)
    assert [msrs.read(number) for number in (MSR_VM_CR, MSR_VM_HSAVE_PA, 0x12345)] == [0, 0x5000, 0]
