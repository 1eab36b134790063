"""The console is drained whatever the guest prints, and its TAP is understood."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.machine.console import KEEP_BYTES, Console
from harness.machine.deadline import Deadline


class End:
    """What QEMU does with its end of the pipe."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY)

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


Guest = tuple[Console, End]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Callable[[], Guest]]:
    opened: list[Guest] = []

    def connect() -> Guest:
        path = tmp_path / f"console{len(opened)}"
        console = Console(path)
        opened.append((console, End(path.with_name(f"{path.name}.out"))))
        return opened[-1]

    yield connect
    for console, end in opened:
        end.close()
        console.close()


def test_lines_arrive_and_can_be_waited_for(guest: Callable[[], Guest]) -> None:
    console, end = guest()
    end.sendall(b"hello\r\nTAP version 13\nhalf a li")
    assert console.expect("^TAP version", Deadline(5)) == "TAP version 13"
    end.sendall(b"ne\n")
    assert console.expect("^half a line$", Deadline(5)) is not None
    assert console.lines == ["hello", "TAP version 13", "half a line"]


def test_nothing_is_lost_while_nobody_reads(guest: Callable[[], Guest], monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest prints character by character; as messages of a UNIX socket some 270 of them would fit."""
    _, end = guest()
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", lambda thread: None)  # the reader comes late
        late, end = guest()
    os.set_blocking(end._descriptor, False)
    for _ in range(5000):
        end.sendall(b"x")
    late._thread.start()
    end.close()
    late.finish()
    assert sum(map(len, late.lines)) == 5000


def test_waiting_for_what_never_comes_ends(guest: Callable[[], Guest]) -> None:
    console, _ = guest()
    assert console.expect("never", Deadline(0.1)) is None


def test_the_last_words_without_a_line_end_are_kept(guest: Callable[[], Guest]) -> None:
    console, end = guest()
    end.sendall(b"panic")
    end.close()
    console.finish()
    assert console.lines == ["panic"]


def test_tap_is_read(guest: Callable[[], Guest]) -> None:
    console, end = guest()
    end.sendall(b"1..3\nok 1 - first\nnot ok 2 - second\nnoise\nok 3\nBail out! tired\n")
    end.close()
    console.finish()
    assert console.tap() == (3, [(True, "first"), (False, "second"), (True, "")], True)


def test_a_flood_is_drained_and_counted(guest: Callable[[], Guest]) -> None:
    console, end = guest()
    block = b"x" * 1000 + b"\n"
    for _ in range(KEEP_BYTES // len(block) + 500):
        end.sendall(block)
    end.close()
    console.finish(30)
    assert console.dropped > 0
    assert "more bytes were not kept" in console.text


def test_a_line_that_never_ends_is_cut(guest: Callable[[], Guest]) -> None:
    console, end = guest()
    end.sendall(b"y" * 10000)
    end.close()
    console.finish(30)
    assert sum(map(len, console.lines)) == 10000
    assert max(map(len, console.lines)) <= 4096


def test_a_console_goes_on_where_that_of_another_machine_stopped(guest: Callable[[], Guest]) -> None:
    first, end = guest()
    end.sendall(b"ok 1 - one\nok 2 - t")
    end.close()
    first.finish()
    second, end = guest()
    second.follow(first)
    end.sendall(b"wo\nok 3 - three\n")
    assert second.expect("three", Deadline(5)) is not None
    assert second.lines == ["ok 1 - one", "ok 2 - two", "ok 3 - three"]
