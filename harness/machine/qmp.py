"""QMP through the `qemu.qmp` package, made synchronous: one event loop, run only while a command waits."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, QMPError

from harness.machine.deadline import Deadline
from harness.machine.errors import DeadlineExceeded, MachineError

_GPA = re.compile(r"gpa:\s*(0x[0-9a-f]+)")


class Monitor:
    """A QMP connection. Raises MachineError for what the monitor refuses, DeadlineExceeded for its silence."""

    def __init__(self, path: Path, deadline: Deadline) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("xi-harness")
        try:
            self._run(self._connect(path, deadline), deadline.left)
        except (ConnectError, OSError) as error:
            self._loop.close()
            raise MachineError(f"QMP at {path}: {error}") from error

    async def _connect(self, path: Path, deadline: Deadline) -> None:
        while True:
            try:
                await self._client.connect(str(path))
                return
            except ConnectError:
                deadline.check(f"QMP at {path}")
                await asyncio.sleep(0.005)

    def _run(self, coroutine: Any, seconds: float) -> Any:
        try:
            return self._loop.run_until_complete(asyncio.wait_for(coroutine, max(0.01, seconds)))
        except TimeoutError as error:
            raise DeadlineExceeded(f"QMP: no answer within {seconds:.1f} s") from error

    def command(self, name: str, arguments: dict[str, object] | None = None, seconds: float = 10.0) -> Any:
        """Executes a QMP command and gives its return value."""
        try:
            return self._run(self._client.execute(name, arguments), seconds)
        except (ExecuteError, ExecInterruptedError, QMPError) as error:
            raise MachineError(f"QMP {name}: {error}") from error

    def human(self, line: str, seconds: float = 10.0) -> str:
        """The text that the human monitor prints for `line`."""
        return str(self.command("human-monitor-command", {"command-line": line}, seconds))

    def gva2gpa(self, addresses: Sequence[int], seconds: float = 10.0) -> list[int | None]:
        """QEMU's debug walk of each of `addresses` under the current CR3: the physical address, None when unmapped.

        All are asked at once: a monitor command costs most of its time in waiting for the next one.
        """

        async def ask() -> list[Any]:
            lines = ({"command-line": f"gva2gpa {va:#x}"} for va in addresses)
            return await asyncio.gather(*(self._client.execute("human-monitor-command", line) for line in lines))

        try:
            answers = self._run(ask(), seconds)
        except (ExecuteError, ExecInterruptedError, QMPError) as error:
            raise MachineError(f"QMP gva2gpa: {error}") from error
        matches = (_GPA.search(str(answer)) for answer in answers)
        return [int(match.group(1), 16) if match else None for match in matches]

    def close(self) -> None:
        try:
            self._run(self._client.disconnect(), 2.0)
        except (DeadlineExceeded, QMPError, EOFError, OSError):
            pass
        finally:
            self._loop.close()
