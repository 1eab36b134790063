"""The audit of snapshots, in the form that holds under each policy: where each is, and that it is what it must be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness.engine import AuditFailure, Words
from harness.x86.bits import ENTRIES, PTE_A, PTE_D
from harness.xi.pool import Spti
from harness.xi.roles import Kind
from harness.xi.snapshots import DynamicSnapshots, page_sum

if TYPE_CHECKING:
    from harness.xi.engine import XiEngine


def snapshot_page(engine: XiEngine, spti: Spti) -> Words:
    """The page that is the snapshot of an SPTI in use, from where its policy has it."""
    return _PAGES[engine.snapshots.policy](engine, spti)


def table_changed(engine: XiEngine, spti: Spti, first: int, entries: Any) -> list[str]:
    """How the guest table of an in-sync SPTI differs, A and D aside, from what it was. entries: the snapshot of the
    part that begins at entry `first`."""
    return _CHANGED[engine.snapshots.policy](engine, spti, first, entries)


def audit_snapshots(engine: XiEngine) -> list[AuditFailure]:
    """That pages of snapshots are where they must be, and nowhere else."""
    return [AuditFailure("snapshot", what) for what in _PLACES[engine.snapshots.policy](engine)]


def _latched(spti: Spti) -> bool:
    return spti.role is not None and spti.role.mode == "pae" and spti.role.level == 3


# A page for each SPTI, for life.


def _reserved_page(engine: XiEngine, spti: Spti) -> Words:
    base = spti.index * 2048
    page: Words = engine.pool_memory.words[base + 512 : base + 1024]
    return page


def _reserved_changed(engine: XiEngine, spti: Spti, first: int, entries: Any) -> list[str]:
    page: Any = engine.memory.page(engine.p2m.to_mfn[spti.gfn])
    now = (page.view(np.uint32) if entries.dtype == np.uint32 else page)[first : first + len(entries)]
    differ = np.flatnonzero((now ^ entries) & ~np.array(PTE_A | PTE_D, entries.dtype))
    return [
        f"SPTI {spti.index} is in sync, but entry {first + i} of gfn {spti.gfn:#x} is {int(now[i]):#x} "
        f"and {int(entries[i]):#x} in the snapshot"
        for i in differ.tolist()
    ]


# A page for each table out of sync.


def _dynamic(engine: XiEngine) -> DynamicSnapshots:
    assert isinstance(engine.snapshots, DynamicSnapshots)
    return engine.snapshots


def _dynamic_page(engine: XiEngine, spti: Spti) -> Words:
    store = _dynamic(engine)
    number = store.page_of[spti.index]
    if number >= 0:
        page: Words = store.pages[number]
        return page
    if spti.synced and engine.p2m.backed(spti.gfn):
        return engine.memory.page(engine.p2m.to_mfn[spti.gfn])
    return np.zeros(ENTRIES, np.uint64)


def _dynamic_changed(engine: XiEngine, spti: Spti, first: int, entries: Any) -> list[str]:
    del first, entries
    if page_sum(engine.memory.page(engine.p2m.to_mfn[spti.gfn])) == _dynamic(engine).sums[spti.index]:
        return []
    return [f"SPTI {spti.index} is in sync, but gfn {spti.gfn:#x} has changed since"]


def _dynamic_places(engine: XiEngine) -> list[str]:
    store, out = _dynamic(engine), []
    for spti in engine.sptis:
        guest = spti.role is not None and spti.kind is Kind.GUEST
        needs = guest and (_latched(spti) or not (spti.synced or spti.fresh))
        if (store.page_of[spti.index] >= 0) != needs:
            state = "in sync" if spti.synced else "out of sync" if guest else "without a guest table"
            out.append(f"SPTI {spti.index} is {state} and has {'no' if needs else 'a'} page for a snapshot")
        if guest and spti.fresh and not spti.synced and not _latched(spti) and spti.spt.any():
            out.append(f"SPTI {spti.index} was never synchronised, and has SPTEs")
    held = [number for number in store.page_of if number >= 0]
    if Counter([*held, *store.free]) != Counter(range(len(store.pages))) or store.pages_held != len(held):
        out.append(f"{len(held)} pages are held, {len(store.free)} free, {store.pages_held} counted")
    if engine.pool_memory.words.reshape(-1, 2048)[list(engine.pool_memory.lru), 512:1024].any():
        out.append("a reserved page is in use")
    return out


_PAGES: Final[Mapping[str, Callable[[XiEngine, Spti], Words]]] = {
    "reserved": _reserved_page,
    "dynamic": _dynamic_page,
}
_CHANGED: Final[Mapping[str, Callable[[XiEngine, Spti, int, Any], list[str]]]] = {
    "reserved": _reserved_changed,
    "dynamic": _dynamic_changed,
}
_PLACES: Final[Mapping[str, Callable[[XiEngine], list[str]]]] = {
    "reserved": lambda _: [],
    "dynamic": _dynamic_places,
}
