"""Mutations of XI's policies: of what keeps snapshots and backlinks in each, and of what is left to a search."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from harness.engine import EngineConfig, MachineMemory
from harness.xi.engine import XiEngine
from harness.xi.links import Ints
from harness.xi.no_backlinks import NoBacklinks
from harness.xi.pool import Spti
from harness.xi.search import LARGE
from harness.xi.shared_pool import Share
from harness.xi.snapshots import DynamicSnapshots
from harness.xi.table_backlinks import TableBacklinks
from tests.mutations.interception import StoresDeaf, observer
from tests.mutations.mutation import Mutation, Way, caught
from tests.mutations.peer_rows import FEW
from tests.mutations.scripts import log_begun
from tests.mutations.sync import NoResyncAtCr3
from tests.mutations.tables import NotZeroed

DYNAMIC: Final = {"snapshots": "dynamic"}
GPT_ONLY: Final = {"backlinks": "gpt-only"}
NONE: Final = {"backlinks": "none"}
INLINE: Final = {"zeroing": "critical-path"}
SHARED: Final = {"pool": "shared"}
RESYNC_ALL: Final = {"fault-resync": "all"}
ALL: Final = (DYNAMIC, GPT_ONLY, NONE, INLINE, SHARED, RESYNC_ALL)
BY_ALL: Final = (INLINE, RESYNC_ALL)  # whose share of the tests are mutations of what all policies have


def snapshots(broken: type[DynamicSnapshots]) -> type[XiEngine]:
    class Kept(XiEngine):
        def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
            super().__init__(config, memory)
            self.snapshots.__class__ = broken

    return Kept


def links(broken: type[TableBacklinks | NoBacklinks]) -> type[XiEngine]:
    """Who watches addresses has the unbroken ones."""

    class Linked(XiEngine):
        def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
            super().__init__(config, memory)
            self.links.__class__ = broken

    return Linked


# snapshots=dynamic


class TakenTooLate(DynamicSnapshots):
    """A table goes out of sync and goes on being its own snapshot."""

    def leave(self, spti: Spti) -> bool:
        assert spti.rules is not None
        if not spti.rules.latched:
            spti.entries = self.entries_of(spti)
        return False


class FreedTooEarly(DynamicSnapshots):
    """The page of a table out of sync is free for the next."""

    def leave(self, spti: Spti) -> bool:
        late = super().leave(spti)
        self.release(spti)
        return late


class NeverFreed(DynamicSnapshots):
    """The page of a table that is in sync again stays taken."""

    def release(self, spti: Spti) -> None:
        self.page_of[spti.index] = -1


class LateUnheeded(XiEngine):
    """A snapshot that was taken after the store is taken for what the SPTEs say."""

    def realign(self, spti: Spti) -> None:
        pass


class MadeInName(XiEngine):
    """A table is taken for synchronised when it is made, without a look at it."""

    def made(self, spti: Spti) -> None:
        self.set_synced(spti)


# backlinks=gpt-only


class TableUnlinked(TableBacklinks):
    """No list is made for a page that turns out to be a table."""

    def table_appears(self, gfn: int) -> None:
        pass


class TableStays(TableBacklinks):
    """The lists of a page that is a table no more are kept."""

    def table_gone(self, gfn: int) -> None:
        pass


class UnlinkForgotten(TableBacklinks):
    """The backlink of an SPTE that goes is left on its list."""

    def unlink(self, word: int) -> None:
        pass


class PagesUnsearched(TableBacklinks):
    """Only pages with backlinks are protected when the next round of the dirty log begins."""

    def pages(self, gfns: Ints) -> Ints:
        return super().pages(gfns[self.tables[gfns] != 0])


# backlinks=none


class FirstOnly(NoBacklinks):
    """A search for what maps a frame ends with the first SPTE."""

    def nodes(self, slot: int) -> list[int]:
        found = super().nodes(slot)
        return found[:1] if slot < self._base_parents else found


class LargeUnsearched(NoBacklinks):
    """A search for what maps a frame looks at level 1 alone."""

    def nodes(self, slot: int) -> list[int]:
        return [] if self._base_2m <= slot < self._base_parents else super().nodes(slot)


class StillReferenced(NoBacklinks):
    """An SPTE that leads to a table goes, and is still counted."""

    def unlink(self, word: int) -> None:
        pass


class OneParentUnsearched(NoBacklinks):
    """A search for the parents of a table ends one short."""

    def nodes(self, slot: int) -> list[int]:
        found = super().nodes(slot)
        return found[:-1] if slot >= self._base_parents else found


class LargeLeavesUnsearched(NoBacklinks):
    """A round of the dirty log begins with pages of 4 KiB."""

    def leaves(self) -> Ints:
        words = super().leaves()
        levels = np.frombuffer(self._pool.levels, np.uint8)[words >> 11]
        return words[~np.isin(levels, LARGE)]


# pool=shared


class OwnerKept(Share):
    """An SPTI that comes back is still down as its last owner's."""

    def give_back(self, spti: Spti) -> None:
        super().give_back(spti)
        self.shared.order[spti.index] = self.domain


