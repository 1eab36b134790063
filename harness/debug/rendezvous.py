"""Where gdb and the harness meet: a private directory with the socket and the file that gdb starts with."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from harness.machine.qemu import scratch_directory

SOCKET: Final = "gdb.sock"
START: Final = "start.gdb"
HELPERS: Final = Path(__file__).with_name("xi_gdb.py")
_ENDING_SECONDS: Final = 5.0
# It waits until nobody holds the other end of its standard input, and takes the directory away.
_UNDERTAKER: Final = 'trap "" INT TERM HUP; read -r _; rm -rf -- "$1"'


class Rendezvous:
    """A directory of mode 0700 that is gone when the harness is, however it ends. A context manager.

    socket: where gdb is to connect. start: gdb's start-up file, once `write_start` was called.
    """

    def __init__(self) -> None:
        """Raises OSError if the directory cannot be made."""
        self.directory = scratch_directory()
        self.socket = self.directory / SOCKET
        self.start = self.directory / START
        # A harness that is killed runs no clean-up of its own: a shell outlives it for a moment.
        try:
            self._undertaker = subprocess.Popen(
                ["/bin/sh", "-c", _UNDERTAKER, "sh", str(self.directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def write_start(self, image: Path | None) -> None:
        """Writes gdb's start-up file. image: an ELF file, whose symbols and architecture gdb takes. Raises OSError."""
        lines = ["# Made by xi-harness for one debugging session."]
        lines.append("set confirm off")
        if image is not None:
            lines.append(f"file {_quoted(image)}")
        lines += [f"source {_quoted(HELPERS)}", "set remotetimeout 60"]  # a check of the harness takes its time
        lines += ["set stack-cache off", "set code-cache off"]  # the guest's tables may map either anew
        lines += [f"target remote {self.socket}", "monitor", ""]  # a bare `monitor` says why the guest stands
        self.start.write_text("\n".join(lines), encoding="utf-8")

    @property
    def command(self) -> list[str]:
        """The command that starts gdb on this session."""
        return ["gdb", "-q", "-x", str(self.start)]

    def close(self) -> None:
        """Takes the directory away. May be called twice."""
        with contextlib.suppress(OSError):
            assert self._undertaker.stdin is not None
            self._undertaker.stdin.close()
        try:
            self._undertaker.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._undertaker.kill()
            self._undertaker.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _quoted(path: Path) -> str:
    """`path` as gdb's `file` and `source` take it: they split at spaces unless those are escaped."""
    return str(path).replace("\\", "\\\\").replace(" ", "\\ ")
