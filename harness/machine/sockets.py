"""Connecting to the UNIX sockets that QEMU opens while it comes up."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from harness.machine.deadline import Deadline
from harness.machine.errors import MachineError

RETRY_SECONDS: Final = 0.002


def connect(path: Path, deadline: Deadline, ended: Callable[[], bool] = lambda: False) -> socket.socket:
    """A stream connected to `path`, as soon as somebody listens there.

    Raises DeadlineExceeded, or MachineError once `ended` says that nobody ever will.
    """
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
            return sock
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
        if ended():
            raise MachineError("it ended at once")
        deadline.check(f"socket {path.name}")
        time.sleep(RETRY_SECONDS)
