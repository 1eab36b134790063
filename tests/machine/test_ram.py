"""RAM as a shared file: views, bounds, and a file system that is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from harness.machine.errors import MachineError
from harness.machine.ram import RamMap


def test_both_ends_see_the_same_bytes(tmp_path: Path) -> None:
    ram = RamMap(tmp_path / "ram", 1 << 20)
    ram.reserve()
    ram.write(0x1000, b"\x78\x56\x34\x12")
    assert int(ram.view(0x1000, np.dtype("<u4"))) == 0x12345678
    assert (tmp_path / "ram").read_bytes()[0x1000:0x1004] == b"\x78\x56\x34\x12"


@pytest.mark.parametrize("address", [-1, (1 << 20) - 3, 1 << 20])
def test_outside_is_refused(address: int, tmp_path: Path) -> None:
    ram = RamMap(tmp_path / "ram", 1 << 20)
    ram.release()
    with pytest.raises(MachineError):
        ram.write(address, b"1234")
    with pytest.raises(MachineError):
        ram.view(address, np.dtype("<u4"))


def test_no_room_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ram = RamMap(tmp_path / "ram", 1 << 20)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MachineError, match="no room for 1 MiB of guest RAM"):
        ram.reserve()