def shared(broken: type[Share]) -> type[XiEngine]:
    class Sharing(XiEngine):
        def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
            super().__init__(config, memory)
            self.pool_memory.__class__ = broken

    return Sharing


class OwnOrderOnly(XiEngine):
    """What a domain uses is the most recently used for itself, and not for all."""

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        super().__init__(config, memory)
        self.pool_memory.lru._everyones = lambda key, last: None  # type: ignore[attr-defined]


def _broken(
    policies: dict[str, str],
    name: str,
    breaks: str,
    by: str,
    engine: type[XiEngine],
    where: str = "basic long4",
    **more: Any,
) -> Mutation:
    guest, paging = where.split()
    ((policy, value),) = policies.items()
    given: dict[str, Any] = {"probes": FEW} if more.get("way") is Way.LIVE else {}
    return Mutation(
        f"{value if value != 'all' else policy}: {name}",
        breaks,
        caught(*by.split()),
        guest,
        paging,
        engine,
        policies=policies,
        **(given | more),
    )


LIVE: Final[dict[str, Any]] = {"way": Way.LIVE}
REPLAY: Final[dict[str, Any]] = {"way": Way.REPLAY}
REPEAT: Final[dict[str, Any]] = {"way": Way.REPEAT}
STRESS: Final[dict[str, Any]] = {"way": Way.LIVE, "options": {"stress": True}}
SMALL: Final[dict[str, Any]] = {"way": Way.LIVE, "options": {"pool_spti": 40}}

TOO_LATE: Final = "a snapshot is taken after the stores that it is to tell of"
TOO_EARLY: Final = "a snapshot's page is freed while it is needed"
UNLINKED: Final = "no backlinks are made for a page that becomes a table"
FIRST: Final = "a search ends with the first SPTE"
CR3: Final = "a CR3 load synchronises only tables that are new"

