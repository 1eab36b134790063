"""Mutations of `xen302`: the search for writable mappings, records and snapshots of what is out of sync, references."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.engine import EngineConfig, MachineMemory, Words
from harness.peers.out_of_sync import Ints, Snapshot
from harness.peers.pages import ShadowPage
from harness.peers.write_search import WriteSearch
from harness.peers.xen302 import Xen302Engine
from harness.xi.guest_walk import Walk
from tests.mutations.mutation import Mutation, Way, caught
from tests.mutations.peer_rows import FEW, mutations_of
from tests.mutations.scripts import linked_late

# The search.


def search(broken: type[WriteSearch]) -> type[Xen302Engine]:
    class Searching(Xen302Engine):
        def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
            super().__init__(config, memory)
            self.search.__class__ = broken

    return Searching


class BackPointerTrusted(WriteSearch):
    """The SPTE that mapped the frame last is taken for the only one, whatever the count says."""

    def take_all(self, gfn: int) -> None:
        word = int(self.back[gfn])
        if self.count[gfn] and word >= 0:
            self.take(word)


class TableTrusted(WriteSearch):
    """The search ends with the table of the SPTE that mapped the frame last."""

    def take_all(self, gfn: int) -> None:
        word = int(self.back[gfn])
        if word >= 0 and self.count[gfn]:
            page = self._pool.owner(word)
            self._take_in(page, np.uint64(self._p2m.to_mfn[gfn] << 12 | 2), 512)


class Miscounted(WriteSearch):
    """A leaf that goes is counted still."""

    def change(self, gfn: int, old: int, new: int) -> None:
        super().change(gfn, 0, new) if new else None


# Out of sync.


class Unrecorded(Xen302Engine):
    """The SPTE by which a table is let be written is not noted."""

    def _record(self, va: int) -> None:
        pass


class RecordedKept(Xen302Engine):
    """The SPTEs that were noted keep write access when all is synchronised."""

    def _take_recorded(self) -> None:
        words, self.out_of_sync.writable = self.out_of_sync.writable, []
        for word in words:
            self.release(self.pool_pages.owner(word))


class Short(Snapshot):
    """The last entry in use is not copied."""

    def __init__(self, table: npt.NDArray[np.uint32] | Words, first: int, last: int, late: bool) -> None:
        super().__init__(table, first, last - 1, late)


class Vouching(Snapshot):
    """One that was taken too late is believed."""

    def __init__(self, table: npt.NDArray[np.uint32] | Words, first: int, last: int, late: bool) -> None:
        super().__init__(table, first, last, False)


class LastForgotten(Snapshot):
    """The last entry that changed is taken for one that did not."""

    def changed(self, first: int, now: Words) -> Ints:
        return super().changed(first, now)[:-1]


def snapshots(broken: type[Snapshot]) -> type[Xen302Engine]:
    class Keeping(Xen302Engine):
        def store_to_table(self, gfn: int, walk: Walk | None) -> None:
            super().store_to_table(gfn, walk)
            right, (first, last) = self.out_of_sync.tables[gfn], (0, 0)
            first, last = right.first, right.last
            table = self._table(self.p2m.to_mfn[gfn])
            self.out_of_sync.tables[gfn] = broken(table, first, last, right.late)

    return Keeping


class RangeUnkept(Xen302Engine):
    """The span of SPTEs in use of a table does not grow downward."""

    def _use(self, number: int, index: int) -> None:
        self.high[number] = max(self.high[number], index)
        if self.low[number] == 512:
            self.low[number] = index


class FlushIgnored(Xen302Engine):
    """Nothing is synchronised but at a fault."""

    def sync_all(self) -> None:
        if self.on_fault:
            super().sync_all()


class NeverStale(Xen302Engine):
    """No address is found to be out of date."""

    def _is_stale(self, va: int) -> bool:
        return False


class LinkedStale(Xen302Engine):
    """What is linked at another address is not synchronised."""

    def page_found(self, page: ShadowPage) -> None:
        pass


# Tables and references.


class WriteAccessKept(Xen302Engine):
    """What becomes a page table stays writable where it is mapped."""

    def write_protect(self, gfn: int) -> None:
        self.protected[gfn] = 1
        self.version += 1


class StaysPromoted(Xen302Engine):
    """A page table that has no shadow any more is one still."""

    def _demote(self, gfn: int) -> None:
        self.out_of_sync.tables.pop(gfn, None)


class Unreferenced(Xen302Engine):
    """A second SPTE that leads to a table is not counted."""

    def child_set(self, page: ShadowPage, word: int, child: ShadowPage) -> None:
        super().child_set(page, word, child)
        if child.level == 1 and self.references[child.index] == 2:
            self.references[child.index] = 1


class NeverReleased(Xen302Engine):
    """A table of level 1 keeps a reference when an SPTE that led to it goes."""

    def child_gone(self, page: ShadowPage, word: int, child: ShadowPage) -> None:
        if child.level > 1:
            super().child_gone(page, word, child)


def _xen(name: str, breaks: str, by: str, where: str, engine: type[Xen302Engine], **more: Any) -> Mutation:
    guest, _, paging = where.partition(" ")
    return Mutation(f"xen302: {name}", breaks, caught(*by.split()), guest, paging, engine, **more)


def _live(name: str, breaks: str, by: str, where: str, engine: type[Xen302Engine], **more: Any) -> Mutation:
    return _xen(name, breaks, by, where, engine, **{"way": Way.LIVE, "probes": FEW, **more})


def _replayed(name: str, breaks: str, by: str, engine: type[Xen302Engine], **more: Any) -> Mutation:
    return _xen(name, breaks, by, "basic long4", engine, **{"way": Way.REPLAY, **more})


TRUSTED: Final = "the back pointer is believed, and not the count"

XEN302: Final = (
    # It has no large pages; and a round of the dirty log frees all shadows, which hides what INVLPG has left.
    *mutations_of(Xen302Engine, without="migrated-large-unlogged replayed-invlpg-skipped"),
    _xen("back-pointer-trusted", TRUSTED, "audit:K5", "switch long4", search(BackPointerTrusted)),
    _xen("table-trusted", "the search ends with one table", "audit:K5", "switch long4", search(TableTrusted)),
    _xen(
        "miscounted",
        "a leaf that goes is counted still",
        "audit:writable-refs",
        "basic long4",
        search(Miscounted),
        tested=True,
    ),
    _xen("late-believed", "a snapshot taken too late is believed", "probe", "basic long4", snapshots(Vouching)),
    _xen("flush-ignored", "a CR3 load synchronises nothing", "probe", "basic long4", FlushIgnored),
    _xen("never-stale", "INVLPG finds nothing out of date", "probe", "stale nopae", NeverStale),
    _xen("write-access-kept", "a new table stays writable", "audit:K5", "switch long4", WriteAccessKept),
    _xen("stays-promoted", "a table that is none any more is one", "audit:promoted", "switch nopae", StaysPromoted),
    _xen("unreferenced", "a second SPTE to a table is uncounted", "audit:references", "switch nopae", Unreferenced),
    _xen("never-released", "a table keeps a reference", "audit:references", "switch nopae", NeverReleased),
    _xen("linked-stale", "a table is linked anew and stays stale", "assertion", "", LinkedStale, script=linked_late),
    _live("live-unrecorded", "a writable table is not noted", "audit:recorded", "basic long4", Unrecorded),
    _live("live-recorded-kept", "what was noted stays writable", "audit:K5", "basic long4", RecordedKept, tested=True),
    _live("live-short-snapshot", "a snapshot is too short", "audit:snapshot", "basic long4", snapshots(Short)),
    _live("live-range-unkept", "a table's span does not grow", "audit:range", "basic long4", RangeUnkept),
    _live("live-last-forgotten", "a change is not found", "probe", "basic long4", snapshots(LastForgotten)),
    _live("live-flush-ignored", "a CR3 load synchronises nothing", "probe", "basic long4", FlushIgnored),
    _replayed("replayed-recorded-kept", "what was noted stays writable", "replay:audits", RecordedKept, tested=True),
    _replayed("replayed-last-forgotten", "a change is not found", "replay:audits", snapshots(LastForgotten)),
    _replayed("repeated-unrecorded", "a writable table is not noted", "replay:audits", Unrecorded, way=Way.REPEAT),
)
