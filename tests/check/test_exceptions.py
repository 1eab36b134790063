"""Only what a row of the table names is let through."""

from __future__ import annotations

from dataclasses import replace

from harness.check.exceptions import ALL, explain_code
from harness.x86.access import Access
from harness.x86.bits import CR4_PAE, EFER_NXE, PF_I, PF_P, PF_RSVD, PF_U, PF_W
from harness.x86.control import ControlState

NOPAE_NXE = ControlState(cr0=0x8000_0001, efer=EFER_NXE)


def test_reserved_bits_lose_p_and_nothing_else() -> None:
    predicted = PF_P | PF_RSVD | PF_W
    assert explain_code(predicted, PF_RSVD | PF_W, Access.STORE, ControlState()) == ("qemu-rsvd-p0",)
    assert explain_code(predicted, PF_RSVD, Access.STORE, ControlState()) is None
    assert explain_code(PF_P | PF_W, PF_W, Access.STORE, ControlState()) is None


def test_the_fetch_bit_appears_without_pae_only() -> None:
    assert explain_code(PF_U, PF_U | PF_I, Access.USER_FETCH, NOPAE_NXE) == ("qemu-nopae-id-bit",)
    assert explain_code(PF_U, PF_U | PF_I, Access.USER_LOAD, NOPAE_NXE) is None
    assert explain_code(PF_U, PF_U | PF_I, Access.USER_FETCH, replace(NOPAE_NXE, cr4=CR4_PAE)) is None
    assert explain_code(PF_U, PF_U | PF_I, Access.USER_FETCH, replace(NOPAE_NXE, efer=0)) is None


def test_two_quirks_can_meet() -> None:
    names = explain_code(PF_P | PF_RSVD, PF_RSVD | PF_I, Access.FETCH, NOPAE_NXE)
    assert names == ("qemu-rsvd-p0", "qemu-nopae-id-bit")


def test_equal_codes_need_no_explanation_and_every_row_says_what_and_since_when() -> None:
    assert explain_code(PF_U, PF_U, Access.USER_LOAD, NOPAE_NXE) is None
    assert all(known.qemu and known.silicon and known.since for known in ALL.values())
