"""`xi-harness debug` in a process of its own, and the gdb that its command starts."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Final, Self

import pexpect

from tests.debug.gdb import Gdb

SECONDS: Final = 60.0
INVITATION: Final = r"paste into another terminal:\s+(gdb [^\r\n]+)"


class Debugging:
    """One debugging session. directory: where gdb and the harness meet. said: all that the harness has printed."""

    def __init__(self, *arguments: str) -> None:
        self.harness = pexpect.spawn(
            sys.executable,
            ["-m", "harness", "debug", *arguments],
            timeout=SECONDS,
            encoding="utf-8",
            dimensions=(50, 200),
            env=dict(os.environ, TERM="dumb"),
        )
        self._gdbs: list[Gdb] = []
        self._machines: list[str] = []  # command lines of its QEMUs, each with a directory of its own in it
        self.harness.expect(INVITATION)
        self.invitation = str(self.harness.before)
        self.command = shlex.split(str(self.harness.match[1]))
        self.directory = Path(self.command[-1]).parent

    def gdb(self) -> Gdb:
        """A gdb started with the command that was printed; it stands where the guest does."""
        gdb = Gdb(*self.command[1:], seconds=SECONDS)
        self._gdbs.append(gdb)
        return gdb

    def end(self) -> str:
        """Waits for the harness to end by itself; what it has printed since the invitation."""
        self.harness.expect(pexpect.EOF)
        text = str(self.harness.before)
        self.harness.close()
        return text

    @property
    def status(self) -> int | None:
        """The harness's exit status, once it has ended."""
        status: int | None = self.harness.exitstatus
        return status

    @property
    def qemu(self) -> int:
        """The process of its QEMU."""
        (found,) = [pid for pid in children(self.harness.pid) if "qemu" in command_of(pid)]
        self._machines.append(command_of(found))
        return found

    def left_behind(self, seconds: float = 10.0) -> list[str]:
        """What is still there of the session, some time after it ended: processes but for gdb's, its directory."""
        end = time.monotonic() + seconds
        own = {gdb.child.pid for gdb in self._gdbs}
        mine = (str(self.directory), *self._machines)
        while True:
            commands = [command_of(pid) for pid in processes() if pid not in own]
            left = [text for text in commands if any(name in text for name in mine)]
            if self.directory.exists():
                left.append(str(self.directory))
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for gdb in self._gdbs:
            gdb.kill()
        with contextlib.suppress(ProcessLookupError):
            if self.harness.isalive():
                os.kill(self.harness.pid, signal.SIGTERM)
                with contextlib.suppress(pexpect.TIMEOUT):
                    self.harness.expect(pexpect.EOF, timeout=15)
        self.harness.close(force=True)


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    found = []
    for other in processes():
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{other}/stat").read_text(encoding="utf-8", errors="replace")
            if re.match(rf"\d+ \(.*\) . {pid} ", stat):
                found.append(other)
    return found
