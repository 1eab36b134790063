"""`gpa`: one address translated, in a form that gdb's convenience functions can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from harness.debug.commands.arguments import address, split
from harness.debug.commands.command import Command
from harness.debug.commands.views import guest_path, mfn_of
from harness.debug.scene import CommandError, Scene
from harness.x86.walk import MAPPED


def _gpa(scene: Scene, arguments: Sequence[str]) -> str:
    va = address(scene, split(arguments, least=1, most=1).plain[0])
    path = guest_path(scene, va)
    if path.outcome != MAPPED:
        raise CommandError(f"{va:#x} is not mapped ({path.outcome}): `walk {va:#x}` shows where the walk ends")
    mfn = mfn_of(scene, path.gfn)
    machine = f"mfn={mfn:#x}" if mfn >= 0 else "no machine frame"
    return f"va={va:#x} gpa={path.gpa:#x} gfn={path.gfn:#x} {machine} page={path.page_size:#x}"


_HELP: Final = """\
Where the guest's own tables lead for VA, rights aside: guest-physical address and frame, the machine frame behind it,
and the size of the guest's page in bytes. In gdb $xi_gpa(VA) and $xi_mfn(VA) are these numbers, -1 for none."""

COMMANDS: Final = (Command("gpa", "VA", "an address translated by the guest's tables, on one line", _HELP, _gpa),)
