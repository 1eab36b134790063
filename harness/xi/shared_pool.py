"""The policy ``pool=shared``: several domains have their shadow tables in the same frames.

What is free is free for all, and when nothing is, the SPT goes that was used least recently by anyone, whosever it is:
never the root that a domain runs on, nor what is being worked on. The domain that loses it tears it down itself, as if
it had recycled it, and takes the fault that brings it back; so each domain is right at any moment, however others
behave. That is all that is promised. How many of its tables a domain keeps is up to the others, nothing tells them to
hold back, and one that asks fast enough can keep another from ever having all the tables of one instruction at once
(`harness.xi.pool.minimum_sptis`), which with a pool of its own it has.

A domain can lose a table at any call of a neighbour's engine. The processor of the loser must not be walking its shadow
then, since the table may be another domain's at the next step: real hardware would have to be stopped and its
paging-structure caches flushed. Here one thread drives the engines of a pool, and calls those of the others while a
guest stands still at an exit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from harness.engine import Bytes, EngineConfig
from harness.xi.pool import FRAMES_PER_SPTI, MINIMUM_SPTIS, Pool, PoolFrames, Spti, Tenant, idle_reserve

_TO_END: Final = OrderedDict.move_to_end


class SharedPool(PoolFrames):
    """Frames for the SPTIs of several domains. ``XiEngine(config, memory, shared_pool=pool)`` joins.

    shares: of the domains that have joined. order: the SPTIs in use, of all of them, least recently used first, and
    whose each is.
    """

    def __init__(self, frames: int, base_mfn: int, memory: Bytes | None = None) -> None:
        """See `harness.xi.pool.PoolFrames`."""
        super().__init__(frames, base_mfn, memory)
        self.shares: list[Share] = []
        self.order: OrderedDict[int, Tenant] = OrderedDict()

    def room_for(self, domains: int) -> bool:
        """Whether any of so many domains can be given all tables of a path, while each of the others keeps its root."""
        return self.frames // FRAMES_PER_SPTI >= MINIMUM_SPTIS + domains - 1


class Share(Pool):
    """A shared pool as one domain has it: its own records of all SPTIs, of which it uses those on its `lru`."""

    policy = "shared"

    def __init__(self, space: SharedPool, zeroing: str, zeroed_words: int) -> None:
        super().__init__(space, zeroing, zeroed_words)
        self.shared = space
        self.lru = _OwnOrder(space.order)
        self.order: Mapping[int, Tenant | None] = space.order
        self._domain: Tenant | None = None
        self._peak = 0

    def join(self, domain: Tenant) -> None:
        """Raises ValueError when there is no room for one domain more."""
        shared = self.shared
        shares = [*shared.shares, self]
        count = len(self.sptis)
        if not shared.room_for(len(shares)):
            raise ValueError(
                f"a shared pool of {count} SPTIs is too small for {len(shares)} domains: the longest path needs "
                f"{MINIMUM_SPTIS}, and each of the others keeps its root"
            )
        self._domain = domain
        shared.shares = shares
        shared.reserve = idle_reserve(count, len(shares))
        words = max(share.zeroed_words for share in shares)
        for share in shares:  # what one of them may use, all must clear
            share.zeroed_words = words

    @property
    def held(self) -> int:
        return len(self.lru)

    @property
    def held_peak(self) -> int:
        return self._peak

    @property
    def neighbours(self) -> Sequence[Tenant]:
        return [share.domain for share in self.shared.shares if share is not self]

    @property
    def domain(self) -> Tenant:
        assert self._domain is not None, "a share is joined before it is used"
        return self._domain

    @property
    def elsewhere(self) -> list[int]:
        return [index for share in self.shared.shares if share is not self for index in share.lru]

    def take(self) -> tuple[Spti, bool] | None:
        taken = super().take()
        if taken is not None:
            self.shared.order[taken[0].index] = self.domain
            self._peak = max(self._peak, len(self.lru))
        return taken

    def give_back(self, spti: Spti) -> None:
        super().give_back(spti)
        del self.shared.order[spti.index]


class _OwnOrder(OrderedDict[int, None]):
    """The SPTIs of one domain in the order of their use. What is used here is used in everyone's order too."""

    def __init__(self, everyones: OrderedDict[int, Tenant]) -> None:
        super().__init__()
        self._everyones = everyones.move_to_end

    def move_to_end(self, key: int, last: bool = True) -> None:
        _TO_END(self, key, last)
        self._everyones(key, last)


def reserved_pool(config: EngineConfig, shared_pool: SharedPool | None, zeroing: str, zeroed_words: int) -> Pool:
    """A pool of the domain's own. Raises ValueError as `PoolFrames` and `Pool` do, and for a `shared_pool`."""
    if shared_pool is not None:
        raise ValueError("pool='reserved': a domain with a pool of its own joins no shared one")
    return Pool(PoolFrames(config.pool_frames, config.pool_base_mfn, config.pool_memory), zeroing, zeroed_words)


def share_of_a_pool(config: EngineConfig, shared_pool: SharedPool | None, zeroing: str, zeroed_words: int) -> Pool:
    """A share of `shared_pool`, or of a pool that nobody else has joined. Raises ValueError as `SharedPool` and `Pool`
    do, and when `config` says something else of the pool than it is."""
    space = shared_pool or SharedPool(config.pool_frames, config.pool_base_mfn, config.pool_memory)
    if (config.pool_frames, config.pool_base_mfn) != (space.frames, space.base_mfn):
        raise ValueError(
            f"the shared pool is {space.frames} frames at mfn {space.base_mfn:#x}, not "
            f"{config.pool_frames} at {config.pool_base_mfn:#x}"
        )
    if config.pool_memory is not None and config.pool_memory is not space.memory:
        raise ValueError("the shared pool has a memory of its own: pool_memory must be that, or None")
    return Share(space, zeroing, zeroed_words)
