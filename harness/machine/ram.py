"""Guest RAM as one shared file mapping, viewed with numpy: the way to read tables without a socket."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.machine.errors import MachineError

Bytes = npt.NDArray[np.uint8]

POISON: Final = 0xCC
"""What fills machine frames that are nobody's: not present as an entry, no frame's tag, INT3 as code."""


class RamMap:
    """`size` bytes of RAM in a file that QEMU maps too (``memory-backend-file,share=on``).

    bytes: uint8, one per byte. Writing *code* through it leaves QEMU's translated blocks stale (7.2): use the
    gdbstub for that once the guest has run.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Creates the file. Raises MachineError when that is not possible; there may be no room for it yet."""
        self.path, self.size = path, size
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        try:
            os.ftruncate(self._descriptor, size)
            self._map = mmap.mmap(self._descriptor, size)
        except OSError as error:
            self.release()
            raise self._no_room(error) from error
        self.bytes: Bytes = np.frombuffer(self._map, dtype=np.uint8)

    def reserve(self) -> None:
        """Takes the room now: a full /dev/shm is an error here, not a SIGBUS later. Raises MachineError.

        To be called once, before anything is written. QEMU may open the file meanwhile: the two take their time.
        """
        try:
            os.posix_fallocate(self.descriptor, 0, self.size)
        except OSError as error:
            self.release()
            raise self._no_room(error) from error

    @property
    def descriptor(self) -> int:
        """The open file, for who maps parts of it elsewhere (`harness.machine.guest_view`); it needs no name any more.

        Raises MachineError once it is released.
        """
        if not self._close.alive:
            raise MachineError("the file behind RAM is closed")
        return self._descriptor

    def release(self) -> None:
        """Closes the descriptor; the mapping stays. May be called twice."""
        self._close()

    def _no_room(self, error: OSError) -> MachineError:
        return MachineError(f"no room for {self.size >> 20} MiB of guest RAM in {self.path.parent}: {error.strerror}")

    def view(self, address: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """A zero-dimensional live view of `dtype` at physical `address`."""
        end = address + dtype.itemsize
        if not 0 <= address < end <= self.size:
            raise MachineError(f"physical address {address:#x} (+{dtype.itemsize}) lies outside RAM ({self.size:#x})")
        return self.bytes[address:end].view(dtype).reshape(())

    def write(self, address: int, data: bytes) -> None:
        if not 0 <= address <= address + len(data) <= self.size:
            raise MachineError(f"{len(data)} bytes at {address:#x} do not fit into RAM of {self.size:#x} bytes")
        self._map[address : address + len(data)] = data
