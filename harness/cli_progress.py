"""The line that says how far a long command is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Final, TextIO

SILENT: Final = 2.0  # seconds that a command may take before it says how far it is
EVERY: Final = 0.5  # seconds between two such words on a terminal
EVERY_LINE: Final = 10.0  # and where each is a line of its own
LOOK_EVERY: Final = 0.25  # seconds between two looks of `telling`


class ProgressLine:
    """On standard error: one line that is written over where that is a terminal, else a line now and then."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._alone = self._stream.isatty()
        self._began = time.monotonic()
        self._next = self._began + SILENT
        self._shown = False

    def tell(self, line: Callable[[float], str]) -> None:
        """To be called often. line: what to say after so many seconds; asked only when it is time to say something."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (EVERY if self._alone else EVERY_LINE)
        text = line(now - self._began)
        over = f"\r{text}\x1b[K" if self._alone else text
        print(over, end="" if self._alone else "\n", file=self._stream, flush=True)
        self._shown = self._alone

    def clear(self) -> None:
        """Takes the line away, before something else is printed."""
        if self._shown:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
            self._shown = False


@contextmanager
def telling(line: Callable[[float], str]) -> Iterator[None]:
    """A `ProgressLine` while the block runs, told by a thread of its own: for work that has no moment to tell in."""
    progress, over = ProgressLine(), Event()

    def look() -> None:
        while not over.wait(LOOK_EVERY):
            progress.tell(line)

    thread = Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        progress.clear()
