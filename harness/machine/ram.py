"""Guest RAM as one shared file mapping, viewed with numpy: the way to read tables without a socket."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.machine.errors import MachineError

Bytes = npt.NDArray[np.uint8]


class RamMap:
    """`size` bytes of RAM in a file that QEMU maps too (``memory-backend-file,share=on``).

    bytes: uint8, one per byte. Writing *code* through it leaves QEMU's translated blocks stale (7.2): use the
    gdbstub for that once the guest has run.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Creates the file. Raises MachineError when there is no room for it."""
        self.path, self.size = path, size
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # posix_fallocate takes the blocks now: a full /dev/shm is an error here, not a SIGBUS in QEMU later.
            os.posix_fallocate(descriptor, 0, size)
            self._map = mmap.mmap(descriptor, size)
        except OSError as error:
            raise MachineError(
                f"no room for {size >> 20} MiB of guest RAM in {path.parent}: {error.strerror}"
            ) from error
        finally:
            os.close(descriptor)
        self.bytes: Bytes = np.frombuffer(self._map, dtype=np.uint8)

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

    def unlink(self) -> None:
        """Removes the name; the mapping lives on in both processes, and nothing is left if they die."""
        self.path.unlink(missing_ok=True)
