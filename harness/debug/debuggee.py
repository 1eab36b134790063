"""What a debugger needs of the guest that stands, whichever way it is run."""

from __future__ import annotations

from typing import Protocol


class Refused(Exception):
    """The debugger asked for what cannot be done; the text says why, for the user."""


class Debuggee(Protocol):
    """A guest that stands. Registers and memory are those that the guest believes in, in live mode too.

    documents: the target description, annex name -> XML, ``target.xml`` the first; registers are laid out by it.
    """

    documents: dict[str, bytes]

    def read_registers(self) -> bytes:
        """All registers of the description in its order, little-endian: the reply to ``g``."""

    def write_register(self, number: int, value: bytes) -> None:
        """Sets register `number` of the description. The harness follows CR0, CR3, CR4 and EFER as if the guest had
        written them. Raises Refused."""

    def read_memory(self, va: int, count: int) -> bytes:
        """The `count` bytes at virtual address `va` by the guest's own tables, rights aside; fewer where the mapping
        ends. Raises Refused when not even the first can be read."""

    def write_memory(self, va: int, data: bytes) -> None:
        """Stores there: the harness follows what becomes of page tables and code as if the guest had stored it, and
        translated code is dropped. Raises Refused, with nothing written, if any of it is not mapped."""
