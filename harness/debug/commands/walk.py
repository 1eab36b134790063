"""`walk`: one address by the guest's tables, by the shadow and by the hardware, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from harness.check.render import side_by_side
from harness.check.shadow_walk import describe_shadow, shadow_walk
from harness.check.verdict import DEVICE, FRAME, GP, NO_FRAME, NOT_RUN, Answers, answer_text
from harness.debug.commands.arguments import address, split
from harness.debug.commands.command import Command
from harness.debug.commands.text import MARK, columns, cut
from harness.debug.commands.views import gfns_of, guest_path, layout, mfn_of, shadow
from harness.debug.scene import CommandError, Hardware, Scene
from harness.x86.access import ALL_ACCESSES
from harness.x86.bits import PTE_A, PTE_D, PTE_P
from harness.x86.walk import ABSENT, MAPPED, NON_CANONICAL, RESERVED, Path, describe, entry_text, fault_codes

_FAULTS: Final = "faults: to the engine"
_NOT_ASKED: Final = "-"


def _walk(scene: Scene, arguments: Sequence[str]) -> str:
    va = address(scene, split(arguments, least=1, most=1).plain[0])
    path = guest_path(scene, va)
    engine_rows, failure = _engine_rows(scene, va)
    guest, shade = _guest_rows(scene, path), _shadow_rows(scene, va, engine_rows)
    lines = [f"{va:#x}  {scene.guest}  cr3 {scene.state.cr3:#x}  {_mode(scene)}"]
    if path.outcome == NON_CANONICAL:
        return f"{lines[0]}\n  not canonical, or beyond 4 GiB: #GP, and nothing is walked"
    lines += map(cut, side_by_side(guest, shade))
    lines += [failure] if failure else []
    lines += ["", *_stale(guest, engine_rows), *_answers(scene, path, va, engine_rows), *_debug_walk(scene, path)]
    return "\n".join(line.rstrip() for line in lines)


def _mode(scene: Scene) -> str:
    guest, hardware = scene.state.mode.name, scene.engine.root.mode.name
    return guest if guest == hardware else f"{guest}, shadowed as {hardware}"


def _engine_rows(scene: Scene, va: int) -> tuple[dict[int, dict[str, Any]], str]:
    """The engine's own account of its walk, by level; and what kept it from giving one."""
    try:
        return {int(row["level"]): row for row in scene.engine.describe_walk(va)}, ""
    except Exception as error:  # it follows SPTEs, and those may be what is broken
        return {}, cut(f"  {MARK} the engine cannot follow its own walk: {type(error).__name__}: {error}")


def _guest_rows(scene: Scene, path: Path) -> list[dict[str, Any]]:
    rows = describe(path)
    for row, step in zip(rows, path.steps, strict=True):
        if step.backed and mfn_of(scene, step.table) < 0:
            row["note"] = "no machine frame"
        if step.large and not row["note"]:
            row["note"] = "large page"
    return rows


