"""The real gdb, at its prompt."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pexpect

PROMPT: Final = "(gdb) "
QUIET: Final = ("set pagination off", "set confirm off", "set width 0", "set style enabled off")


class Gdb:
    """One gdb process. Whatever it prints is plain text; every wait ends."""

    def __init__(self, *arguments: str, seconds: float = 20.0) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "DEBUGINFOD_URLS"} | {
            "TERM": "dumb"
        }
        options = [part for command in QUIET for part in ("-iex", command)]
        self.child = pexpect.spawn(
            "gdb", ["-nx", "-q", *options, *arguments], env=environment, timeout=seconds, encoding="utf-8"
        )
        self.child.delaybeforesend = None  # there is no password prompt to wait for
        self.child.setecho(False)
        self.child.expect_exact(PROMPT)

    def do(self, command: str) -> str:
        """What gdb prints for `command`, up to its prompt."""
        self.child.sendline(command)
        return self.rest()

    def rest(self) -> str:
        """What it prints up to its prompt."""
        self.child.expect_exact(PROMPT)
        return str(self.child.before).replace("\r\n", "\n")

    def start(self, command: str, until: str) -> None:
        """Gives `command`, which does not come back, and waits for `until`."""
        self.child.sendline(command)
        self.child.expect_exact(until)

    def interrupt(self) -> str:
        """Ctrl-C; what gdb prints."""
        self.child.sendintr()
        return self.rest()

    def kill(self) -> None:
        """Ends it by force if it has not ended by itself (`close` would try four signals, with pauses)."""
        if self.child.isalive():
            self.child.kill(signal.SIGKILL)
            self.child.wait()
        self.child.ptyproc.delayafterclose = 0.0
        self.child.close()


@contextmanager
def gdb(image: Path) -> Iterator[Gdb]:
    """A gdb that has loaded `image`; in the end it is killed."""
    one = Gdb(str(image))
    try:
        yield one
    finally:
        one.kill()
