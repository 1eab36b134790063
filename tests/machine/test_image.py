"""Reading guest images, and refusing what is none."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from harness.machine.errors import BadImage
from harness.machine.image import load_image


def test_a_file_that_is_no_elf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(b"this is not a kernel")
    with pytest.raises(BadImage, match=r"kernel: not an ELF image"):
        load_image(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="No such file"):
        load_image(tmp_path / "nothing")


def test_another_machine_s_elf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "arm"
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    path.write_bytes(ident + struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, 0, 0, 0, 0, 64, 56, 0, 64, 0, 0))
    with pytest.raises(BadImage, match="EM_AARCH64, not for x86"):
        load_image(path)
