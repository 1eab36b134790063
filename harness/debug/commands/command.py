"""What a command of `monitor xi` is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.debug.scene import Scene


@dataclass(frozen=True, slots=True)
class Command:
    """name: its word. usage: its arguments (``VA``, ``[N]``). summary: one line for the list. help: what it shows and
    how to read it, some lines. run: (scene, arguments) -> text of several lines without colour, no trailing newline;
    it raises CommandError."""

    name: str
    usage: str
    summary: str
    help: str
    run: Callable[[Scene, Sequence[str]], str]
