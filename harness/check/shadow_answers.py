"""The shadow's answers: what the processor would get from the shadow tables with the engine behind them.

All probes are walked before any fault is handed to the engine, so that a stale entry is seen as it is and not as
another probe's fault has repaired it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from harness.check.shadow_walk import Accesses, ShadowView, shadow_walk
from harness.check.verdict import DEVICE, ESCAPED, FRAME, GP, STUCK, Answers, Frames
from harness.engine import AWAY, RETRY, ShadowEngine, Words
from harness.x86.bits import PAGE_SHIFT

FILL_ROUNDS: Final = 3
FILL_LIMIT: Final = 8
"""How often one access may fault and be retried. One fill is enough for an honest engine; more are needed where
another probe's fill took the table away again, or flipped the page between its two meanings under CR0.WP=0."""

ToGuest = Callable[[Frames], Frames]


def shadow_answers(
    engine: ShadowEngine, pkru: int, va: Words, access: Accesses, phys_bits: int, to_guest: ToGuest
) -> Answers:
    """Walks the shadow for every probe, lets the engine answer the faults, and gives the final answers.

    to_guest: mfns to gfns. Codes: FRAME, the #PF code that the engine injects, DEVICE, GP, STUCK or ESCAPED.
    """
    answers = _walk(engine, pkru, va, access, phys_bits)
    waiting = _faulting(answers, np.arange(len(va)))
    fault = engine.shadow_fault
    page = va >> np.uint64(PAGE_SHIFT)
    for _ in range(FILL_ROUNDS):
        if not len(waiting):
            break
        waiting = waiting[np.argsort(page[waiting], kind="stable")]  # one page's faults side by side
        results = engine.shadow_faults(va[waiting].tolist(), access[waiting].tolist())
        answers.codes[waiting] = results
        waiting = waiting[np.asarray(results) == RETRY]
        again = _walk(engine, pkru, va[waiting], access[waiting], phys_bits)
        answers.codes[waiting], answers.frames[waiting] = again.codes, again.frames
        waiting = _faulting(answers, waiting)
    for at in waiting.tolist():  # they disturb each other: one at a time
        one = np.asarray([at])
        for _ in range(FILL_LIMIT):
            result = fault(int(va[at]), int(access[at]))
            if result != RETRY:
                answers.codes[at] = result
                break
            again = _walk(engine, pkru, va[one], access[one], phys_bits)
            if again.codes[0] in (FRAME, GP, ESCAPED):
                answers.codes[at], answers.frames[at] = again.codes[0], again.frames[0]
                break
        else:
            answers.codes[at] = STUCK
    answers.codes[answers.codes == AWAY] = DEVICE  # a frame that was taken away is as little there as a device's
    translated = answers.codes == FRAME
    answers.frames[translated] = to_guest(answers.frames[translated])
    return answers


def shadow_view(engine: ShadowEngine, pkru: int, phys_bits: int) -> ShadowView:
    """The shadow as it stands now."""
    base, words = engine.pool
    return ShadowView(engine.root, base, words, pkru, phys_bits)


def _walk(engine: ShadowEngine, pkru: int, va: Words, access: Accesses, phys_bits: int) -> Answers:
    return shadow_walk(shadow_view(engine, pkru, phys_bits), va, access)


def _faulting(answers: Answers, among: Frames) -> Frames:
    """Those of the probes `among` that the processor would fault on: only #PFs reach the engine."""
    return among[answers.codes[among] >= 0]
