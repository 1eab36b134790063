"""The part of the audit that is about lists and counts rather than entries. Ids are explained in `harness.xi.audit`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from harness.engine import AuditFailure
from harness.x86.bits import PTE_ADDR, PTE_PS
from harness.xi.audit_links import audit_links
from harness.xi.audit_pool import audit_pool
from harness.xi.roles import ROOT_LEVEL, Kind, root_role
from harness.xi.watch import MAX_BASES, guest_rights

if TYPE_CHECKING:
    from harness.xi.engine import XiEngine


def audit_lists(engine: XiEngine) -> list[AuditFailure]:
    """Backlinks, pool, hash, guards, orphans, dirty marks, aliases, p2m."""
    out: list[AuditFailure] = []
    audit_links(engine, out)
    audit_pool(engine, out)
    _audit_hash(engine, out)
    _audit_guards(engine, out)
    _audit_tree(engine, out)
    _audit_p2m(engine, out)
    return out


def _audit_hash(engine: XiEngine, out: list[AuditFailure]) -> None:
    in_use = [spti for spti in engine.sptis if spti.role is not None]
    roles = Counter(spti.role for spti in in_use)
    for role, count in roles.items():
        if count > 1:
            out.append(AuditFailure("H1", f"{count} SPTIs have the role {role}"))
    for spti in in_use:
        assert spti.role is not None
        if engine.by_role.get(spti.role) != spti.index:
            out.append(AuditFailure("H1", f"SPTI {spti.index} is not found by its role {spti.role.text}"))
        if spti.kind is Kind.GUEST and spti.index not in engine.gpts.get(spti.role.gfn, ()):
            out.append(AuditFailure("H1", f"SPTI {spti.index} is not among those of gfn {spti.role.gfn:#x}"))
    root = engine.root_spti
    if root is not None and root.role != root_role(engine.state):
        out.append(AuditFailure("root", f"SPTI {root.index} is the root in use and stands for {root.role}"))
    listed = sum(len(tables) for tables in engine.gpts.values())
    if len(engine.by_role) != len(in_use) or listed != sum(spti.kind is Kind.GUEST for spti in in_use):
        out.append(AuditFailure("H1", "the hash or the lists of guest tables name SPTIs that are not in use"))


def _audit_guards(engine: XiEngine, out: list[AuditFailure]) -> None:
    frames = engine.config.frames
    wanted = np.zeros(frames, np.int64)
    for spti in engine.sptis:
        latched = spti.role is not None and spti.role.mode == "pae" and spti.role.level == 3
        if spti.role is None or spti.kind is not Kind.GUEST or latched or not spti.synced:
            continue
        if engine.p2m.backed(spti.role.gfn):
            wanted[spti.role.gfn] += 1
    for gfn in np.flatnonzero(wanted != engine.guarded_array)[:8].tolist():
        out.append(
            AuditFailure(
                "guards", f"gfn {gfn:#x}: {int(wanted[gfn])} in-sync SPTIs, guarded {engine.guarded[gfn]} times"
            )
        )
    for size, counts in ((512, engine.guarded_2m), (512 * 512, engine.guarded_1g)):
        padded = np.zeros(len(counts) * size, np.int64)
        padded[:frames] = wanted
        if padded.reshape(-1, size).sum(axis=1).tolist() != counts:
            out.append(AuditFailure("guards", f"the sums over runs of {size} frames are wrong"))


def _audit_tree(engine: XiEngine, out: list[AuditFailure]) -> None:
    """`orphans`, K4 and `alias-bases`, from the links down as the tables have them."""
    has_parent: set[int] = set()
    bases: list[set[int]] = [set() for _ in engine.sptis]
    overflow = False
    for level in range(5, 0, -1):
        for spti in engine.sptis:
            if spti.role is None or spti.level != level:
                continue
            if level == ROOT_LEVEL[spti.role.mode]:
                bases[spti.index] = {3}
            if not spti.synced and not engine.dirty[spti.index]:
                out.append(AuditFailure("K4", f"SPTI {spti.index} is out of sync and not marked"))
            if level == 1:
                continue
            used = np.flatnonzero((spti.spt != 0) & ((spti.spt & np.uint64(PTE_PS)) == 0))
            for index in used.tolist():
                spte = int(spti.spt[index])
                child = ((spte & PTE_ADDR) >> 12) - engine.config.pool_base_mfn >> 2
                if not 0 <= child < len(engine.sptis):
                    continue  # X3 says so
                has_parent.add(child)
                if engine.dirty[child] and not engine.dirty[spti.index]:
                    out.append(
                        AuditFailure("K4", f"SPTI {child} waits for a resync that its parent {spti.index} denies")
                    )
                if len(bases[child]) > MAX_BASES or len(bases[spti.index]) > MAX_BASES:
                    overflow = True
                    continue
                step = index << 3 + 9 * level + 2
                rights = guest_rights(spte)
                bases[child].update((base + step) & (~3 | rights) for base in bases[spti.index])
    for spti in engine.sptis:
        if spti.role is None:
            continue
        root = spti.level == ROOT_LEVEL[spti.role.mode]
        if (spti.index in engine.orphans) != (not root and spti.index not in has_parent):
            out.append(AuditFailure("orphans", f"SPTI {spti.index} ({spti.role.text}) is wrongly (not) an orphan"))
        if engine.watching and not overflow and engine.aliases.bases_of(spti.index) != bases[spti.index]:
            out.append(AuditFailure("alias-bases", f"SPTI {spti.index} ({spti.role.text}): addresses out of date"))


def _audit_p2m(engine: XiEngine, out: list[AuditFailure]) -> None:
    table, m2p = engine.p2m.table, engine.p2m.m2p
    backed = np.flatnonzero(table >= 0)
    known = backed[table[backed] < len(m2p)]
    if (m2p[table[known]] != known).any() or np.count_nonzero(m2p >= 0) != len(backed):
        out.append(AuditFailure("P1", "m2p is not the inverse of p2m"))
    base = engine.config.pool_base_mfn
    if ((table >= base) & (table < base + engine.config.pool_frames)).any():
        out.append(AuditFailure("X4", "a guest frame lies in the pool"))
