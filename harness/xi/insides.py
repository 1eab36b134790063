"""The insides of XI for who debugs it: tables entry by entry, backlinks, snapshots, the pool, the dirty log.

The engine may be broken, that being why somebody looks. So no list is followed past what it holds twice, no SPTE
blindly, and what contradicts the rest is named (`wrong` in the records, one line each). All records are JSON-able.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.engine import Words
from harness.x86.bits import PTE_ADDR, PTE_PS, PTE_RW
from harness.x86.modes import MODES
from harness.xi.asi import Asi
from harness.xi.describe import listed_leaves, spte_text, spti_state
from harness.xi.explain import contradiction, guest_entry, resync_decision, target_of
from harness.xi.links import Ints
from harness.xi.mappings import MOST, climb, guest_letters
from harness.xi.pool import FRAMES_PER_SPTI, LOW_WATER, SNAPSHOT, Spti
from harness.xi.resync import Resynchronisation
from harness.xi.roles import GUEST, ROOT_LEVEL

Mask = npt.NDArray[np.bool_]

MOST_BASES: Final = 64
SHOWN: Final = 8  # SPTIs at the old end of the LRU list that are described
_POOL_COUNTERS: Final = ("made", "found", "recycled", "zeroed_idle", "zeroed_inline", "eager_truncated")
_SHARING_COUNTERS: Final = ("taken_by_others", "taken_from_others")
_ADDR, _RW, _PS = (np.uint64(mask) for mask in (PTE_ADDR, PTE_RW, PTE_PS))


def describe_table(xi: Resynchronisation, number: int) -> dict[str, Any] | None:
    """SPTI `number` with its entries; None when there is none of that number.

    A free one: spti, mfn, state, zeroed; one that another domain of a shared pool uses: spti, mfn, state. One in use,
    besides what `_summary` has: kind (``guest`` ...), level, gfn, guest_mfn (of the guest table, None without a frame),
    latched, write_protects, lru (how many were used less recently, None if it is not on that list), bases (the first
    MOST_BASES addresses at which it begins, in any root), leading_here (spti, index, level, role, spte, text of each
    SPTE that does), entries (see `describe_entry`: those with an SPTE, and those that differ from the snapshot).
    """
    if not 0 <= number < len(xi.sptis):
        return None
    spti = xi.sptis[number]
    if spti.role is None:
        if number in xi.pool_memory.elsewhere:
            return {"spti": number, "mfn": spti.mfn, "state": "another domain's"}
        return {"spti": number, "mfn": spti.mfn, "state": "free", "zeroed": number in xi.pool_memory.clean}
    used = spti.spt != 0
    if spti.kind is GUEST:
        changed = changed_entries(xi, spti)
        used[: len(changed) << spti.halved] |= np.repeat(changed, 1 << spti.halved)
    leading = xi.links.listed(xi.links.parents(number))
    frame = xi.p2m.to_mfn[spti.gfn] if spti.kind is GUEST and xi.p2m.backed(spti.gfn) else None
    lru = list(xi.pool_memory.lru)
    return _summary(xi, spti) | {
        "kind": spti.kind.name.lower(),
        "level": spti.level,
        "gfn": spti.gfn,
        "guest_mfn": frame,
        "latched": spti.rules is not None and spti.rules.latched,
        "write_protects": spti.guards and spti.synced,
        "lru": lru.index(number) if number in lru else None,
        "bases": _bases(xi, spti, leading),
        "leading_here": [_place(xi, xi.pool_memory.owner(word), word & 511) for word in leading],
        "entries": [describe_entry(xi, spti, index) for index in used.nonzero()[0].tolist()],
    }


def _summary(xi: Asi, spti: Spti) -> dict[str, Any]:
    """An SPTI in use: spti, mfn (of its SPT), role, state, sptes and parents (how many)."""
    assert spti.role is not None
    return {
        "spti": spti.index,
        "mfn": spti.mfn,
        "role": spti.role.text,
        "state": spti_state(spti),
        "sptes": int(np.count_nonzero(spti.spt)),
        "parents": len(xi.links.listed(xi.links.parents(spti.index))),
    }


def _bases(xi: Asi, spti: Spti, leading: Sequence[int]) -> list[int]:
    """Where the table begins in virtual memory, `leading` being the words of the SPTEs that lead to it."""
    assert spti.role is not None
    if spti.level == ROOT_LEVEL[spti.role.mode]:
        return [0]
    extend = MODES[spti.role.mode].sign_extend
    ways = chain.from_iterable(climb(xi, word) for word in leading)
    return sorted({extend(va) for _, va, _ in islice(ways, MOST_BASES)})


def describe_entry(xi: Resynchronisation, spti: Spti, index: int) -> dict[str, Any]:
    """SPTE `index` of an SPTI in use: index, spte, text; leads: ``gfn`` and how many ``frames`` of a page, or ``spti``
    and its role, or neither. Of a GUEST table also guest_index, then (the snapshot's entry) and now (the guest's).
    wrong: see `harness.engine_views.Explains`."""
    word = spti.base + index
    spte = xi.q[word]
    record: dict[str, Any] = {"index": index, "spte": spte, "text": spte_text(spte), "leads": {}, "wrong": []}
    if spti.kind is GUEST:
        record["guest_index"] = spti.guest_index(index)
        record["then"] = spti.snapshot_entry(index)
        record["now"] = guest_entry(xi, spti, index)
    if spte:
        record["leads"], slot, wrong = target_of(xi, spti, index)
        if not wrong:
            wrong = [what for what in (xi.links.unlinked(word, slot), _unlawful(xi, spti, spte)) if what]
            if spti.kind is GUEST:
                wrong += [what for what in (contradiction(xi, spti, index),) if what]
        record["wrong"] = wrong
    return record


def _unlawful(xi: Asi, spti: Spti, spte: int) -> str:
    """Why a leaf that is writable must not be; "" otherwise."""
    if not spte & PTE_RW or (spti.level > 1 and not spte & PTE_PS):
        return ""
    first, frames = xi.leaf_gfn(spte), 1 << 9 * (spti.level - 1)
    guarded = xi.guarded_array[first : first + frames].nonzero()[0]
    if len(guarded):
        return f"writable, and gfn {first + int(guarded[0]):#x} is a guest table in sync"
    if xi.logging and not xi.logged_array[first : first + frames].all():
        return "writable, and not in the dirty log"
    return ""


def _place(xi: Asi, spti: Spti, index: int) -> dict[str, Any]:
    """One SPTE and the table that holds it."""
    spte = xi.q[spti.base + index]
    role = spti.role.text if spti.role is not None else "free"
    return {
        "spti": spti.index,
        "index": index,
        "level": spti.level,
        "role": role,
        "spte": spte,
        "text": spte_text(spte),
    }


def changed_entries(xi: Resynchronisation, spti: Spti) -> Mask:
    """Which entries of its part of the guest's table differ from the snapshot: bool, one for each entry."""
    assert spti.rules is not None
    page = xi.guest_page(spti)
    now = page.view(np.uint32) if spti.rules.entry_bytes == 4 else page
    return np.asarray(now[spti.first : spti.first + spti.count] != xi.snapshots.entries_of(spti))


