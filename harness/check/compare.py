"""Three answers side by side: which probes disagree, in what, and which named exception lets one pass."""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np

from harness.check.exceptions import PDPTE_REREAD, STALE_ALLOWED, explain_code
from harness.check.probes import ProbeSet
from harness.check.verdict import DEVICE, FRAME, NOT_RUN, Answers, Mask
from harness.engine import Words
from harness.x86.access import Access
from harness.x86.control import ControlState

_TRANSLATED: Final = (FRAME, DEVICE)


def silicon_codes(
    hardware: Answers, predictions: list[Answers], probes: ProbeSet, control: ControlState, exceptions: Counter[str]
) -> Answers:
    """`hardware` with the #PF codes as silicon would give them, where a named exception explains a prediction."""
    codes = hardware.codes.copy()
    differ = codes >= 0
    for prediction in predictions:
        differ &= codes != prediction.codes
    memo: dict[tuple[int, int, int], tuple[str, ...] | None] = {}
    for at in np.flatnonzero(differ).tolist():
        for prediction in predictions:
            predicted = int(prediction.codes[at])
            if predicted < 0:
                continue
            key = (predicted, int(codes[at]), int(probes.access[at]))
            if key not in memo:
                memo[key] = explain_code(predicted, key[1], Access(key[2]), control)
            names = memo[key]
            if names:
                exceptions.update(names)
                codes[at] = predicted
                break
    return Answers(codes, hardware.frames)


def disagreements(
    probes: ProbeSet, shadow: Answers, hardware: Answers | None, reread: Mask, exceptions: Counter[str]
) -> Mask:
    """Per probe, whether the answers contradict each other. `hardware` None: nothing was run.

    Where the guest walk by the old tables differs (`probes.old`, stale checkpoints), each of shadow and hardware may
    agree with the old or with the new one, or with the other of the two. reread: the probes whose PAE PDPTE changed.
    """
    guest, old = probes.guest, probes.old
    shadow_new = shadow.same(guest)
    hardware_new = shadow_new if hardware is None else hardware.same(guest)
    plain = shadow_new & hardware_new
    if old is None:
        return ~plain
    shadow_right = shadow_new | shadow.same(old)
    hardware_right = np.ones(len(plain), np.bool_) if hardware is None else hardware_new | hardware.same(old)
    right = shadow_right & hardware_right
    if hardware is not None:
        right |= shadow.same(hardware) & (hardware.codes != NOT_RUN)
    allowed = right & ~plain
    exceptions[PDPTE_REREAD.name] += int((allowed & reread).sum())
    exceptions[STALE_ALLOWED.name] += int((allowed & ~reread).sum())
    return ~right


def wrong_cr2(probes: ProbeSet, hardware: Answers, cr2: Words, control: ControlState) -> Mask:
    """Probes that faulted with another address in CR2 than the one accessed."""
    mask = np.uint64(0xFFFF_FFFF_FFFF_FFFF if control.mode.canonical else 0xFFFF_FFFF)
    wrong: Mask = (hardware.codes >= 0) & ((cr2 ^ probes.va) & mask != 0)
    return wrong


def field_of(at: int, answers: list[Answers]) -> str:
    """What differs in probe `at`: ``verdict`` (translated or not, or the vector), ``code`` or ``frame``."""
    codes = {int(answer.codes[at]) for answer in answers}
    kinds = {FRAME if code in _TRANSLATED else 0 if code >= 0 else code for code in codes}
    if len(kinds) > 1:
        return "verdict"
    return "code" if len(codes) > 1 and kinds == {0} else "frame"
