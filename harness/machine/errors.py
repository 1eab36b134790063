"""What can go wrong with a machine, kept apart from what can go wrong with a check."""

from __future__ import annotations

from collections.abc import Sequence


class MachineError(Exception):
    """The machine could not be started, or was lost. Never a verdict about page tables."""


class MachineUnavailable(MachineError):
    """QEMU is not installed, or is too old for this project. The message says what to do."""


class MachineLost(MachineError):
    """QEMU ended, or stopped answering, when nobody asked it to.

    status: exit status (negative: the signal), None while it still ran. The message carries the command line
    and what QEMU wrote to stderr.
    """

    def __init__(self, what: str, command: Sequence[str], status: int | None, stderr: str) -> None:
        self.what, self.command, self.status, self.stderr = what, list(command), status, stderr
        ended = "still running" if status is None else f"exit status {status}"
        super().__init__(f"{what} ({ended})\n  command: {' '.join(command)}\n  stderr: {stderr.strip() or '(none)'}")


class StubClosed(MachineError):
    """The gdbstub's connection ended: QEMU is going away."""


class DeadlineExceeded(MachineError):
    """A wait reached its deadline."""


class BadImage(MachineError):
    """The file is not a guest that this harness can load. The message names the file and the reason."""
