"""The guest's serial console: a UNIX socket read through pexpect, line by line, in a thread.

The thread exists because a guest that prints must never wait for the harness (QEMU stops taking characters
once the socket is full), while the harness waits on the gdbstub.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pexpect
from pexpect.socket_pexpect import SocketSpawn

from harness.machine.deadline import Deadline
from harness.machine.sockets import connect

KEEP_BYTES: Final = 2 << 20  # of a flooding guest's output, the first 2 MiB are kept
_TAP = re.compile(r"^(not ok|ok)\b\s*(\d*)\s*-?\s*(.*)$")
_PLAN = re.compile(r"^1\.\.(\d+)")


class Console:
    """Everything that the guest prints on COM1. lines: without line ends. dropped: bytes beyond KEEP_BYTES."""

    def __init__(self, path: Path, deadline: Deadline, ended: Callable[[], bool] = lambda: False) -> None:
        self._socket = connect(path, deadline, ended)
        self._spawn = SocketSpawn(self._socket, timeout=None, maxread=65536, use_poll=True)
        self.lines: list[str] = []
        self.dropped = 0
        self._kept = 0
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._pump, name="console", daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        spawn = self._spawn
        # A line is cut at 4 KiB: a guest that never ends its line must not make every search longer.
        patterns = spawn.compile_pattern_list([rb"[^\n]{0,4096}\n|[^\n]{4096}", pexpect.EOF])
        while True:
            try:
                which = spawn.expect_list(patterns, timeout=None)
            except (OSError, ValueError, pexpect.ExceptionPexpect):
                which = 1
            data = spawn.after if which == 0 else spawn.before
            text = data.decode("latin-1") if isinstance(data, bytes) else ""
            with self._changed:
                if text:
                    if self._kept < KEEP_BYTES:
                        self.lines.append(text.rstrip("\r\n"))
                        self._kept += len(text)
                    else:
                        self.dropped += len(text)
                self._ended = which != 0
                self._changed.notify_all()
            if which != 0:
                return

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
        # shutdown wakes the pump out of its poll; close alone would leave it waiting.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(1.0)
        self._socket.close()
