"""Outputs held against the text files in `golden/`. With XI_GOLDEN=write in the environment they are written anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from harness.debug.commands.table import run_command
from harness.debug.commands.text import WIDTH
from harness.debug.scene import Scene

FOLDER: Final = Path(__file__).parent / "golden"


def check_golden(name: str, text: str) -> None:
    """Asserts that `text` is what `golden/<name>.txt` holds, and that it is fit for a terminal."""
    for line in text.split("\n"):
        assert len(line) <= WIDTH, f"{len(line)} columns: {line}"
        assert line == line.rstrip() and line.isprintable(), f"blanks or control characters: {line!r}"
    assert text and not text.endswith("\n")
    path = FOLDER / f"{name}.txt"
    if os.environ.get("XI_GOLDEN") == "write":
        path.write_text(f"{text}\n")
    assert path.is_file(), f"{path.name} is not there: XI_GOLDEN=write makes it"
    assert text == path.read_text().removesuffix("\n"), f"{path.name} holds something else"


def check_commands(name: str, scene: Scene, *lines: str) -> str:
    """`check_golden` of the outputs of the commands `lines`, one after the other as gdb would show them. The outputs,
    joined."""
    outputs = [run_command(scene, line) for line in lines]
    check_golden(name, "\n\n".join(f"> {line}\n{output}" for line, output in zip(lines, outputs, strict=True)))
    return "\n".join(outputs)
