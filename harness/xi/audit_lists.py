"""The part of the audit that is about lists and counts rather than entries. Ids are explained in `harness.xi.audit`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from harness.engine import AuditFailure, Words
from harness.x86.bits import PTE_ADDR, PTE_PS
from harness.xi.backlinks import HEAD
from harness.xi.roles import ROOT_LEVEL, Kind, root_role
from harness.xi.watch import MAX_BASES, guest_rights

if TYPE_CHECKING:
    from harness.xi.engine import XiEngine

_ADDR = np.uint64(PTE_ADDR)


def audit_lists(engine: XiEngine) -> list[AuditFailure]:
    """Backlinks, pool, hash, guards, orphans, dirty marks, aliases, p2m."""
    out: list[AuditFailure] = []
    _audit_backlinks(engine, out)
    _audit_pool(engine, out)
    _audit_hash(engine, out)
    _audit_guards(engine, out)
    _audit_tree(engine, out)
    _audit_p2m(engine, out)
    return out


def _audit_backlinks(engine: XiEngine, out: list[AuditFailure]) -> None:
    """`backlink-bijection`: every SPTE that is not empty is on the list of its target, and nothing else is."""

    def fail(what: str, words: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
        places = ", ".join(f"SPTI {w >> 11} SPTE {w & 511}" for w in words[:4].tolist())
        out.append(AuditFailure("backlink-bijection", f"{what}: {places}"))

    pages = engine.pool_memory.words.reshape(-1, 2048)
    spts = pages[:, :512]
    backlinks = engine.pool_memory.signed.reshape(-1, 2048)[:, 1024:].reshape(-1, 512, 2)
    levels = np.array([spti.level if spti.role is not None else 0 for spti in engine.sptis], np.int64)
    in_use = levels > 0
    used = (spts != 0) & in_use[:, None]
    stray = (backlinks != 0).any(axis=2) & ~used
    if stray.any():
        k, i = np.nonzero(stray)
        fail("a backlink without an SPTE", k * 2048 + i)
    k, i = np.nonzero(used)
    if not len(k):
        if engine.links.heads.tolist().count(0) != engine.links.slots:
            out.append(AuditFailure("backlink-bijection", "a list has a head and no SPTE"))
        return
    words = k * 2048 + i
    sptes = spts[k, i]
    level = levels[k]
    slots = _slots(engine, sptes, level)
    after, before = backlinks[k, i, 0], backlinks[k, i, 1]
    if (before == 0).any():
        fail("an SPTE is on no list", words[before == 0])
        return
    heads = np.frombuffer(engine.links.heads, np.int64)
    number = np.full(engine.pool_memory.words.size, -1, np.int64)  # word -> place in `words`
    number[words] = np.arange(len(words))
    first = before >= HEAD
    named = before[first] ^ HEAD
    wrong = (named >= engine.links.slots) | (named != slots[first])
    if wrong.any():
        fail("an SPTE heads the list of another target", words[first][wrong])
        return
    if (heads[named] != words[first] + 1).any():
        fail("an SPTE is not the head that it says it is", words[first][heads[named] != words[first] + 1])
    if np.count_nonzero(heads) != np.count_nonzero(first):
        out.append(AuditFailure("backlink-bijection", "a list's head is not an SPTE that knows it"))
    for name, link in (("previous", np.where(first, 0, before)), ("next", after)):
        linked = np.flatnonzero(link != 0)
        other = link[linked] - 1
        ok = (other >= 0) & (other < number.size)
        place = np.where(ok, number[np.where(ok, other, 0)], -1)
        ok &= place >= 0
        back = (after if name == "previous" else before)[place]
        ok &= (back == words[linked] + 1) & (slots[place] == slots[linked])
        if not ok.all():
            fail(f"the {name} node of a list does not fit", words[linked[~ok]])
            return
    # What is left is paths and rings; on a ring no SPTE ever leads to a head.
    up = np.where(first, np.arange(len(words)), number[np.where(first, 0, before - 1)])
    for _ in range(len(words).bit_length()):
        up = up[up]
    if not first[up].all():
        fail("a list is a ring without a head", words[~first[up]])


def _slots(
    engine: XiEngine, sptes: Words, level: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The slot of each SPTE's target, from its address alone; -1 for an address that is nobody's."""
    frames = engine.config.frames
    base_2m = frames
    base_1g = base_2m + -(-frames // 512)
    base_parents = base_1g + -(-frames // (512 * 512))
    mfn = ((sptes & _ADDR) >> np.uint64(12)).view(np.int64)
    leaf = (level == 1) | ((sptes & np.uint64(PTE_PS)) != 0)
    known = mfn < engine.memory.frames
    gfn = np.where(leaf & known, engine.p2m.m2p[np.where(known, mfn, 0)], -1)
    child = (mfn - engine.config.pool_base_mfn) >> 2
    by_level = np.select([level == 1, level == 2], [gfn, base_2m + (gfn >> 9)], base_1g + (gfn >> 18))
    return np.where(leaf, np.where(gfn >= 0, by_level, -1), base_parents + child)


def _audit_pool(engine: XiEngine, out: list[AuditFailure]) -> None:
    pool = engine.pool_memory
    places = Counter([*pool.clean, *pool.unclean, *pool.lru])
    if sorted(places) != list(range(len(pool))) or any(n != 1 for n in places.values()):
        out.append(AuditFailure("pool-conservation", f"{len(pool)} SPTIs, on lists: {sum(places.values())}"))
    for k in pool.lru:
        if pool.sptis[k].role is None:
            out.append(AuditFailure("pool-conservation", f"SPTI {k} is in use without a role"))
    for k in (*pool.clean, *pool.unclean):
        if pool.sptis[k].role is not None:
            out.append(AuditFailure("pool-conservation", f"SPTI {k} is free and has the role {pool.sptis[k].role}"))
    clean = list(pool.clean)
    pages = pool.words.reshape(-1, 2048)
    for k in (clean[i] for i in np.flatnonzero(pages[clean, :1024].any(axis=1)).tolist()):
        out.append(AuditFailure("zeroed-is-zero", f"SPTI {k} is on the zeroed free list and is not zero"))


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
