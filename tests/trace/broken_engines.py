"""Engines that are broken in one way each, for replays to notice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.engine import AuditFailure, Bytes
from harness.x86.bits import PF_U
from harness.xi.engine import XiEngine
from harness.xi.pool import Spti


class NoInvlpg(XiEngine):
    """Counts INVLPG and does nothing."""

    def invlpg(self, va: int) -> None:
        self.counters.invlpgs += 1


class OtherCode(XiEngine):
    """Tells every fault of the guest's as one from the other ring."""

    def shadow_fault(self, va: int, access: int) -> int:
        result = super().shadow_fault(va, access)
        return result ^ PF_U if result >= 0 else result


class WrongFrame(XiEngine):
    """Maps the page behind the one that the guest's entry says."""

    def fill_page(self, spti: Spti, index: int, entry: int, gfn: int) -> None:
        behind = gfn + 1 if self.p2m.backed(gfn + 1) else gfn - 1
        super().fill_page(spti, index, entry, behind)


class LosesTheLog(XiEngine):
    """Forgets every other frame that was stored to."""

    def dirty_log_read(self) -> Bytes:
        log = super().dirty_log_read()
        log[::2] = 0
        return log


class CriesOut(XiEngine):
    """Takes a table of the guest's for one that was written behind its back."""

    def unexplained_changes(self) -> list[int]:
        return sorted(self.gpts)[:1]


class SeesNoCode(XiEngine):
    """Does not tell of frames that have become executable."""

    def executable_changes(self) -> npt.NDArray[np.int64]:
        return super().executable_changes()[:0]


class FailsItsAudit(XiEngine):
    """Finds something in every audit."""

    def audit(self) -> list[AuditFailure]:
        return [AuditFailure("Z1", "it is always so"), *super().audit()]


class Gives(XiEngine):
    """Breaks down over INVLPG."""

    def invlpg(self, va: int) -> None:
        raise IndexError(f"no entry for {va:#x}")


class GivesAway(XiEngine):
    """Lets the root in use be taken away."""

    def xi_invld_mfn(self, gfn: int, mfn: int) -> None:
        if mfn >= 0 or gfn != self.state.root_gpa >> 12:
            super().xi_invld_mfn(gfn, mfn)
