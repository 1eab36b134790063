"""The line that says how far a long command is."""

from __future__ import annotations

import io
import sys
import time

import pytest

from harness import cli_progress
from harness.cli_progress import ProgressLine, telling


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SILENT", "EVERY", "EVERY_LINE"):
        monkeypatch.setattr(cli_progress, name, 0.0)
    monkeypatch.setattr(cli_progress, "LOOK_EVERY", 0.001)


def test_nothing_is_said_of_what_is_over_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_progress, "SILENT", 60.0)
    stream = Terminal()
    line = ProgressLine(stream)
    line.tell(lambda seconds: "half")
    line.clear()
    assert stream.getvalue() == ""


def test_on_a_terminal_one_line_is_written_over_and_taken_back() -> None:
    stream = Terminal()
    line = ProgressLine(stream)
    line.tell(lambda seconds: f"{seconds:.0f} s, half")
    line.tell(lambda seconds: "all")
    line.clear()
    line.clear()
    assert stream.getvalue() == "\r0 s, half\x1b[K\rall\x1b[K\r\x1b[K"


def test_in_a_file_each_is_a_line_of_its_own() -> None:
    stream = io.StringIO()
    line = ProgressLine(stream)
    line.tell(lambda seconds: "half")
    line.clear()
    assert stream.getvalue() == "half\n"


def test_words_come_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_progress, "EVERY_LINE", 60.0)
    stream = io.StringIO()
    line = ProgressLine(stream)
    for _ in range(3):
        line.tell(lambda seconds: "half")
    assert stream.getvalue() == "half\n"


def test_it_is_told_while_the_work_cannot_and_over_when_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(KeyboardInterrupt), telling(lambda seconds: "half"):
        deadline = time.monotonic() + 30
        while "half" not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.001)
        raise KeyboardInterrupt
    assert stream.getvalue().startswith("\rhalf\x1b[K")
    assert stream.getvalue().endswith("\r\x1b[K")
