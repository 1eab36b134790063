"""Accesses and #PF error codes, from the one to the other and back."""

from __future__ import annotations

import pytest

from harness.x86.access import ACCESS_OF, ALL_ACCESSES, Access, access_of

# SDM vol. 3A, figure 4-12: P 0x1, W 0x2, U 0x4, RSVD 0x8, I 0x10, PK 0x20.
TOLD = {
    0x00: Access.LOAD,
    0x02: Access.STORE,
    0x10: Access.FETCH,
    0x04: Access.USER_LOAD,
    0x06: Access.USER_STORE,
    0x14: Access.USER_FETCH,
}
REASONS = (0, 0x1, 0x9, 0x21)  # not present; rights; reserved bits; a protection key


@pytest.mark.parametrize(("code", "access"), TOLD.items())
def test_an_error_code_tells_the_access_whatever_the_reason(code: int, access: Access) -> None:
    assert [access_of(code | reason) for reason in REASONS] == [access] * len(REASONS)


@pytest.mark.parametrize("access", ALL_ACCESSES)
def test_the_bits_of_an_access_tell_it_again(access: Access) -> None:
    assert access_of(access.error_bits(instruction_bit=True)) is access


def test_where_fetches_are_not_reported_they_are_told_as_loads() -> None:
    assert access_of(Access.FETCH.error_bits(instruction_bit=False)) is Access.LOAD
    assert access_of(Access.USER_FETCH.error_bits(instruction_bit=False)) is Access.USER_LOAD


def test_the_table_says_the_same_in_plain_integers() -> None:
    assert [ACCESS_OF[code & 31] for code in range(64)] == [access_of(code) for code in range(64)]
    assert {type(value) for value in ACCESS_OF} == {int}
