"""Mutations of what happens to a domain's frames: they move, they go, stores to them are logged, they are migrated."""

from __future__ import annotations

from typing import Any, Final

from harness.intercept.domain import Domain
from harness.migration.precopy import Limits
from harness.migration.run import MigrationPlan
from harness.x86.bits import PTE_PS, PTE_RW
from harness.xi.engine import XiEngine
from tests.mutations.live_exits import HoleForAway
from tests.mutations.mutation import Mutation, Way, caught
from tests.mutations.scripts import LogReadOneAlias
from tests.mutations.small_guests import MANY_STORES, STORES
from tests.xi.broken import OldFrameKept, OneRound, OwnStoresUnlogged


class MovedEmpty(Domain):
    """A frame moves and leaves its content behind."""

    def move(self, gfn: int) -> int:
        new = self._free()
        old = self._frame(gfn)
        self._assign(gfn, new)
        self._release(old)
        self.moved += 1
        return new


class LargeUnlogged(XiEngine):
    """Large pages stay writable when the dirty log begins."""

    def dirty_log_start(self) -> None:
        large = [word for word in self.links.leaves().tolist() if self.q[word] & PTE_PS and self.q[word] & PTE_RW]
        super().dirty_log_start()
        for word in large:
            self.q[word] |= PTE_RW


STRESS: Final = {"stress": True}
# One round of 125 ms, in which the guest exits thousands of times, then the rest.
ONE_ROUND: Final = Limits(rounds=1, rate=256.0)


def _frames(name: str, breaks: str, by: str, guest: str, paging: str, **more: Any) -> Mutation:
    return Mutation(name, breaks, caught(*by.split()), guest, paging, **{"way": Way.LIVE, "options": STRESS, **more})


def _migrated(name: str, breaks: str, guest: str, paging: str, engine: type[XiEngine], **more: Any) -> Mutation:
    return Mutation(name, breaks, caught("migration"), guest, paging, engine, way=Way.MIGRATE, **more)


LIVE_FRAMES: Final = (
    _frames(
        "live-old-frame-kept",
        "a frame moves and SPTEs keep the old one",
        "audit:P2",
        "basic",
        "long4",
        engine=OldFrameKept,
    ),
    _frames(
        "live-moved-empty",
        "a frame moves and leaves its content behind",
        "crash",
        "basic",
        "long4",
        parts={"Domain": MovedEmpty},
    ),
    _frames(
        "live-away-is-a-device",
        "a frame that was taken away is taken for a device",
        "error",
        "basic",
        "long4",
        parts={"Live": HoleForAway},
    ),
    _frames(
        "live-alias-unlogged",
        "the dirty log misses a page's second alias",
        "dirty-log",
        "stores",
        "nopae",
        engine=LogReadOneAlias,
        source=STORES,
    ),
    _frames(
        "live-own-stores-unlogged",
        "the dirty log misses the A and D bits that the engine sets",
        "dirty-log",
        "basic",
        "long4",
        engine=OwnStoresUnlogged,
    ),
    _frames(
        "live-second-round-unlogged",
        "the dirty log's next round misses the pages of the last",
        "dirty-log",
        "basic",
        "long4",
        engine=OneRound,
    ),
    _migrated(
        "migrated-own-stores-unlogged",
        "a migration misses the A and D bits that the engine sets",
        "perm",
        "nopae",
        OwnStoresUnlogged,
        plan=MigrationPlan(after=1, limits=ONE_ROUND),
        probes=12,  # which would set the bits before the guest does
    ),
    _migrated(
        "migrated-large-unlogged",
        "a migration misses stores to large pages",
        "many stores",
        "nopae",
        LargeUnlogged,
        source=MANY_STORES,
        probes=12,
        plan=MigrationPlan(exits=100, limits=ONE_ROUND),
    ),
)
