"""The layout of the synthetic guests, held against the architecture."""

from __future__ import annotations

import pytest

from harness.workload.layout import (
    KERNEL_PAGE,
    READ_ONLY,
    WRITABLE,
    control_state,
    direct_base,
    table_flags,
    table_span,
    user_tables,
)
from harness.x86.modes import PAGED_MODES, PagingMode, reserved_bits

BY_NAME = pytest.mark.parametrize("mode", PAGED_MODES, ids=lambda mode: mode.name)


@BY_NAME
def test_the_registers_select_the_mode(mode: PagingMode) -> None:
    state = control_state(mode, 0x123)
    assert state.mode is mode
    assert state.root_gpa == 0x123000
    assert state.wp
    assert not (state.smep or state.smap or state.pke)


@BY_NAME
@pytest.mark.parametrize("count", [1, 2, 3, 8, 64])
def test_tables_of_a_process_are_apart_canonical_and_below_the_kernel(mode: PagingMode, count: int) -> None:
    addresses = user_tables(mode, count)
    span = table_span(mode)
    assert len(set(addresses)) == count
    for va in addresses:
        assert va % span == 0
        assert mode.is_canonical(va)
        assert va + span <= direct_base(mode)
    assert mode.is_canonical(direct_base(mode))


@BY_NAME
def test_a_process_of_any_size_has_its_text_first_and_its_stack_last(mode: PagingMode) -> None:
    addresses = user_tables(mode, 8)
    assert addresses[0] == min(addresses)
    assert addresses[-1] == max(addresses)


def test_more_tables_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        user_tables(PAGED_MODES[0], 600)


@BY_NAME
def test_no_entry_has_a_reserved_bit(mode: PagingMode) -> None:
    for level in mode.levels:
        flags = [table_flags(mode, level.number)] if level.number > 1 else [READ_ONLY, WRITABLE, KERNEL_PAGE]
        for each in flags:
            assert not each & reserved_bits(mode, level.number, False, nxe=True)
