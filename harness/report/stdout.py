"""Standard output that may go away (a closed pipe, a full disk) without taking the run with it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import TextIO, cast


class Tolerant:
    """A text stream that remembers its first write error and swallows the rest.

    The results of minutes of work, and the report files, must not be lost because a pager was closed.
    Characters that the stream's encoding lacks come out as escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return self._stream.encoding or "ascii"

    @property
    def closed_early(self) -> bool:
        """Whether the reader went away, which is its right, rather than that writing failed."""
        return self.error is not None and self.error.errno == errno.EPIPE

    def _try(self, action: Callable[[], object]) -> None:
        if self.error is not None:
            return
        try:
            action()
        except OSError as error:
            self.error = error
            self._discard()

    def _discard(self) -> None:
        """Points the descriptor at /dev/null, so that the interpreter's last flush does not fail again."""
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        except OSError:
            pass  # a stream without a descriptor: nothing is flushed at exit


def tolerant_stdout() -> Tolerant:
    """Replaces sys.stdout by a `Tolerant` over it, and returns that."""
    if isinstance(sys.stdout, Tolerant):
        return sys.stdout
    stream = Tolerant(sys.stdout)
    sys.stdout = cast(TextIO, stream)
    return stream
