"""The answers that are compared, as arrays: one code and one frame per probe.

A code >= 0 is a #PF error code; the others are named here. They agree with `harness.engine` where it has a
name for the same thing, so an engine's result is an answer as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.engine import GENERAL_PROTECTION, MMIO, RETRY
from harness.x86.bits import PAGE_SHIFT, error_code_text

Codes = npt.NDArray[np.int32]
Frames = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FRAME: Final = RETRY  # translated: the frame says where to
DEVICE: Final = MMIO  # translated, to an address that no guest RAM backs
GP: Final = GENERAL_PROTECTION
STUCK: Final = -16  # the engine keeps saying "retry", the shadow keeps faulting
ESCAPED: Final = -17  # the shadow leads to a table outside the pool
NOT_RUN: Final = -18
VECTOR_BASE: Final = -256  # an exception other than #PF and #GP: VECTOR_BASE - vector
NO_FRAME: Final = -1

_NAMES: Final = {
    GP: "#GP",
    STUCK: "faults again after every fill",
    ESCAPED: "leads to a table outside the pool",
    NOT_RUN: "not run",
}


@dataclass(slots=True)
class Answers:
    """One party's answers. codes: int32 (n,). frames: int64 (n,), gfn of the 4 KiB page or NO_FRAME."""

    codes: Codes
    frames: Frames

    @classmethod
    def empty(cls, count: int) -> Answers:
        return cls(np.full(count, NOT_RUN, np.int32), np.full(count, NO_FRAME, np.int64))

    def same(self, other: Answers) -> Mask:
        """Per probe: the same code and, where both translate to RAM, the same frame."""
        frames = (self.frames == other.frames) | (self.codes != FRAME)
        same: Mask = (self.codes == other.codes) & frames
        return same

    def text(self, at: int) -> str:
        return answer_text(int(self.codes[at]), int(self.frames[at]))


def answer_text(code: int, frame: int) -> str:
    """One answer as a report prints it."""
    if code >= 0:
        return f"#PF {error_code_text(code)}"
    if code == FRAME:
        return f"frame {frame:#x}" if frame >= 0 else "translated, frame not proven"
    if code == DEVICE:
        return f"no RAM, at {frame << PAGE_SHIFT:#x}" if frame >= 0 else "no RAM"
    if code <= VECTOR_BASE:
        return f"exception {VECTOR_BASE - code}"
    return _NAMES.get(code, f"the engine's result {code}")
