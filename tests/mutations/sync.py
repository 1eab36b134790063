"""Mutations of synchronisation: what is brought up to date, when, and from which part of which table."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from harness.engine import Words
from harness.x86.bits import CR4_PGE, PTE_P
from harness.x86.control import ControlState
from harness.xi.decision import RESYNC
from harness.xi.engine import XiEngine
from harness.xi.links import Ints
from harness.xi.pool import Spti
from harness.xi.roles import Role
from tests.mutations.mutation import Mutation, caught


class NoInvlpg(XiEngine):
    """Counts INVLPG and does nothing."""

    def invlpg(self, va: int) -> None:
        self.counters.invlpgs += 1


class SameCr3Ignored(XiEngine):
    """Takes a load of the CR3 that is loaded for nothing new, which is how guests flush."""

    def load_cr3(self, cr3: int) -> None:
        if cr3 != self.state.cr3:
            super().load_cr3(cr3)


class NoResyncAtCr3(XiEngine):
    """A table that was synchronised once is not looked at again when its space is loaded."""

    _loading = False

    def load_cr3(self, cr3: int) -> None:
        self._loading = True
        super().load_cr3(cr3)
        self._loading = False

    def shadow_resync(self, spti: Spti) -> None:
        if spti.fresh or not self._loading:
            super().shadow_resync(spti)


class PgeToggleIgnored(XiEngine):
    """Takes a change of CR4.PGE for one that flushes nothing."""

    def control(self, state: ControlState) -> None:
        if state.cr4 ^ self.state.cr4 == CR4_PGE and state.cr3 == self.state.cr3:
            self._adopt(state)
        else:
            super().control(state)


class StaleSnapshot(XiEngine):
    """The snapshot misses the last entry that has changed."""

    def take_snapshot(self, spti: Spti, page: Words) -> None:
        changed = np.flatnonzero(spti.snapshot != page)
        before = spti.snapshot[changed[-1:]].copy()
        super().take_snapshot(spti, page)
        spti.snapshot[changed[-1:]] = before


class UnmapIgnored(XiEngine):
    """Keeps the SPTE of an entry that the guest has cleared."""

    def resync_spte(self, spti: Spti, index: int, entry: int, fill: bool, force: bool = False) -> None:
        if entry & PTE_P:
            super().resync_spte(spti, index, entry, fill, force)


class RemapKeepsFrame(XiEngine):
    """An entry that leads to another page now is taken for one whose rights have changed."""

    def _what_it_was(self, spti: Spti, spte: int, now: int, gfn: int, entry: int) -> int:
        was = super()._what_it_was(spti, spte, now, gfn, entry)
        return was | 1 << RESYNC.shift["same"] if spti.level == 1 else was

    def fill_page(self, spti: Spti, index: int, entry: int, gfn: int) -> None:
        spte = self.q[spti.base + index]
        super().fill_page(spti, index, entry, self.leaf_gfn(spte) if spte else gfn)


class LastEntryForgotten(XiEngine):
    """Works on all changed entries of a table but the last; the snapshot takes them all."""

    def resync_entries(self, spti: Spti, changed: Ints, now: Words) -> None:
        super().resync_entries(spti, changed[:-1], now)


class DirtyNotClimbed(XiEngine):
    """A table that goes out of sync is not made known to its parents."""

    def mark_dirty(self, index: int) -> None:
        self.dirty[index] = 1


class OneShadowOfTwo(XiEngine):
    """Of several SPTs of a written table only the first goes out of sync."""

    def table_written(self, gfn: int) -> None:
        self.counters.table_writes += 1
        for index in self.gpts.get(gfn, ())[:1]:
            self.set_out_of_sync(self.sptis[index])


class WrongQuadrant(XiEngine):
    """The L2 SPTs of a 32-bit guest's directory are linked in pairs the wrong way round."""

    def spti_make_shadow(self, role: Role, force: bool = False) -> Spti | None:
        if role.mode == "nopae" and role.level == 2:
            role = role._replace(quadrant=role.quadrant ^ 1)
        return super().spti_make_shadow(role, force)


class WrongHalf(XiEngine):
    """The two SPTEs of a 32-bit guest's directory entry lead to each other's half of the page table."""

    def child_role(self, spti: Spti, index: int, gfn: int, entry: int) -> Role:
        role = super().child_role(spti, index, gfn, entry)
        return role._replace(quadrant=role.quadrant ^ 1) if role.mode == "nopae" else role


class WrongLargeHalf(XiEngine):
    """Both SPTEs of a 4 MiB page map its first 2 MiB."""

    def _classify(self, spti: Spti, index: int, entry: int) -> tuple[int, int]:
        now, gfn = super()._classify(spti, index, entry)
        rules: Any = spti.rules
        return now, gfn & ~0x200 if rules.doubled and rules.is_large(entry) else gfn


SYNC: Final = (
    Mutation("invlpg-skipped", "INVLPG synchronises nothing", caught("probe"), "stale", "nopae", NoInvlpg),
    Mutation(
        "same-cr3-skipped",
        "a load of the CR3 that is loaded does nothing",
        caught("probe"),
        "basic",
        "nopae",
        SameCr3Ignored,
    ),
    Mutation(
        "cr3-resync-skipped",
        "a CR3 load synchronises only tables that are new",
        caught("probe"),
        "switch",
        "nopae",
        NoResyncAtCr3,
    ),
    Mutation(
        "pge-toggle-skipped",
        "a change of CR4.PGE alone flushes nothing",
        caught("probe"),
        "stale",
        "nopae",
        PgeToggleIgnored,
    ),
    Mutation(
        "stale-snapshot",
        "a snapshot misses one changed entry",
        caught("audit:snapshot"),
        "basic",
        "long4",
        StaleSnapshot,
    ),
    Mutation(
        "unmap-ignored",
        "an entry that is gone keeps its SPTE",
        caught("probe", "audit:F1", "audit:X1"),
        "basic",
        "nopae",
        UnmapIgnored,
    ),
    Mutation(
        "remap-keeps-frame",
        "an entry that leads to another frame keeps the old one",
        caught("probe", "audit:X3"),
        "basic",
        "long4",
        RemapKeepsFrame,
    ),
    Mutation(
        "entry-forgotten",
        "the last changed entry of a table is not brought in",
        caught("audit:eager-complete"),
        "basic",
        "long4",
        LastEntryForgotten,
    ),
    Mutation(
        "dirty-not-climbed",
        "the parents of a table do not learn that it went out of sync",
        caught("audit:K4", "probe"),
        "basic",
        "long4",
        DirtyNotClimbed,
    ),
    Mutation(
        "one-shadow-of-two",
        "a written table's second SPT stays in sync",
        caught("self-check"),
        "basic",
        "nopae",
        OneShadowOfTwo,
    ),
    Mutation(
        "wrong-quadrant",
        "the quadrants of a 32-bit page directory are exchanged",
        caught("probe", "audit:X3"),
        "basic",
        "nopae",
        WrongQuadrant,
    ),
    Mutation(
        "wrong-table-half",
        "the halves of a 32-bit page table are exchanged",
        caught("probe", "audit:X3"),
        "large",
        "nopae",
        WrongHalf,
    ),
    Mutation(
        "wrong-large-half",
        "both SPTEs of a 4 MiB page map its first half",
        caught("probe", "audit:X3"),
        "large",
        "nopae",
        WrongLargeHalf,
    ),
)
