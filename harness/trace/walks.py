"""The shadow of a replay held against the guest's own tables, each by its own walk: neither is the engine's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from harness.check.shadow_answers import shadow_view
from harness.check.shadow_walk import describe_shadow, shadow_walk
from harness.check.verdict import ESCAPED, FRAME, answer_text
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.bits import PAGE_SHIFT
from harness.x86.walk import ALLOWED, fault_codes, judge

if TYPE_CHECKING:
    from harness.trace.running import Running

_ACCESSES: Final = np.asarray(ALL_ACCESSES, np.uint8)


class Wider(NamedTuple):
    """An access for which the shadow has more than the guest's tables give: both answers as text."""

    va: int
    access: Access
    guest: str
    shadow: str


class Held(NamedTuple):
    """What came of holding the shadow against the guest's tables. compared: how many accesses the shadow lets through.
    pending: pages for which it has more, by an entry that the guest has changed and not flushed."""

    compared: int
    wider: list[Wider]
    pending: list[int]


def hold_against_guest(replay: Running, pages: Sequence[int]) -> Held:
    """Walks the shadow for every access to `pages` (page numbers of addresses) as the hardware would, and the guest's
    tables where it leads to a frame. It may have less than they give, since it is filled as it is used; never another
    frame, and never more rights."""
    if not pages:
        return Held(0, [], [])
    memory, state = replay.memory, replay.state
    va = np.asarray(pages, np.uint64) << np.uint64(PAGE_SHIFT)
    view = shadow_view(replay.engine, state.pkru, replay.phys_bits)
    columns = len(_ACCESSES)
    answers = shadow_walk(view, np.repeat(va, columns), np.tile(_ACCESSES, len(va)))
    codes = answers.codes.reshape(-1, columns)
    frames = answers.frames.reshape(-1, columns)
    leads = (codes == FRAME) | (codes == ESCAPED)
    found = Held(int(leads.sum()), [], [])
    for row in np.flatnonzero(leads.any(axis=1)).tolist():
        path = replay.path(int(va[row]))
        allowed = fault_codes(path.outcome, path.rights, state)
        mfn = memory.mfn(path.gfn)
        wrong = leads[row] & ((frames[row] != mfn) | (np.asarray(allowed) != ALLOWED) | (mfn < 0))
        if not wrong.any():
            continue
        if replay.pending.covers(path, memory, state.mode):
            found.pending.append(pages[row])
            continue
        for column in np.flatnonzero(wrong).tolist():
            access = ALL_ACCESSES[column]
            guest = judge(path, access, state).text
            if mfn >= 0 and allowed[column] == ALLOWED:
                guest += f", machine frame {mfn:#x}"
            code = int(codes[row, column])
            shadow = answer_text(code, int(frames[row, column]))
            found.wider.append(Wider(path.va, access, guest, f"machine {shadow}" if code == FRAME else shadow))
    return found


def shadow_rows(replay: Running, va: int) -> list[dict[str, Any]]:
    """The shadow's walk of `va` for `harness.check.render.side_by_side`; its last frame as the guest's is."""
    view = shadow_view(replay.engine, replay.state.pkru, replay.phys_bits)
    rows = describe_shadow(view, va)
    mfn, to_gfn = rows[-1]["mfn"], replay.memory.to_gfn
    rows[-1]["gfn"] = to_gfn[mfn] if 0 <= mfn < len(to_gfn) else -1
    return rows
