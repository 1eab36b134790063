"""The page faults of a guest that runs natively, from QEMU's own log of interrupts and exceptions (``-d int``).

Nothing stops the guest for it: QEMU writes a record to a file at each exception, here it is read from there. A record
is a line with vector, error code, RIP and CR2, and a dump of the registers behind it; QEMU (7.2) writes none while
CR0.PE is 0. What was read is given back to the file system at once, so a guest that faults for ever fills no disk as
long as somebody reads.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.machine.qemu import scratch_directory

FAULT: Final = np.dtype(
    [
        ("rip", "<u8"),
        ("cr2", "<u8"),
        ("code", "<u4"),
        ("cr0", "<u8"),
        ("cr3", "<u8"),
        ("cr4", "<u8"),
        ("efer", "<u8"),
    ]
)
"""One #PF: where, its CR2 and error code, and the control registers then (all 0 for a leg that does not tell them)."""

Faults = npt.NDArray[Any]
"""Of dtype FAULT, in the order in which the guest saw them."""

_PAGE_FAULT = re.compile(
    rb"v=0e e=([0-9a-f]+) i=0 cpl=[0-3] IP=[0-9a-f]+:([0-9a-f]+) pc=[0-9a-f]+ SP=[0-9a-f:]+ CR2=([0-9a-f]+)\n"
    rb"(?:(?!CR0=|EFER=).*\n)*?CR0=([0-9a-f]+) CR2=[0-9a-f]+ CR3=([0-9a-f]+) CR4=([0-9a-f]+)\n"
    rb"(?:(?!EFER=).*\n)*?EFER=([0-9a-f]+)\n"
)
_RECORD_END = b"\nEFER="  # begins the last line of each record
_PORTION: Final = 4 << 20  # bytes read and parsed at a time

_PUNCH_HOLE: Final = 1 | 2  # <linux/falloc.h>: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_LIBC: Final = ctypes.CDLL(None)
_FALLOCATE: Final = _LIBC.fallocate
_FALLOCATE.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def parse(text: bytes) -> Faults:
    """The page faults among the whole records in `text`."""
    rows = [
        (int(rip, 16), int(cr2, 16), int(code, 16), int(cr0, 16), int(cr3, 16), int(cr4, 16), int(efer, 16))
        for code, rip, cr2, cr0, cr3, cr4, efer in _PAGE_FAULT.findall(text)
    ]
    return np.array(rows, FAULT)


class ExceptionLog:
    """The log of one machine. A context manager.

    arguments: for `harness.machine.qemu.MachineSpec.extra`. Once QEMU is up, `opened` takes the file's name away, so
    that nothing is left whoever dies.
    """

    def __init__(self) -> None:
        self._folder = scratch_directory()
        path = self._folder / "exceptions"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.arguments = ("-d", "int", "-D", str(path))
        self._rest = b""
        self._at = 0

    def opened(self) -> None:
        """QEMU has the file open: its name goes."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def take(self) -> Faults:
        """The page faults since the last call. Complete while the guest stands: QEMU flushes each record."""
        parts = []
        while data := os.pread(self._descriptor, _PORTION, self._at):
            parts.append(self._parse(data))
            _FALLOCATE(self._descriptor, _PUNCH_HOLE, self._at, len(data))  # where it is refused, the file just grows
            self._at += len(data)
        return np.concatenate(parts) if parts else np.zeros(0, FAULT)

    def _parse(self, data: bytes) -> Faults:
        text = self._rest + data
        last = text.rfind(_RECORD_END)
        end = text.find(b"\n", last + 1) + 1 if last >= 0 else 0
        self._rest = text[end:]
        return parse(text[:end])

    def close(self) -> None:
        """May be called twice."""
        self.opened()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> ExceptionLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
