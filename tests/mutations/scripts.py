"""Mutations that no test guest reaches in observe mode, shown by a scripted sequence of engine calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from harness.engine import Bytes
from harness.peers.engine import PeerEngine
from harness.x86.access import Access
from harness.x86.bits import PTE_D, PTE_PS, PTE_RW
from harness.x86.control import ControlState
from harness.xi.engine import XiEngine
from tests.mutations.mutation import Engine, Mutation, caught
from tests.peers.domain import PeerDomain
from tests.xi.broken import OldFrameKept
from tests.xi.domain import USED, Domain

VA: Final = 0x40000000


def domain_of(engine: Engine, policies: Mapping[str, str], mode: str = "long4", fill: str = "eager") -> Domain:
    """A domain of any engine."""
    if issubclass(engine, PeerEngine):
        return PeerDomain(engine, mode, fill, options=policies)
    return Domain(mode, fill, engine=engine, options=policies)


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


def mapped(engine: Engine, policies: Mapping[str, str]) -> Domain:
    """Two pages of one table."""
    domain = domain_of(engine, policies)
    domain.map(VA, 300)
    domain.map(VA + 0x9000, 300)
    domain.start()
    return domain


def moved(engine: Engine, policies: Mapping[str, str]) -> Domain:
    """A page whose machine frame changes."""
    domain = mapped(engine, policies)
    domain.engine.xi_invld_mfn(300, 1500)
    return domain


def recycled(engine: Engine, policies: Mapping[str, str]) -> Domain:
    """A space that is gone, and an idle loop that had time."""
    domain = mapped(engine, policies)
    first = domain.engine.root_spti
    assert first is not None
    domain.switch(domain.new_root())
    domain.engine.destroy_tree(first)
    domain.engine.idle_zero(16)
    return domain


def log_begun(engine: Engine, policies: Mapping[str, str]) -> Domain:
    """A round of the dirty log has begun, and nothing has been stored in it: not to the large page either."""
    domain = mapped(engine, policies)
    domain.map(VA + 0x800000, 512, USED, 2)
    domain.flush()
    domain.engine.dirty_log_start()
    return domain


def logged(engine: Engine, policies: Mapping[str, str]) -> Domain:
    """Dirty logging, a store, and a page mapped meanwhile."""
    domain = mapped(engine, policies)
    domain.engine.dirty_log_start()
    domain.check(VA, Access.STORE)
    domain.map(VA + 0x5000, 301, USED)
    domain.flush()
    return domain


def log_read(engine: Engine, policies: Mapping[str, str]) -> Domain:
    """Dirty logging, a store to a page with two aliases, and a read of the log."""
    domain = mapped(engine, policies)
    domain.engine.dirty_log_start()
    domain.check(VA, Access.STORE)
    domain.check(VA + 0x9000, Access.STORE)
    domain.engine.dirty_log_read()
    return domain


def linked_anew(engine: Engine, policies: Mapping[str, str]) -> Domain:
    """A table that was stored to is mapped at another address, where nothing was: the guest need not flush."""
    domain = domain_of(engine, policies, fill="demand")
    other = VA + (1 << 30)
    domain.map(VA, 300)
    domain.map(VA + 0x1000, 310)
    domain.start()
    domain.run(VA + 0x1000, Access.LOAD)
    domain.map(VA + 0x1000, 311)
    domain.poke(domain.entry_at(other, 2), domain.read_guest(domain.entry_at(VA, 2), 8))
    for va in (other, other + 0x1000):
        domain.check(va, Access.LOAD)
    return domain


def linked_late(engine: Engine, policies: Mapping[str, str]) -> Domain:
    """A table stands at two addresses from the start; the second is used once the guest has stored to it."""
    domain = domain_of(engine, policies, fill="demand")
    other, table = VA + (1 << 30), VA + 0x5000
    domain.map(VA, 300)
    entry = domain.map(VA + 0x1000, 310)
    domain.map(table, entry >> 12)
    domain.poke(domain.entry_at(other, 2), domain.read_guest(domain.entry_at(VA, 2), 8))
    domain.start()
    domain.run(VA + 0x1000, Access.LOAD)
    domain.run(table, Access.STORE)
    domain.poke(entry, 311 << 12 | USED, announce=False)
    for va in (other, other + 0x1000):
        domain.check(va, Access.LOAD)
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
