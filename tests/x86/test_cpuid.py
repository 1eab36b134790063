"""What of CPUID a guest is not shown."""

from __future__ import annotations

import pytest

from harness.x86.bits import CR4_OSXSAVE, CR4_PKE
from harness.x86.cpuid import ECX, HIDDEN, MIRRORED, Mirrored, mask_cpuid

ONES = (0xFFFF_FFFF,) * 4
LEAVES = (*range(0x20), *range(0x8000_0000, 0x8000_0022), 0x4000_0000)


@pytest.mark.parametrize("leaf", LEAVES)
def test_exactly_the_table_is_hidden(leaf: int) -> None:
    for subleaf in range(3):
        hidden = [0, 0, 0, 0]
        for row in HIDDEN:
            if row.leaf == leaf and row.subleaf in (None, subleaf):
                hidden[row.register] |= row.bits
        found = mask_cpuid(leaf, subleaf, ONES, CR4_OSXSAVE | CR4_PKE)
        assert [one ^ value for one, value in zip(ONES, found, strict=True)] == hidden


def test_what_must_not_be_seen() -> None:
    assert mask_cpuid(0x8000_000A, 0, ONES, 0) == (0, 0, 0, 0)
    assert not mask_cpuid(0x8000_0001, 0, ONES, 0)[ECX] & (1 << 2)
    assert not mask_cpuid(1, 0, ONES, 0)[ECX] & (1 << 17)
    assert not mask_cpuid(7, 0, ONES, 0)[ECX] & (1 << 31)


@pytest.mark.parametrize("row", MIRRORED, ids=lambda row: row.name)
@pytest.mark.parametrize("processor", [0, 0xFFFF_FFFF])
def test_some_bits_show_the_guest_s_own_cr4(row: Mirrored, processor: int) -> None:
    for cr4 in (0, row.cr4):
        found = mask_cpuid(row.leaf, 0, (processor,) * 4, cr4)
        assert found[row.register] >> row.bit & 1 == bool(cr4)


def test_subleaf_1_of_leaf_7_has_no_ospke() -> None:
    assert mask_cpuid(7, 1, (0, 0, 0, 0), CR4_PKE) == (0, 0, 0, 0)


def test_every_row_says_why() -> None:
    assert all(row.why for row in HIDDEN)