def describe_backlinks(xi: Resynchronisation, gfn: int) -> dict[str, Any]:
    """A guest frame and every SPTE that maps it, found once by the frame's lists and once by looking at all SPTEs.

    gfn, mfn (None without a frame); guards (how many SPTIs keep it write-protected); logged (None without dirty
    logging); sptis (numbers of those that shadow it); kept: which SPTEs have a backlink, in words; sptes: spti, index,
    level, role, spte, text, addresses (va, and the guest's rights along the path as letters of ``rwxu``), wrong.
    """
    record: dict[str, Any] = {"gfn": gfn, "mfn": None, "guards": 0, "logged": None, "sptis": [], "sptes": []}
    record["kept"] = xi.links.kept
    if not xi.p2m.backed(gfn):
        return record
    record["mfn"] = mfn = xi.p2m.to_mfn[gfn]
    record["guards"] = xi.guarded[gfn]
    record["logged"] = bool(xi.logged[gfn]) if xi.logging else None
    record["sptis"] = list(xi.gpts.get(gfn, ()))
    lists = [word for word, _ in listed_leaves(xi, gfn)]
    maps = set(leaves_of(xi, mfn))
    for word in [*lists, *sorted(maps.difference(lists))]:
        spti = xi.pool_memory.owner(word)
        place = _place(xi, spti, word & 511) | {"addresses": [], "wrong": []}
        if word not in maps:
            place["wrong"] = ["on the frame's list, and does not map it"]
        else:
            entry = describe_entry(xi, spti, word & 511)
            place |= {"addresses": _addresses(xi, word, gfn), "wrong": entry["wrong"]}
        record["sptes"].append(place)
    return record


def leaves(xi: Asi) -> tuple[Ints, Words, Ints]:
    """All leaf SPTEs of tables in use, armed ones too, found by looking at every one: words, SPTEs, levels."""
    spts = xi.pool_memory.words.reshape(-1, FRAMES_PER_SPTI * 512)[:, :SNAPSHOT]
    levels = np.array([spti.level if spti.role is not None else 0 for spti in xi.sptis], np.int64)
    table = levels[:, None]
    number, index = ((spts != 0) & ((table == 1) | ((table > 1) & (spts & _PS != 0)))).nonzero()
    return number * (FRAMES_PER_SPTI * 512) + index, spts[number, index], levels[number]


def leaves_of(xi: Asi, mfn: int) -> list[int]:
    """The words of all SPTEs, armed ones too, that map machine frame `mfn`, alone or in a large page."""
    words, sptes, levels = leaves(xi)
    first = (sptes & _ADDR).view(np.int64) >> 12
    found: list[int] = words[(first <= mfn) & (mfn < first + (1 << 9 * (levels - 1)))].tolist()
    return found


