"""Instructions from the system's assembler, one at a time."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import pytest

SLOT: Final = 32
TOOLS: Final = ("as", "ld", "objcopy")
needs_assembler = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in TOOLS), reason="no binutils on this machine"
)


def assemble(lines: Sequence[str], bits: int) -> list[bytes]:
    """The encoding of each line of `lines` (AT&T syntax) in 16-, 32- or 64-bit code."""
    text = [f".code{bits}"]
    for index, line in enumerate(lines):
        # The length stands in the slot's last byte.
        text += [f".org {index * SLOT}", f"1: {line}", "2:", f".org {(index + 1) * SLOT - 1}", ".byte 2b - 1b"]
    image = build("\n".join(text) + "\n")
    slots = [image[at : at + SLOT] for at in range(0, len(image), SLOT)]
    return [slot[: slot[-1]] for slot in slots]


def build(source: str, address: int = 0) -> bytes:
    """The flat binary of assembler `source`, linked at `address`."""
    return _linked(source, address, ("objcopy", "-O", "binary", "-j", ".text", "a.elf", "a.out"))


@cache  # many tests run the same small guest
def link(source: str, address: int) -> bytes:
    """The ELF image of assembler `source` (code for the machine's entry: 32-bit), one segment at `address`."""
    return _linked(source, address, ("objcopy", "-O", "elf32-i386", "a.elf", "a.out"))


def _linked(source: str, address: int, last: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        (path / "a.s").write_text(source)
        commands = (
            ("as", "--64", "-o", "a.o", "a.s"),
            ("ld", "-n", "-m", "elf_x86_64", f"-Ttext={address:#x}", "-e", f"{address:#x}", "-o", "a.elf", "a.o"),
            last,
        )
        for command in commands:
            subprocess.run(command, cwd=path, check=True, capture_output=True, timeout=60)
        return (path / "a.out").read_bytes()
