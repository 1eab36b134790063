"""Engines with one fault each that more than one kind of test wants to see caught."""

from __future__ import annotations

import numpy as np

from harness.engine import Bytes
from harness.xi.engine import XiEngine
from harness.xi.guest_walk import Walk


class OldFrameKept(XiEngine):
    """A change of the p2m leaves the SPTEs as they are."""

    def xi_invld_mfn(self, gfn: int, mfn: int) -> None:
        self.p2m.assign(gfn, mfn)


class OwnStoresUnlogged(XiEngine):
    """The engine does not log that it sets A and D in the guest's tables."""

    def set_accessed(self, walk: Walk, store: bool) -> bool:
        logging, self.logging = self.logging, False
        try:
            return super().set_accessed(walk, store)
        finally:
            self.logging = logging


class OneRound(XiEngine):
    """What a read of the dirty log has named stays writable in the next round."""

    def dirty_log_read(self) -> Bytes:
        out = self.logged_array.copy()
        self.logged_array[:] = 0
        return out


class DropsOne(XiEngine):
    """The frame that the guest stores to first is never in the log."""

    _dropped = -1

    def dirty_log_read(self) -> Bytes:
        log = super().dirty_log_read()
        if self._dropped < 0 and log.any():
            self._dropped = int(np.flatnonzero(log)[-1])
        log[self._dropped] = 0
        return log