def _addresses(xi: Asi, word: int, gfn: int) -> list[tuple[int, str]]:
    """Where the SPTE at `word` maps `gfn`, in order: address, and the guest's rights along the path."""
    spti = xi.pool_memory.owner(word)
    assert spti.role is not None
    extend = MODES[spti.role.mode].sign_extend
    inside = gfn & ((1 << 9 * (spti.level - 1)) - 1)
    ways = islice(climb(xi, word), MOST)
    return sorted({(extend(va) + (inside << 12), guest_letters(rights)) for _, va, rights in ways})


def describe_snapshot(xi: Resynchronisation, gfn: int) -> list[dict[str, Any]]:
    """The entries of guest table `gfn` that differ from the snapshot, one record for each SPTI that shadows it: spti,
    role, state, guards (it write-protects the table while in sync), latched, kept (which tables have a snapshot, in
    words), entries: those of `describe_entry`, with ``flush``, the `resync_decision` at the next synchronisation."""
    out = []
    for number in xi.gpts.get(gfn, ()):
        spti = xi.sptis[number]
        assert spti.role is not None and spti.rules is not None
        entries = []
        for at in changed_entries(xi, spti).nonzero()[0].tolist():
            for index in range(at << spti.halved, (at + 1) << spti.halved):
                entry = describe_entry(xi, spti, index)
                entries.append(entry | {"flush": resync_decision(xi, spti, index, entry["now"], xi.eager)})
        out.append(
            {
                "spti": number,
                "role": spti.role.text,
                "state": spti_state(spti),
                "guards": spti.guards,
                "latched": spti.rules.latched,
                "kept": xi.snapshots.kept,
                "entries": entries,
            }
        )
    return out


def describe_pool(xi: Asi) -> dict[str, Any]:
    """The pool: sptis (how many), base_mfn, frames; clean, unclean, in_use (how many SPTIs are on each list), orphans;
    reserve and low_water (what idle moments keep free); root (SPTI in use as root, None before the first); pool,
    zeroing, snapshots, backlinks (the policies) and fill; pages: what shadow, snapshots and backlinks take; groups:
    (kind, mode, level, SPTIs, in sync, out of sync, fresh, SPTEs) of those in use; next: `_summary` of the next to be
    recycled, in order (never the root in use); counters: those of the pool.

    All this of one domain, whose what is free need not be: neighbours, how many other domains share the pool, and
    elsewhere, how many SPTIs they use."""
    pool = xi.pool_memory
    root = xi.root_spti
    counts: dict[tuple[str, str, int], Counter[str]] = {}
    for spti in xi.sptis:
        if spti.role is not None:
            group = counts.setdefault((spti.kind.name.lower(), spti.role.mode, spti.level), Counter())
            group.update(["sptis", spti_state(spti)])
            group["sptes"] += int(np.count_nonzero(spti.spt))
    victims = [xi.sptis[number] for number in pool.lru if xi.sptis[number].role is not None]
    if root in victims:
        victims.remove(root)
    counters = _POOL_COUNTERS + (_SHARING_COUNTERS if pool.neighbours else ())
    columns = ("sptis", "in sync", "out of sync", "fresh", "sptes")
    return {
        "sptis": len(pool),
        "base_mfn": pool.base_mfn,
        "frames": pool.frames,
        "clean": len(pool.clean),
        "unclean": len(pool.unclean),
        "in_use": len(pool.lru),
        "neighbours": len(pool.neighbours),
        "elsewhere": len(pool.elsewhere),
        "orphans": len(xi.orphans),
        "reserve": pool.space.reserve,
        "low_water": LOW_WATER,
        "root": root.index if root is not None else None,
        "pool": pool.policy,
        "zeroing": "idle" if pool.idle_zeroing else "critical-path",
        "snapshots": xi.snapshots.policy,
        "backlinks": xi.links.policy,
        "fill": xi.config.fill,
        "pages": {"shadow": pool.held, "snapshots": xi.snapshots.pages_held, "backlinks": xi.links.pages_held},
        "groups": [(*group, *(counts[group][name] for name in columns)) for group in sorted(counts)],
        "next": [_summary(xi, spti) for spti in victims[:SHOWN]],
        "counters": {name: count for name, count in xi.counters.flat().items() if name in counters},
    }


def describe_log(xi: Asi) -> dict[str, Any] | None:
    """The dirty log: rounds begun so far; gfns stored to in this one; wrong: gfns with a writable SPTE that are not in
    it. None while there is no logging."""
    if not xi.logging:
        return None
    _, sptes, levels = leaves(xi)
    open_ = sptes & _RW != 0
    first = (sptes[open_] & _ADDR).view(np.int64) >> 12
    writable: set[int] = set()
    for mfn, level in np.unique(np.stack([first, levels[open_]], 1), axis=0).tolist():
        gfn = xi.p2m.to_gfn[mfn] if mfn < xi.p2m.machine_frames else -1
        if gfn >= 0:
            writable.update(range(gfn, gfn + (1 << 9 * (level - 1))))
    logged = xi.logged_array.nonzero()[0].tolist()
    return {"round": xi.counters.log_rounds, "gfns": logged, "wrong": sorted(writable.difference(logged))}
