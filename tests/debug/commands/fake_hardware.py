"""Hardware by script: what the guest's tables say, unless told otherwise."""

from __future__ import annotations

from harness.check.verdict import FRAME, Answers, answer_text
from harness.debug.commands.views import guest_path
from harness.debug.commands.walk import guest_answers
from harness.debug.scene import CommandError, Scene
from harness.x86.access import ALL_ACCESSES, Access


class FakeHardware:
    """`harness.debug.scene.Hardware` of observe mode beside `scene`.

    frame: where every completed access lands, None for the right place. debug_walk: what `translate` gives, None for
    the right one. refusal: why nothing can be probed.
    """

    walks = "guest"

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.frame: int | None = None
        self.debug_walk: int | None = None
        self.refusal = ""
        self.flushed: list[int | None] = []

    def look(self, va: int) -> Answers:
        if self.refusal:
            raise CommandError(self.refusal)
        answers = guest_answers(self.scene, guest_path(self.scene, va))
        if self.frame is not None:
            answers.frames[answers.frames >= 0] = self.frame
        return answers

    def probe(self, va: int, access: Access) -> str:
        if self.refusal:
            raise CommandError(self.refusal)
        seen = self.look(va)
        at = ALL_ACCESSES.index(access)
        text = answer_text(int(seen.codes[at]), int(seen.frames[at]))
        if seen.codes[at] == FRAME:
            return f"{text} + {va & 0xFFF:#x}"
        return f"{text} cr2={va:#x} (tried at {va:#x})" if seen.codes[at] >= 0 else text

    def translate(self, va: int) -> int | None:
        if self.debug_walk is not None:
            return self.debug_walk
        path = guest_path(self.scene, va)
        return path.gpa if path.gpa >= 0 else None

    def flush(self, va: int | None) -> str:
        self.flushed.append(va)
        return "CR3 loaded again" if va is None else f"INVLPG {va:#x}"
