"""Mutations of what XI keeps about its tables: backlinks, protection, pool, roles, large pages."""

from __future__ import annotations

from typing import Final

import numpy as np

from harness.engine import EngineConfig, MachineMemory
from harness.x86.bits import PTE_D, PTE_P, PTE_RW, PTE_US
from harness.xi.engine import XiEngine
from harness.xi.pool import Pool, Spti
from harness.xi.roles import GUEST, Role
from harness.xi.watch import Aliases
from tests.mutations.mutation import Mutation, caught


class OneAliasWritable(XiEngine):
    """Write-protects a table at all of its addresses but the oldest."""

    def protect_gfn(self, gfn: int) -> None:
        super().protect_gfn(gfn)
        oldest = self.links.nodes(self.links.slot(1, gfn))[-1:]
        for word in oldest:
            if self.q[word] & PTE_D:
                self.q[word] |= PTE_RW


class OneBacklinkLost(XiEngine):
    """A new alias of a frame takes the place of the last one on the frame's list."""

    def set_leaf(self, spti: Spti, word: int, gfn: int, spte: int) -> None:
        before = self.links.nodes(self.links.slot(spti.level, gfn))
        if before:
            self.links.unlink(before[0])
        super().set_leaf(spti, word, gfn, spte)


class _FirstParentOnly(Aliases):
    def parents_changed(self, index: int) -> None:
        if not self._bases[index]:
            super().parents_changed(index)


class LaterParentsIgnored(XiEngine):
    """The addresses of a table are those by its first parent."""

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        super().__init__(config, memory)
        self.aliases = _FirstParentOnly(self.pool_memory, self.links, self.p2m, self.guarded_array, self.counters)


class OrphansForgotten(XiEngine):
    """Does not note which tables have lost their last parent."""

    def drop(self, spti: Spti, word: int) -> None:
        super().drop(spti, word)
        self.orphans.clear()


class PoolLeak(XiEngine):
    """An SPTI that is torn down does not come back to the free list."""

    def destroy(self, spti: Spti) -> None:
        super().destroy(spti)
        self.pool_memory.unclean.pop()


class _Unzeroed(Pool):
    def zero(self, spti: Spti) -> None:
        """Leaves it as it is."""


class NotZeroed(XiEngine):
    """A recycled SPTI keeps the snapshot of the table that it stood for."""

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        super().__init__(config, memory)
        self.pool_memory.__class__ = _Unzeroed


class RootKept(XiEngine):
    """Of the roots of one mode the first that the guest loads stays the root."""

    def _switch_root(self) -> None:
        root = self.root_spti
        super()._switch_root()
        if root is not None and root.role is not None and root.role.mode == self.state.mode.name:
            self.root_spti, self._shadow_root = root, None


class RootEvicted(XiEngine):
    """Recycles the root in use, unless it is being worked on."""

    def pick_victim(self, force: bool) -> int | None:
        root = self.root_spti
        if root is not None and root.role is not None and root.index not in self.pins:
            return root.index
        return super().pick_victim(force)


class PathEvicted(XiEngine):
    """Recycles the table above the one that is being filled."""

    def pick_victim(self, force: bool) -> int | None:
        root = self.root_spti
        above = [index for index in self.pins[:-1] if root is None or index != root.index]
        return above[-1] if above else super().pick_victim(force)


class RoleForgotten(XiEngine):
    """The hash loses each guest table at level 1 as soon as it is in."""

    def _bind(self, spti: Spti, role: Role) -> None:
        super()._bind(spti, role)
        if spti.kind is GUEST and spti.level == 1:
            del self.by_role[role]


class SumsForgotten(XiEngine):
    """Protected tables are counted by frame, not by the large page around them."""

    def guard_gfn(self, gfn: int) -> None:
        super().guard_gfn(gfn)
        self.guarded_2m[gfn >> 9] = 0
        self.guarded_1g[gfn >> 18] = 0


class LargeNotDivided(XiEngine):
    """Protects a table's 4 KiB SPTEs and forgets the large ones."""

    def divide_around(self, gfn: int, level: int) -> None:
        """Leaves them whole."""


class PiecesShifted(XiEngine):
    """The pieces of a divided page are one frame off."""

    def _fill_frames(self, spti: Spti) -> None:
        super()._fill_frames(spti)
        spti.spt[:] = np.roll(spti.spt, 1)


