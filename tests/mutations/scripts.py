"""Mutations that no test guest reaches in observe mode, shown by a scripted sequence of engine calls."""

from __future__ import annotations

from typing import Final

import numpy as np

from harness.engine import Bytes
from harness.x86.access import Access
from harness.x86.bits import PTE_D, PTE_PS, PTE_RW
from harness.x86.control import ControlState
from harness.xi.engine import XiEngine
from tests.mutations.mutation import Mutation, caught
from tests.xi.broken import OldFrameKept
from tests.xi.domain import USED, Domain

VA: Final = 0x40000000


class LargeOverTable(XiEngine):
    """Sets PS in SPTEs that lead to level-1 tables, as one that merges full tables into large pages might."""

    def control(self, state: ControlState) -> None:
        super().control(state)
        self.watch_changes()  # while the tables can still be climbed
        for spti in self.sptis:
            if spti.role is not None and spti.level == 2:
                spti.spt[spti.spt != 0] |= np.uint64(PTE_PS)


class OldOwnerKept(XiEngine):
    """The m2p still names the gfn that the frame was before."""

    def xi_invld_mfn(self, gfn: int, mfn: int) -> None:
        old = self.p2m.to_mfn[gfn]
        super().xi_invld_mfn(gfn, mfn)
        self.p2m.to_gfn[old] = gfn


class ZeroedInName(XiEngine):
    """The idle loop moves SPTIs to the zeroed list and zeroes nothing."""

    def idle_zero(self, count: int) -> int:
        pool = self.pool_memory
        while pool.unclean:
            pool.clean.append(pool.unclean.popleft())
        return count


class LogOnlyOld(XiEngine):
    """What is mapped while the dirty log runs is writable at once."""

    def writable(self, gfn: int) -> bool:
        return not self.guarded[gfn]


class LogReadOneAlias(XiEngine):
    """Reading the dirty log protects one alias of each page again, not all."""

    def dirty_log_read(self) -> Bytes:
        out = super().dirty_log_read()
        for gfn in np.flatnonzero(out).tolist():
            for word in self.links.nodes(self.links.slot(1, gfn))[1:]:
                if self.q[word] & PTE_D and not self.guarded[gfn]:
                    self.q[word] |= PTE_RW
        return out


def mapped(engine: type[XiEngine]) -> Domain:
    """Two pages of one table."""
    domain = Domain("long4", engine=engine)
    domain.map(VA, 300)
    domain.map(VA + 0x9000, 300)
    domain.start()
    return domain


def moved(engine: type[XiEngine]) -> Domain:
    """A page whose machine frame changes."""
    domain = mapped(engine)
    domain.engine.xi_invld_mfn(300, 1500)
    return domain


def recycled(engine: type[XiEngine]) -> Domain:
    """A space that is gone, and an idle loop that had time."""
    domain = mapped(engine)
    first = domain.engine.root_spti
    assert first is not None
    domain.switch(domain.new_root())
    domain.engine.destroy_tree(first)
    domain.engine.idle_zero(16)
    return domain


def logged(engine: type[XiEngine]) -> Domain:
    """Dirty logging, a store, and a page mapped meanwhile."""
    domain = mapped(engine)
    domain.engine.dirty_log_start()
    domain.check(VA, Access.STORE)
    domain.map(VA + 0x5000, 301, USED)
    domain.flush()
    return domain


def log_read(engine: type[XiEngine]) -> Domain:
    """Dirty logging, a store to a page with two aliases, and a read of the log."""
    domain = mapped(engine)
    domain.engine.dirty_log_start()
    domain.check(VA, Access.STORE)
    domain.check(VA + 0x9000, Access.STORE)
    domain.engine.dirty_log_read()
    return domain


SCRIPTS: Final = (
    Mutation(
        "large-over-table",
        "a large SPTE where the guest has a table",
        caught("audit:F3"),
        engine=LargeOverTable,
        script=mapped,
    ),
    Mutation(
        "old-owner-kept", "the m2p keeps a frame's old owner", caught("audit:P1"), engine=OldOwnerKept, script=moved
    ),
    Mutation(
        "old-frame-kept",
        "SPTEs keep the machine frame that a page has left",
        caught("audit:P2", "audit:X3"),
        engine=OldFrameKept,
        script=moved,
    ),
    Mutation(
        "zeroed-in-name",
        "the idle loop calls zeroed what is not",
        caught("audit:zeroed-is-zero"),
        engine=ZeroedInName,
        script=recycled,
    ),
    Mutation(
        "log-only-old",
        "a page mapped while the dirty log runs is writable unlogged",
        caught("audit:dirty-log"),
        engine=LogOnlyOld,
        script=logged,
    ),
    Mutation(
        "log-read-one-alias",
        "a read of the dirty log leaves an alias writable",
        caught("audit:dirty-log"),
        engine=LogReadOneAlias,
        script=log_read,
    ),
)
