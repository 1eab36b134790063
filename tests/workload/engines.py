"""The engines that workloads are tried on: those that are installed, and some that are broken in one way each."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from harness.engine import RETRY, Bytes
from harness.engines import engine_class
from harness.workload.workload import MakeEngine
from harness.x86.bits import PTE_RW
from harness.xi.engine import XiEngine

NAMES: Final = ("xi", "xen302", "kvm", "eager")
ENGINES: Final[dict[str, MakeEngine]] = {name: engine_class(name) for name in NAMES}


class Noted(XiEngine):
    """XI, with the calls that it gets: name and argument."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.calls: list[tuple[str, int]] = []
        super().__init__(*arguments, **options)

    def load_cr3(self, cr3: int) -> None:
        self.calls.append(("load_cr3", cr3))
        super().load_cr3(cr3)

    def invlpg(self, va: int) -> None:
        self.calls.append(("invlpg", va))
        super().invlpg(va)

    def shadow_fault(self, va: int, access: int) -> int:
        self.calls.append(("shadow_fault", va))
        return super().shadow_fault(va, access)

    def xi_invld_mfn(self, gfn: int, mfn: int) -> None:
        self.calls.append(("xi_invld_mfn", gfn))
        super().xi_invld_mfn(gfn, mfn)

    def idle(self) -> bool:
        self.calls.append(("idle", 0))
        return super().idle()

    def named(self, name: str) -> list[int]:
        """The arguments of the calls of `name`."""
        return [argument for called, argument in self.calls if called == name]


class NoFlush(XiEngine):
    """Takes a load of the CR3 that is loaded already for nothing."""

    def load_cr3(self, cr3: int) -> None:
        if cr3 != self.state.cr3:
            super().load_cr3(cr3)


class NoInvlpg(XiEngine):
    """Does nothing about INVLPG."""

    def invlpg(self, va: int) -> None:
        del va


class Unguarded(XiEngine):
    """Lets the guest write its tables unseen."""

    def protect_gfn(self, gfn: int) -> None:
        del gfn


class StaysPut(XiEngine):
    """Does not notice that a frame has moved."""

    def xi_invld_mfn(self, gfn: int, mfn: int) -> None:
        del gfn, mfn


class LosesTheLog(XiEngine):
    """Forgets every other frame that was stored to."""

    def dirty_log_read(self) -> Bytes:
        log = super().dirty_log_read()
        log[::2] = 0
        return log


class NeverFills(XiEngine):
    """Says that the access can be tried again, and has done nothing."""

    def shadow_fault(self, va: int, access: int) -> int:
        del va, access
        return RETRY


class Generous(XiEngine):
    """Makes every page writable that has faulted."""

    def shadow_fault(self, va: int, access: int) -> int:
        result = super().shadow_fault(va, access)
        base, words = self.pool
        if result == RETRY:
            last = self.describe_walk(va)[-1]
            words[last["mfn"] - base, last["index"]] |= np.uint64(PTE_RW)
        return result