class DividedWider(XiEngine):
    """The SPTE above the pieces of a large page allows everything."""

    def link_divided(self, spti: Spti, word: int, gfn: int, key: int, flags: int, force: bool = False) -> bool:
        if flags & PTE_P and spti.kind is GUEST:
            flags |= PTE_RW | PTE_US
        return super().link_divided(spti, word, gfn, key, flags, force)


class UnpagedShifted(XiEngine):
    """The map of a guest without paging is one frame off."""

    def _fill_frames(self, spti: Spti) -> None:
        super()._fill_frames(spti)
        if spti.role is not None and spti.role.mode == "unpaged":
            spti.spt[:] = np.roll(spti.spt, 1)


class PoolGivenAway(XiEngine):
    """The frames of the pool are the guest's as well."""

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        p2m = np.arange(config.frames) if config.p2m is None else config.p2m.copy()
        pool = slice(config.pool_base_mfn, config.pool_base_mfn + config.pool_frames)
        p2m[pool] = -1
        super().__init__(EngineConfig(config.frames, config.pool_frames, config.pool_base_mfn, p2m), memory)
        self.p2m.table[pool] = self.p2m.m2p[pool] = np.arange(pool.start, pool.stop)


TABLES: Final = (
    Mutation(
        "one-alias-writable",
        "one alias of a guest table is not write-protected",
        caught("audit:K5"),
        "alias",
        "nopae",
        OneAliasWritable,
    ),
    Mutation(
        "one-backlink-lost",
        "a frame's new alias replaces another on its list",
        caught("audit:backlink-bijection", "self-check"),
        "alias",
        "long4",
        OneBacklinkLost,
    ),
    Mutation(
        "later-parents-ignored",
        "a table's addresses leave out its later parents",
        caught("audit:alias-bases", "self-check"),
        "alias",
        "long4",
        LaterParentsIgnored,
    ),
    Mutation(
        "orphans-forgotten",
        "a table that lost its last parent is not known as an orphan",
        caught("audit:orphans"),
        "large",
        "nopae",
        OrphansForgotten,
    ),
    Mutation("pool-leak", "a freed SPTI is lost", caught("audit:pool-conservation"), "basic", "nopae", PoolLeak),
    Mutation(
        "not-zeroed",
        "a recycled SPTI is not zeroed",
        caught("audit:eager-complete"),
        "switch",
        "nopae",
        NotZeroed,
    ),
    Mutation("root-kept", "a CR3 load keeps the root", caught("audit:root"), "switch", "long4", RootKept),
    Mutation(
        "active-root-evicted",
        "the LRU recycles the root in use",
        caught("exception"),
        "stale",
        "long4",
        RootEvicted,
        config={"pool_frames": 24 * 4},
    ),
    Mutation(
        "path-evicted",
        "the LRU recycles a table of the path being built",
        caught("audit:K4", "assertion"),
        "perm",
        "long4",
        PathEvicted,
        config={"pool_frames": 36 * 4},
    ),
    Mutation("role-forgotten", "the hash loses level-1 tables", caught("audit:H1"), "basic", "nopae", RoleForgotten),
    Mutation(
        "sums-forgotten",
        "protected tables are not counted by large page",
        caught("audit:guards", "audit:large"),
        "large",
        "long4",
        SumsForgotten,
    ),
    Mutation(
        "large-not-divided",
        "a large page around a new guest table stays whole",
        caught("audit:large"),
        "large",
        "nopae",
        LargeNotDivided,
    ),
    Mutation(
        "pieces-shifted",
        "the pieces of a divided page are one frame off",
        caught("probe", "audit:divided"),
        "large",
        "nopae",
        PiecesShifted,
    ),
    Mutation(
        "divided-wider",
        "a divided page has wider rights than the guest's",
        caught("probe", "audit:F8"),
        "large",
        "long4",
        DividedWider,
    ),
    Mutation(
        "unpaged-shifted",
        "the map of a guest without paging is one frame off",
        caught("probe", "audit:divided"),
        "unpaged",
        "nopae",
        UnpagedShifted,
    ),
    Mutation(
        "pool-given-away",
        "the pool's frames are the guest's as well",
        caught("audit:X4"),
        "basic",
        "nopae",
        PoolGivenAway,
        config={"pool_base_mfn": 0x1800},
    ),
)
