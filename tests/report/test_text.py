"""Text from a guest cannot act on a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report.text import duration, one_line, printable


def test_terminal_escapes_are_shown_not_obeyed() -> None:
    assert printable("\x1b[2Jgone\x07\x9b1m") == "\\x1b[2Jgone\\x07\\x9b1m"


def test_lines_and_tabs_stay() -> None:
    assert printable("a\n\tb") == "a\n\tb"


def test_other_alphabets_stay_and_lone_surrogates_do_not() -> None:
    assert printable("é→\ud800") == "é→\\ud800"


@given(st.text())
def test_whatever_comes_in_one_printable_line_comes_out(text: str) -> None:
    line = one_line(text, 40)
    assert line == "" or line.isprintable()
    assert len(line) <= 40


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4217, "0.42 s"), (12.34, "12.3 s"), (125.2, "2 min 05 s"), (119.7, "2 min 00 s")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
