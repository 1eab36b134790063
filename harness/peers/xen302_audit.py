"""What the `xen302` engine keeps beside its tables, recomputed from them; after `_check_pagetable` of Xen 3.0.2.

`references`: a page has one for each SPTE that leads to it, each record of one of its SPTEs, and for being a root; none
is in use without. `writable-refs`: of each frame as many leaves are writable as were counted. `range`: no SPTE outside
what a page is known to use. `promoted`: page tables are the frames that have a shadow, write-protected while in sync.
`snapshot`: a table out of sync has one, which covers every SPTE in use, and of which they say the truth: where e is its
entry, s.P => e.P and e.A, leaf s.RW => e.D, and the meaning of s is that of e. `recorded`: what lets a table be written
is on the list. (Snapshots lie outside the machine's memory, and belong to no guest by that.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from harness.engine import AuditFailure
from harness.peers.pages import ShadowPage
from harness.peers.stale import is_stale
from harness.x86.bits import PTE_A, PTE_ADDR, PTE_D, PTE_P, PTE_RW
from harness.xi.roles import Kind

if TYPE_CHECKING:
    from harness.peers.xen302 import Xen302Engine


def audit_xen302(engine: Xen302Engine) -> list[AuditFailure]:
    """All of it that does not hold."""
    out = [AuditFailure("references", text) for text in _references(engine)]
    out += [AuditFailure("range", text) for text in _ranges(engine)]
    out += [AuditFailure("promoted", text) for text in _promoted(engine)]
    out += [AuditFailure("snapshot", text) for text in _snapshots(engine)]
    counted, recorded = _writable(engine)
    out += [AuditFailure("writable-refs", text) for text in counted]
    out += [AuditFailure("recorded", text) for text in recorded]
    return out


def _references(engine: Xen302Engine) -> Iterator[str]:
    pool = engine.pool_pages
    found = Counter(word >> 9 for word in engine.out_of_sync.writable) + Counter(engine.roots)
    for page in pool.in_use.values():
        if page.level > 1:
            children = (page.spt[page.spt != 0] & np.uint64(PTE_ADDR)) >> np.uint64(12)
            found.update((children.view(np.int64) - pool.base_mfn).tolist())
    for number, page in pool.in_use.items():
        if not found[number] or engine.references[number] != found[number]:
            yield f"page {number} ({page.role}) has {found[number]} references, counted {engine.references[number]}"
    for number in found.keys() - pool.in_use.keys():
        yield f"page {number} is free, and has {found[number]} references"


def _ranges(engine: Xen302Engine) -> Iterator[str]:
    for number, page in engine.pool_pages.in_use.items():
        used = page.used
        if used and not engine.low[number] <= used[0] <= used[-1] <= engine.high[number]:
            yield f"page {number} uses SPTEs {used[0]}-{used[-1]}, known: {engine.low[number]}-{engine.high[number]}"


def _promoted(engine: Xen302Engine) -> Iterator[str]:
    pages = engine.pool_pages.in_use.values()
    guest = [page for page in pages if page.kind is Kind.GUEST]
    if Counter(page.gfn for page in guest) != Counter({gfn: len(pages) for gfn, pages in engine.of_gfn.items()}):
        yield "the pages of each frame are not those in use"
    tables = set()
    for page in guest:
        wanted = page.rules is not None and not page.rules.latched and engine.p2m.backed(page.gfn)
        if bool(engine.guards[page.index]) != wanted:
            yield f"page {page.index} ({page.role}) guards its table: {not wanted}"
        if wanted:
            tables.add(page.gfn)
    if set(np.flatnonzero(engine.shadowed).tolist()) != tables:
        yield "the page tables are not the frames with a shadow"
    if set(np.flatnonzero(engine.protected).tolist()) != tables - engine.out_of_sync.tables.keys():
        yield "write-protected are not the page tables in sync"


def _snapshots(engine: Xen302Engine) -> Iterator[str]:
    for gfn, snapshot in engine.out_of_sync.tables.items():
        if not engine.shadowed[gfn]:
            yield f"gfn {gfn:#x} is out of sync, and no page table"
        for page in engine.of_gfn.get(gfn, ()) if not snapshot.late else ():
            if engine.guards[page.index]:
                yield from _reflected(engine, page)


def _reflected(engine: Xen302Engine, page: ShadowPage) -> Iterator[str]:
    """Whether the SPTEs of `page` say what its table's snapshot says."""
    snapshot = engine.out_of_sync.tables[page.gfn]
    part = snapshot.entries[page.first : page.first + page.count].astype(np.uint64)
    where = f"page {page.index} ({page.role})"
    used = page.spt.nonzero()[0]
    numbers = page.first + (used >> page.halved)
    if ((numbers < snapshot.first) | (numbers > snapshot.last)).any():
        yield f"{where}: an SPTE in use is not in the snapshot of {snapshot.first}-{snapshot.last}"
        return
    sptes, entries = page.spt[used], part[used >> page.halved]
    unseen = (sptes & np.uint64(PTE_P) != 0) & (entries & np.uint64(PTE_P | PTE_A) != PTE_P | PTE_A)
    if page.level == 1:
        unseen |= (sptes & np.uint64(PTE_RW) != 0) & (entries & np.uint64(PTE_D) == 0)
    if is_stale(engine, page, part) or unseen.any():
        yield f"{where} does not say what the snapshot of its table says"


def _writable(engine: Xen302Engine) -> tuple[list[str], list[str]]:
    found: Counter[int] = Counter()
    recorded = set(engine.out_of_sync.writable)
    missing = []
    for page in engine.pool_pages.in_use.values():
        for index in np.flatnonzero(page.spt & np.uint64(PTE_RW)).tolist() if page.level == 1 else ():
            spte = int(page.spt[index])
            frame = (spte & PTE_ADDR) >> 12
            gfn = int(engine.p2m.m2p[frame]) if frame < len(engine.p2m.m2p) else -1
            found[gfn] += 1
            if gfn >= 0 and engine.shadowed[gfn] and page.base + index not in recorded:
                missing.append(f"page {page.index} SPTE {index} lets table {gfn:#x} be written, unrecorded")
    counts = {gfn: int(engine.search.count[gfn]) for gfn in np.flatnonzero(engine.search.count).tolist()}
    wrong = [f"gfn {gfn:#x}" for gfn in counts.keys() | found.keys() if counts.get(gfn, 0) != found[gfn]]
    return [f"the counts of writable leaves are wrong: {wrong[:4]}"] if wrong else [], missing
