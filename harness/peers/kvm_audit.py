"""What the `kvm` engine keeps beside its tables, recomputed from them.

`rmap`: every leaf SPTE is on exactly its frame's reverse map, and nothing else is (K3, and "number of reverse maps =
number of SPTEs"); `parents`: the same of non-leaf SPTEs and the pages that they lead to. K1: an unsync page is of level
1, or was opened in place of emulated stores. K4: every SPTE that leads to something unsync is marked in the bitmap of
its page. `guards`: the counts of pages that protect a frame, and of tables inside large frames, are those of the pages.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from harness.engine import AuditFailure
from harness.peers.rmap import Rmap
from harness.x86.bits import PTE_ADDR, PTE_PS
from harness.xi.roles import Kind

if TYPE_CHECKING:
    from harness.peers.kvm import KvmEngine


def audit_kvm(engine: KvmEngine) -> list[AuditFailure]:
    """All of it that does not hold."""
    out: list[AuditFailure] = []
    leaves: set[tuple[object, int]] = set()
    parents: set[tuple[object, int]] = set()
    for page in engine.pool_pages.in_use.values():
        for index, spte in zip(page.used, page.spt[page.spt != 0].tolist(), strict=True):
            word, frame = page.base + index, (spte & PTE_ADDR) >> 12
            if page.level == 1 or spte & PTE_PS:
                gfn = int(engine.p2m.m2p[frame]) if frame < len(engine.p2m.m2p) else -1
                leaves.add(((gfn, page.level), word))
            else:
                parents.add((frame - engine.pool_pages.base_mfn, word))
    if wrong := _differ(engine.rmap, leaves):
        out.append(AuditFailure("rmap", wrong))
    if wrong := _differ(engine.parents, parents):
        out.append(AuditFailure("parents", wrong))
    for child, word in parents:
        assert isinstance(child, int)
        below = engine.unsync[child] or engine.unsync_children[child]
        if below and not engine.unsync_children[word >> 9] >> (word & 511) & 1:
            out.append(
                AuditFailure("K4", f"page {word >> 9} does not know that something below SPTE {word & 511} is unsync")
            )
    _audit_counts(engine, out)
    return out


def _differ(kept: Rmap, found: set[tuple[object, int]]) -> str:
    """How the lists and the SPTEs differ, "" if they do not."""
    differ = kept.everything() ^ found
    return f"{len(differ)} SPTEs are kept or there, not both: {sorted(map(str, differ))[:4]}" if differ else ""


def _audit_counts(engine: KvmEngine, out: list[AuditFailure]) -> None:
    protected: Counter[int] = Counter()
    tables: Counter[tuple[int, int]] = Counter()
    for page in engine.pool_pages.in_use.values():
        unsync, guards = engine.unsync[page.index], engine.guards[page.index]
        if unsync and (not guards or (page.level > 1 and page.index not in engine.opened)):
            out.append(AuditFailure("K1", f"page {page.index} ({page.role}) is unsync"))
        latched = page.rules is not None and page.rules.latched
        wanted = page.kind is Kind.GUEST and not latched and engine.p2m.backed(page.gfn)
        if bool(guards) != wanted:
            out.append(AuditFailure("guards", f"page {page.index} ({page.role}) guards its table: {bool(guards)}"))
        if guards:
            protected[page.gfn] += not unsync
            tables.update(((2, page.gfn >> 9), (3, page.gfn >> 18)))
    for gfn in {*np.flatnonzero(engine.protected).tolist(), *protected}:
        if engine.protected[gfn] != protected[gfn]:
            out.append(AuditFailure("guards", f"gfn {gfn:#x} is protected by {protected[gfn]} pages"))
    kept = {(level, i): n for level, counts in engine.shadowed.items() for i, n in enumerate(counts) if n}
    if kept != dict(tables):
        out.append(AuditFailure("guards", "the counts of tables inside large frames are wrong"))
