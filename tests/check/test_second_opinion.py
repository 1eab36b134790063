"""The weak oracles' answers are read as QEMU prints them, known bugs included."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from harness.check.layout import Layout
from harness.check.second_opinion import SecondOpinion, parse_info_tlb
from harness.check.verdict import FRAME, Answers
from harness.x86.modes import LONG4, NOPAE, PAE, PagingMode
from tests.check.guest_tables import FRAMES, Guest

EVEN = (
    "0000000000000000: 0000000000000000 --------W\r\n"
    "0000000000200000: 0000000000a00000 --P-A---W\r\n"
    "ffff800000001000: 00000000000f1000 XG-DA--UW\r\n"
)


def test_even_lines_and_scattered_lines_parse_alike() -> None:
    at_once = parse_info_tlb(EVEN)
    one_by_one = parse_info_tlb("PG is on\n" + "\n".join(reversed(EVEN.splitlines())))
    for dump in (at_once, one_by_one):
        assert dump.va.tolist() == [0, 0x20_0000, 0xFFFF_8000_0000_1000]
        assert dump.pa.tolist() == [0, 0xA0_0000, 0xF_1000]
        assert dump.large.tolist() == [False, True, False]


@pytest.mark.parametrize("text", ["", "PG disabled\r\n", EVEN.replace("a", "z"), "::::\n" * 9])
def test_other_text_is_no_mapping(text: str) -> None:
    assert 0x20_0000 not in parse_info_tlb(text).va[parse_info_tlb(text).pa == 0xA0_0000].tolist()


def asked(mode: PagingMode, lines: str, va: int, gfn: int) -> tuple[int, Counter[str]]:
    """How many opinions differ for one address that should lead to `gfn`, and the exceptions."""
    guest = Guest(mode)
    guest.target.info_tlb = lambda: lines  # type: ignore[method-assign]
    second = SecondOpinion(guest.target, Layout(FRAMES))
    answers = Answers(np.asarray([FRAME], np.int32), np.asarray([gfn]))
    checks = {"info_tlb": 0}
    exceptions: Counter[str] = Counter()
    found = second.ask_tlb(mode, 10, np.asarray([va], np.uint64), answers, checks, exceptions)
    assert checks["info_tlb"] == 1
    return len(found), exceptions


def test_an_address_is_looked_up_in_the_page_that_contains_it() -> None:
    line = "0000000000200000: 0000000000100000 --P-A---W"
    assert asked(LONG4, line, 0x20_5123, 0x105)[0] == 0
    assert asked(LONG4, line, 0x20_5123, 0x106)[0] == 1
    assert asked(LONG4, "", 0x20_5123, 0x106)[0] == 1


def test_bits_above_the_frame_that_pae_prints_are_a_named_exception() -> None:
    differing, exceptions = asked(PAE, "0000000000200000: 8000000000155000 X---A---W", 0x20_0000, 0x155)
    assert (differing, exceptions["info-tlb-pae-nx-in-frame"]) == (0, 1)
    differing, exceptions = asked(PAE, "0000000000200000: 0000000000301000 --P-A---W", 0x20_1000, 0x201)
    assert (differing, exceptions["info-tlb-pae-2m-mask"]) == (0, 1)


def test_bits_within_a_4_mib_frame_are_a_named_exception() -> None:
    differing, exceptions = asked(NOPAE, "0000000000400000: 0000000000200000 --P-A---W", 0x40_1000, 0x1)
    assert (differing, exceptions["info-tlb-4m-mask"]) == (0, 1)


def test_the_text_is_only_asked_for_when_it_can_be_afforded() -> None:
    guest = Guest(LONG4)
    calls: list[int] = []

    def text() -> str:
        calls.append(1)
        return EVEN

    guest.target.info_tlb = text  # type: ignore[method-assign]
    second = SecondOpinion(guest.target, Layout(FRAMES))
    none = Answers.empty(0)
    for _ in range(20):
        second.ask_tlb(LONG4, 8000, np.zeros(0, np.uint64), none, {"info_tlb": 0}, Counter())
    assert 2 <= len(calls) <= 4