POLICIES: Final = (
    _broken(DYNAMIC, "too-late", TOO_LATE, "probe audit:snapshot", snapshots(TakenTooLate), tested=True),
    _broken(DYNAMIC, "too-early", TOO_EARLY, "audit:snapshot", snapshots(FreedTooEarly)),
    _broken(DYNAMIC, "never-freed", "no page of a snapshot comes back", "audit:snapshot", snapshots(NeverFreed)),
    _broken(DYNAMIC, "late-unheeded", "a store was told late, and the SPTEs stay", "audit:X1 probe", LateUnheeded),
    _broken(
        DYNAMIC, "made-in-name", "a new table is in sync in name", "audit:snapshot audit:eager-complete", MadeInName
    ),
    _broken(DYNAMIC, "live-too-late", TOO_LATE, "probe", snapshots(TakenTooLate), **LIVE, tested=True),
    _broken(DYNAMIC, "live-too-early", TOO_EARLY, "audit:snapshot", snapshots(FreedTooEarly), **LIVE),
    _broken(DYNAMIC, "replayed-too-late", TOO_LATE, "replay:answers", snapshots(TakenTooLate), **REPLAY, tested=True),
    _broken(DYNAMIC, "repeated-too-early", TOO_EARLY, "replay:audits", snapshots(FreedTooEarly), **REPEAT),
    _broken(GPT_ONLY, "unlinked", UNLINKED, "audit:backlink-bijection", links(TableUnlinked), tested=True),
    _broken(
        GPT_ONLY,
        "table-stays",
        "its lists outlive a table",
        "audit:backlink-bijection",
        links(TableStays),
        "switch nopae",
    ),
    _broken(
        GPT_ONLY, "unlink-forgotten", "a backlink outlives its SPTE", "audit:backlink-bijection", links(UnlinkForgotten)
    ),
    _broken(GPT_ONLY, "live-unlinked", UNLINKED, "audit:backlink-bijection", links(TableUnlinked), **LIVE, tested=True),
    _broken(
        GPT_ONLY,
        "live-unsearched",
        "the dirty log looks at tables alone",
        "dirty-log",
        links(PagesUnsearched),
        **STRESS,
    ),
    _broken(GPT_ONLY, "replayed-unlinked", UNLINKED, "replay:audits", links(TableUnlinked), **REPLAY, tested=True),
    _broken(GPT_ONLY, "repeated-unlinked", UNLINKED, "replay:audits", links(TableUnlinked), **REPEAT),
    _broken(NONE, "first-only", FIRST, "audit:K5", links(FirstOnly), "alias nopae"),
    _broken(
        NONE,
        "large-unsearched",
        "no search looks at large pages",
        "audit:large",
        links(LargeUnsearched),
        "large nopae",
    ),
    _broken(
        NONE,
        "still-referenced",
        "a reference outlives its SPTE",
        "audit:backlink-bijection",
        links(StillReferenced),
        tested=True,
    ),
    _broken(
        NONE,
        "large-logged",
        "a round of the dirty log leaves large pages writable",
        "audit:dirty-log",
        links(LargeLeavesUnsearched),
        script=log_begun,
    ),
    _broken(NONE, "live-first-only", FIRST, "audit:K5", links(FirstOnly), "alias long4", **LIVE, tested=True),
    _broken(
        NONE,
        "live-parent-unsearched",
        "a search for a table's parents ends one short",
        "audit:K4",
        links(OneParentUnsearched),
        "perm long4",
        **SMALL,
    ),
    _broken(
        NONE,
        "replayed-still-referenced",
        "a reference outlives its SPTE",
        "replay:audits",
        links(StillReferenced),
        **REPLAY,
        tested=True,
    ),
    _broken(NONE, "repeated-first-only", FIRST, "replay:pool", links(FirstOnly), "alias long4", **REPEAT),
    _broken(
        INLINE,
        "not-zeroed",
        "a recycled SPTI is not zeroed",
        "audit:eager-complete",
        NotZeroed,
        "switch nopae",
    ),
    _broken(
        SHARED,
        "owner-kept",
        "a free SPTI has an owner",
        "audit:pool-owner",
        shared(OwnerKept),
        "basic nopae",
        tested=True,
    ),
    _broken(SHARED, "own-order-only", "a use is not told to all", "audit:pool-order", OwnOrderOnly),
    _broken(
        SHARED,
        "live-owner-kept",
        "a free SPTI has an owner",
        "audit:pool-owner",
        shared(OwnerKept),
        "perm long4",
        **SMALL,
        tested=True,
    ),
    _broken(
        SHARED,
        "replayed-own-order-only",
        "a use is not told to all",
        "replay:audits",
        OwnOrderOnly,
        **REPLAY,
        tested=True,
    ),
    *(
        _broken(
            policies,
            "stores-not-told",
            "watchpoint hits do not reach the engine",
            "self-check",
            XiEngine,
            "basic pae",
            tamper=observer(StoresDeaf),
            tested=policies in BY_ALL,
        )
        for policies in ALL
    ),
    *(
        _broken(policies, "live-cr3-resync-skipped", CR3, "probe", NoResyncAtCr3, **LIVE, tested=policies in BY_ALL)
        for policies in ALL
    ),
    *(
        _broken(
            policies,
            "replayed-cr3-resync-skipped",
            CR3,
            "replay:answers",
            NoResyncAtCr3,
            **REPLAY,
            tested=policies in BY_ALL,
        )
        for policies in ALL
    ),
)
