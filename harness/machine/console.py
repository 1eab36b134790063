"""The guest's serial console: a pipe read through pexpect, line by line, in a thread.

The thread exists because a guest that prints must never wait for the harness, which waits for the guest. A pipe, and a
large one, because QEMU (7.2) drops characters that it cannot write after a few tries, and a UNIX socket is full after
some 270 of them: each is a message with a header of its own. In live mode the thread may come late by some
milliseconds, in which a guest prints more than that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
from pathlib import Path
from typing import Final

import pexpect
from pexpect.fdpexpect import fdspawn

from harness.machine.deadline import Deadline

PIPE_BYTES: Final = 1 << 20  # what an unprivileged process may ask for (/proc/sys/fs/pipe-max-size)
LOOK_SECONDS: Final = 0.2  # between two looks whether the console was closed from this side
_LINE, _EOF, _TIMEOUT = range(3)

KEEP_BYTES: Final = 2 << 20  # of a flooding guest's output, the first 2 MiB are kept
_TAP = re.compile(r"^(not ok|ok)\b\s*(\d*)\s*-?\s*(.*)$")
_PLAN = re.compile(r"^1\.\.(\d+)")


class Console:
    """Everything that the guest prints on COM1. lines: without line ends. dropped: bytes beyond KEEP_BYTES."""

    def __init__(self, path: Path) -> None:
        """Makes the pipes `path`.in and `path`.out that QEMU's ``-chardev pipe,path=PATH`` is to open."""
        out = path.with_name(f"{path.name}.out")
        os.mkfifo(path.with_name(f"{path.name}.in"), 0o600)
        os.mkfifo(out, 0o600)
        self._descriptor = os.open(out, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # a smaller limit: the pipe stays as large as it is
            fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._spawn = fdspawn(self._descriptor, timeout=None, maxread=65536, use_poll=True)
        self._closing = False
        self.lines: list[str] = []
        self.dropped = 0
        self._kept = 0
        self._changed = threading.Condition()
        self._ended = False
        self._open = False  # the last line has no end yet
        self._goes_on = False  # the next one is the rest of it
        self._thread = threading.Thread(target=self._pump, name="console", daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        spawn = self._spawn
        # A line is cut at 4 KiB: a guest that never ends its line must not make every search longer.
        patterns = spawn.compile_pattern_list([rb"[^\n]{0,4096}\n|[^\n]{4096}", pexpect.EOF, pexpect.TIMEOUT])
        while True:
            try:
                which = spawn.expect_list(patterns, timeout=LOOK_SECONDS)
            except (OSError, ValueError, pexpect.ExceptionPexpect):
                which = _EOF
            if which == _TIMEOUT and not self._closing:
                continue  # what there is of a line stays in the buffer
            data = spawn.after if which == _LINE else spawn.before
            text = data.decode("latin-1") if isinstance(data, bytes) else ""
            with self._changed:
                if text:
                    if self._kept < KEEP_BYTES:
                        line = text.rstrip("\r\n")
                        if self._goes_on:
                            self.lines[-1] += line
                        else:
                            self.lines.append(line)
                        self._open, self._goes_on = text[-1] != "\n", False
                        self._kept += len(text)
                    else:
                        self.dropped += len(text)
                self._ended = which != _LINE
                self._changed.notify_all()
            if which != _LINE:
                return

    def follow(self, earlier: Console) -> None:
        """Puts what `earlier` got in front: the console of the machine that this guest, which has not printed here yet,
        ran on before. A line that it had begun goes on here."""
        with self._changed:
            self.lines[:0] = earlier.lines
            self._kept += earlier._kept
            self.dropped += earlier.dropped
            self._goes_on = earlier._open

    def expect(self, pattern: str, deadline: Deadline) -> str | None:
        """Waits for a line that matches `pattern`; the line, or None if the console ends or time runs out."""
        compiled = re.compile(pattern)
        seen = 0
        with self._changed:
            while True:
                for line in self.lines[seen:]:
                    if compiled.search(line):
                        return line
                seen = len(self.lines)
                if self._ended or deadline.passed:
                    return None
                self._changed.wait(min(0.2, max(0.0, deadline.left)))

    def finish(self, seconds: float = 1.0) -> None:
        """Waits until QEMU has closed the console, so that nothing printed last is lost."""
        self._thread.join(seconds)

    @property
    def text(self) -> str:
        with self._changed:
            tail = [f"[{self.dropped} more bytes were not kept]"] if self.dropped else []
            return "\n".join([*self.lines, *tail]) + "\n"

    def tap(self) -> tuple[int | None, list[tuple[bool, str]], bool]:
        """The TAP that was printed: (plan or None, [(ok, text)], whether the guest bailed out)."""
        plan: int | None = None
        results: list[tuple[bool, str]] = []
        bailed = False
        with self._changed:
            lines = list(self.lines)
        for line in lines:
            if match := _PLAN.match(line):
                plan = int(match.group(1))
            elif match := _TAP.match(line):
                results.append((match.group(1) == "ok", match.group(3)))
            elif line.startswith("Bail out!"):
                bailed = True
        return plan, results, bailed

    def close(self) -> None:
        self._closing = True
        self._thread.join(5 * LOOK_SECONDS)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