def _shadow_rows(scene: Scene, va: int, engine_rows: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    view = shadow(scene)
    rows = describe_shadow(view, va)
    rows[-1]["gfn"] = int(gfns_of(scene, np.asarray([rows[-1]["mfn"]], np.int64))[0])
    for row in rows:
        own = engine_rows.get(row["level"], {})
        notes = [f"SPTI {own['spti']}, {own['state']}"] if {"spti", "state"} <= own.keys() else []
        if row["entry"] and not row["entry"] & PTE_P:
            notes.append("armed")
        elif row["note"]:
            notes.append("empty" if row["note"] == ABSENT else row["note"])
        row["note"] = ", ".join(notes)
    return rows


def _stale(guest: Sequence[dict[str, Any]], engine_rows: dict[int, dict[str, Any]]) -> list[str]:
    """What the guest's entries were when the shadow last took them over, where they have changed since."""
    lines = []
    for row in guest:
        before = engine_rows.get(row["level"], {}).get("snapshot")
        if before is not None and (before ^ row["entry"]) & ~(PTE_A | PTE_D):
            lines.append(f"  L{row['level']} when it was last synchronised: {before:#018x}  {entry_text(before)}")
    return [*lines, ""] if lines else []


def _answers(scene: Scene, path: Path, va: int, engine_rows: dict[int, dict[str, Any]]) -> list[str]:
    """A line for each access: what the guest's tables, the shadow and the hardware say, disagreements marked."""
    guest, shade = guest_answers(scene, path), shadow_answers(scene, va)
    seen, excuse = _hardware(scene.hardware, va)
    rows = []
    differs = False
    for at, access in enumerate(ALL_ACCESSES):
        marks = []
        if shade.codes[at] < 0 and shade.codes[at] != GP and not _same(guest, shade, at):
            marks.append("shadow")
        if seen is not None and seen.codes[at] != NOT_RUN:
            other = guest if scene.hardware is not None and scene.hardware.walks == "guest" else shade
            if not _same(other, seen, at):
                marks.append("hardware")
        differs = differs or "shadow" in marks
        faults = shade.codes[at] >= 0
        told = _NOT_ASKED if seen is None or seen.codes[at] == NOT_RUN else _text(seen, at, va)
        mark = f"{MARK} {', '.join(marks)}" if marks else ""
        rows.append((access.text, _text(guest, at, va), _FAULTS if faults else _text(shade, at, va), told, mark))
    lines = columns(("access", "guest", "shadow", "hardware", ""), rows)
    if differs and any(row.get("state") == "out of sync" for row in engine_rows.values()):
        lines.append("  a table of the shadow is out of sync: as a TLB, it may differ until the guest flushes")
    return lines + ([f"  hardware: {line}" for line in excuse.split("\n")] if excuse else [])


def guest_answers(scene: Scene, path: Path) -> Answers:
    """What each of ALL_ACCESSES gets by the guest's tables."""
    codes = [GP if code is None else code for code in fault_codes(path.outcome, path.rights, scene.state)]
    ram = layout(scene).is_ram(path.gfn)
    told = np.asarray([DEVICE if code == FRAME and not ram else code for code in codes], np.int32)
    return Answers(told, np.where(told < 0, path.gfn, NO_FRAME).astype(np.int64))


def shadow_answers(scene: Scene, va: int) -> Answers:
    """What each of ALL_ACCESSES gets by the shadow as it stands, frames as gfns (NO_FRAME for the host's)."""
    count = len(ALL_ACCESSES)
    answers = shadow_walk(shadow(scene), np.full(count, va, np.uint64), np.asarray(ALL_ACCESSES, np.uint8))
    answers.frames = gfns_of(scene, answers.frames)
    return answers


def _hardware(hardware: Hardware | None, va: int) -> tuple[Answers | None, str]:
    """Its answers, if it can be asked; else why not."""
    if hardware is None:
        return None, "none here, this is a replay"
    try:
        return hardware.look(va), ""
    except CommandError as error:
        return None, str(error)


def _same(one: Answers, other: Answers, at: int) -> bool:
    """Whether two parties agree on where an access goes. Codes are not compared: a fault on the shadow tells the engine
    something, not the guest."""
    if one.codes[at] == FRAME and other.codes[at] == FRAME:
        return bool(one.frames[at] == other.frames[at] and one.frames[at] != NO_FRAME)
    return bool(
        (one.codes[at] >= 0) == (other.codes[at] >= 0) and (one.codes[at] == FRAME) == (other.codes[at] == FRAME)
    )


def _text(answers: Answers, at: int, va: int) -> str:
    code, frame = int(answers.codes[at]), int(answers.frames[at])
    if code != FRAME:
        return answer_text(code, frame)
    return f"gfn {frame:#x} + {va & 0xFFF:#x}" if frame >= 0 else "no frame of the guest's"


def _debug_walk(scene: Scene, path: Path) -> list[str]:
    """QEMU's debug walker beside the guest's tables, where there is one."""
    if scene.hardware is None:
        return []
    try:
        seen = scene.hardware.translate(path.va)
    except CommandError:
        return []
    told = "not mapped" if seen is None else f"at {seen:#x}"
    own = path.gpa if path.outcome == MAPPED else None
    wrong = seen != own and path.outcome != RESERVED  # it does not look at reserved bits (QEMU 7.2)
    return [f"  QEMU's debug walk: {told}{f'  {MARK} the guest: {_place(own)}' if wrong else ''}"]


def _place(gpa: int | None) -> str:
    return "not mapped" if gpa is None else f"at {gpa:#x}"


_HELP: Final = f"""\
Above, both walks level by level: table[index], the entry and its flags. Tables of the guest are gfns, those of the
shadow mfns. SPTI: which of the engine's tables it is. Carets stand under what the shadow's entry has otherwise, A, D
and G aside: rights that it lacks may come with a fault. armed: the SPTE is complete but for P, since the guest's A=0.
Below, what each access gets. A fault on the shadow goes to the engine, which fills the shadow or gives the guest its
fault. The hardware is asked about what changes nothing (in live mode about the shadow as it stands); `probe` asks it
about anything.
{MARK} stands where the shadow leads somewhere that the guest's tables do not, or the hardware disagrees with the tables
that it walks. While a table is out of sync the shadow may differ, as a TLB may, until the guest flushes.
No A or D bit is set, no SPTE made: looking changes nothing."""

COMMANDS: Final = (
    Command("walk", "VA", "guest's tables, shadow and hardware for one address, side by side", _HELP, _walk),
)
