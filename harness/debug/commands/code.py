"""`code`: the guest's instructions, read through its own tables, and which of them the harness intercepts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from harness.debug.commands.arguments import Misused, address, number, split
from harness.debug.commands.command import Command
from harness.debug.commands.text import cut
from harness.debug.commands.views import guest_path, mfn_of
from harness.debug.scene import CommandError, Scene
from harness.intercept.observe import linear_rip
from harness.x86.bits import CR0_PE, PAGE_SIZE
from harness.x86.decode import decode
from harness.x86.operands import MAX_INSTRUCTION, disassembler
from harness.x86.walk import MAPPED

LINES: Final = 10
MOST: Final = 500
_WIDTHS: Final = {"16": 16, "32": 32, "64": 64}
_KINDS: Final = {
    "cr3": "CR3 load",
    "cr0": "control",
    "cr4": "control",
    "lmsw": "control",
    "wrmsr": "EFER if ECX says so",
}
_NEAR: Final = 1 << 16
"""Up to so far behind a symbol an address is told by it."""


def _code(scene: Scene, arguments: Sequence[str]) -> str:
    words = split(arguments, ("bits",), most=2)
    here = _standing(scene)
    va = address(scene, words.plain[0] if words.plain else "$rip")
    if not words.plain and here is not None:
        va = here
    count = number(words.plain[1], 1, MOST) if len(words.plain) == 2 else LINES
    width = _width(scene, words.named.get("bits"))
    near = _Symbols(scene)
    lines = [f"{width}-bit code{near.heading(va)}"]
    for _ in range(count):
        data = _bytes(scene, va)
        if not data:
            if len(lines) == 1:
                raise CommandError(f"no memory at {va:#x} to read: `walk {va:#x}` shows why")
            lines.append(f"   {va:#x}  no memory to read")
            break
        size, text = _disassembled(data, va, width)
        if len(lines) > 1:
            lines += near.labels(va)
        lines.append(cut(f"{'=>' if va == here else '  '} {va:#x}  {data[:size].hex(' '):<32}  {text}"))
        va = va + size & (1 << 64) - 1
    return "\n".join(lines)


def _standing(scene: Scene) -> int | None:
    """The linear address of the instruction at which the guest stands; None where there are no registers."""
    return linear_rip(scene.registers) if "rip" in scene.registers else None


def _width(scene: Scene, asked: str | None) -> int:
    """What was asked for, else by the mode. In a long mode it is taken to be 64-bit: a stub does not tell CS.L."""
    if asked is not None:
        if asked not in _WIDTHS:
            raise Misused(f"bits= is one of {', '.join(_WIDTHS)}")
        return _WIDTHS[asked]
    return 64 if scene.state.mode.canonical else 32 if scene.state.cr0 & CR0_PE else 16


def _bytes(scene: Scene, va: int) -> bytes:
    """Up to MAX_INSTRUCTION bytes at `va`, rights aside; fewer where the mapping or the memory ends."""
    data = b""
    while len(data) < MAX_INSTRUCTION:
        at = va + len(data) & (1 << 64) - 1
        path = guest_path(scene, at)
        if path.outcome != MAPPED or mfn_of(scene, path.gfn) < 0:
            break
        room = min(PAGE_SIZE - (at & (PAGE_SIZE - 1)), MAX_INSTRUCTION - len(data))
        data += scene.ram[path.gpa : path.gpa + room].tobytes()
    return data


def _disassembled(data: bytes, va: int, width: int) -> tuple[int, str]:
    """Length and text of the instruction; an undefined one counts as one byte."""
    instruction = next(disassembler(width).disasm(data, va, count=1), None)
    if instruction is None:
        return 1, "(bad)"
    text = f"{instruction.mnemonic} {instruction.op_str}".rstrip()
    event = decode(data, width)
    return instruction.size, text if event is None else f"{text}  ; intercepted: {_KINDS.get(event.kind, event.kind)}"


class _Symbols:
    """The guest's symbols by address."""

    def __init__(self, scene: Scene) -> None:
        self._sorted = sorted((va, name) for name, va in scene.symbols.items())

    def heading(self, va: int) -> str:
        """`` at <name+0x10>``, by the nearest symbol before; nothing where none is near."""
        at = bisect_right(self._sorted, (va, "\U0010ffff")) - 1
        if at < 0 or va - self._sorted[at][0] >= _NEAR:
            return ""
        start, name = self._sorted[at]
        return f" at <{name}{f'+{va - start:#x}' if va > start else ''}>"

    def labels(self, va: int) -> list[str]:
        """A line for each symbol that begins at `va`."""
        at = bisect_right(self._sorted, (va, ""))
        lines = []
        while at < len(self._sorted) and self._sorted[at][0] == va:
            lines.append(f"<{self._sorted[at][1]}>:")
            at += 1
        return lines


_HELP: Final = """\
From VA on, else from where the guest stands (=>), N instructions (10). Read through the guest's tables, rights aside,
in the width of the mode; bits=16, 32 or 64 asks for another (compatibility mode looks like a long mode here).
; intercepted: the harness takes part in it, since it changes how addresses are translated."""

COMMANDS: Final = (
    Command("code", "[VA] [N] [bits=16|32|64]", "the guest's instructions, what is intercepted marked", _HELP, _code),
)
