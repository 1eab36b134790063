"""`probe` and `flush`: what the hardware says, and making it forget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from harness.debug.commands.arguments import access, address, split
from harness.debug.commands.command import Command
from harness.debug.commands.text import MARK
from harness.debug.commands.views import guest_path, layout
from harness.debug.scene import CommandError, Hardware, Scene
from harness.x86.walk import judge

_NONE: Final = "there is no hardware here: this is a replay. `walk` tells what guest's tables and shadow say"


def _hardware(scene: Scene) -> Hardware:
    if scene.hardware is None:
        raise CommandError(_NONE)
    return scene.hardware


def _probe(scene: Scene, arguments: Sequence[str]) -> str:
    hardware = _hardware(scene)
    words = split(arguments, least=1, most=3)
    va = address(scene, words.plain[0])
    wanted = access(words.plain[1:])
    path = guest_path(scene, va)
    guest = judge(path, wanted, scene.state)
    ram = guest.gpa is None or layout(scene).is_ram(path.gfn)
    expected = guest.text if ram else f"no RAM, at {path.gpa:#x}"
    seen = hardware.probe(va, wanted)
    mark = "" if not ram or seen.startswith(expected) else f"  {MARK}"
    lines = [
        f"{wanted.text} at {va:#x}",
        f"  by the guest's tables  {expected}",
        f"  by the hardware        {seen}{mark}",
    ]
    return "\n".join(lines)


def _flush(scene: Scene, arguments: Sequence[str]) -> str:
    words = split(arguments, most=1)
    return _hardware(scene).flush(address(scene, words.plain[0]) if words.plain else None)


_PROBE_HELP: Final = f"""\
Has the processor make the access, ring 0 (s, the default) or ring 3 (u), and tells what came of it. Which frame it
reached is proven: for the moment of the probe a tag stands there. What the access leaves behind stays: A and D bits,
and in live mode the SPTEs that its faults filled in. {MARK} stands where the guest's tables say otherwise; while the
guest has changed them and not flushed that is no error."""

_FLUSH_HELP: Final = """\
Without VA: what a load of CR3 with the value that it has would do, in the engine and in the processor's TLB. With VA:
what INVLPG of it would do. If shadow and guest's tables still disagree afterwards, it was no stale entry."""

COMMANDS: Final = (
    Command("probe", "VA [r|w|x] [u|s]", "have the hardware make an access, see what comes of it", _PROBE_HELP, _probe),
    Command("flush", "[VA]", "flush as the guest would: CR3 loaded again, or INVLPG of VA", _FLUSH_HELP, _flush),
)
