"""The audit of who points where, in the form that holds under each backlink policy.

`backlink-bijection`. ``all``: every SPTE that is not empty is on the list of its target, and nothing else is on any.
``gpt-only``: the same for the SPTEs that lead to an SPT, or map a guest table or a large page with one inside; the
others have no backlink. ``none``: nothing has, and the number of SPTEs that lead to each SPT is the one that is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.engine import AuditFailure, Words
from harness.x86.bits import PTE_ADDR, PTE_PS
from harness.xi.backlinks import HEAD, Backlinks
from harness.xi.links import Ints
from harness.xi.no_backlinks import NoBacklinks
from harness.xi.roles import Kind
from harness.xi.table_backlinks import TableBacklinks

if TYPE_CHECKING:
    from harness.xi.engine import XiEngine

_ADDR = np.uint64(PTE_ADDR)
_RULE: Final = "backlink-bijection"
_SHOWN: Final = 4


def audit_links(engine: XiEngine, out: list[AuditFailure]) -> None:
    """Appends what is wrong under the engine's policy to `out`."""
    _AUDITS[engine.links.policy](engine, out)


def _fail(out: list[AuditFailure], what: str, words: Ints) -> None:
    places = ", ".join(f"SPTI {w >> 11} SPTE {w & 511}" for w in words[:_SHOWN].tolist())
    out.append(AuditFailure(_RULE, f"{what}: {places}"))


def _used(engine: XiEngine) -> tuple[Ints, Ints]:
    """Words of all SPTEs that are not empty, of SPTIs in use, and the slots of their targets."""
    spts = engine.pool_memory.words.reshape(-1, 2048)[:, :512]
    levels = np.array([spti.level if spti.role is not None else 0 for spti in engine.sptis], np.int64)
    k, i = np.nonzero((spts != 0) & (levels > 0)[:, None])
    return k * 2048 + i, _slots(engine, spts[k, i], levels[k])


def _backlinks(engine: XiEngine) -> Ints:
    """The pages of backlinks in the pool, zero where an SPTI is another domain's: (SPTI, index, next and previous)."""
    pages: Ints = engine.pool_memory.signed.reshape(-1, 2048)[:, 1024:].reshape(-1, 512, 2)
    elsewhere = engine.pool_memory.elsewhere
    if elsewhere:
        pages = pages.copy()
        pages[elsewhere] = 0
    return pages


def _slots(engine: XiEngine, sptes: Words, level: Ints) -> Ints:
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


def _audit_all(engine: XiEngine, out: list[AuditFailure]) -> None:
    links, backlinks = engine.links, _backlinks(engine)
    assert isinstance(links, Backlinks)
    words, slots = _used(engine)
    k, i = words >> 11, words & 511
    stray = (backlinks != 0).any(axis=2)
    stray[k, i] = False
    if stray.any():
        at, index = np.nonzero(stray)
        _fail(out, "a backlink without an SPTE", at * 2048 + index)
    if not len(k):
        if links.heads.tolist().count(0) != links.slots:
            out.append(AuditFailure(_RULE, "a list has a head and no SPTE"))
        return
    after, before = backlinks[k, i, 0], backlinks[k, i, 1]
    if (before == 0).any():
        _fail(out, "an SPTE is on no list", words[before == 0])
        return
    heads = np.frombuffer(links.heads, np.int64)
    number = np.full(engine.pool_memory.words.size, -1, np.int64)  # word -> place in `words`
    number[words] = np.arange(len(words))
    first = before >= HEAD
    named = before[first] ^ HEAD
    wrong = (named >= links.slots) | (named != slots[first])
    if wrong.any():
        _fail(out, "an SPTE heads the list of another target", words[first][wrong])
        return
    if (heads[named] != words[first] + 1).any():
        _fail(out, "an SPTE is not the head that it says it is", words[first][heads[named] != words[first] + 1])
    if np.count_nonzero(heads) != np.count_nonzero(first):
        out.append(AuditFailure(_RULE, "a list's head is not an SPTE that knows it"))
    for name, link in (("previous", np.where(first, 0, before)), ("next", after)):
        linked = np.flatnonzero(link != 0)
        other = link[linked] - 1
        ok = (other >= 0) & (other < number.size)
        place = np.where(ok, number[np.where(ok, other, 0)], -1)
        ok &= place >= 0
        back = (after if name == "previous" else before)[place]
        ok &= (back == words[linked] + 1) & (slots[place] == slots[linked])
        if not ok.all():
            _fail(out, f"the {name} node of a list does not fit", words[linked[~ok]])
            return
    # What is left is paths and rings; on a ring no SPTE ever leads to a head.
    up = np.where(first, np.arange(len(words)), number[np.where(first, 0, before - 1)])
    for _ in range(len(words).bit_length()):
        up = up[up]
    if not first[up].all():
        _fail(out, "a list is a ring without a head", words[~first[up]])


def _audit_tables(engine: XiEngine, out: list[AuditFailure]) -> None:
    links = engine.links
    assert isinstance(links, TableBacklinks)
    frames = engine.config.frames
    tables = {spti.role.gfn for spti in engine.sptis if spti.role is not None and spti.kind is Kind.GUEST}
    counts = np.zeros(links.parents(0), np.int64)
    for gfn in tables:
        if gfn < frames:
            counts[[links.slot(level, gfn) for level in (1, 2, 3)]] += 1
    for slot in np.flatnonzero(counts != links.tables)[:_SHOWN].tolist():
        out.append(
            AuditFailure(_RULE, f"{counts[slot]} guest tables at {links.leaf_of(slot)}, not {links.tables[slot]}")
        )
    words, slots = _used(engine)
    wanted = slots >= len(counts)
    leaf = ~wanted & (slots >= 0)
    wanted[leaf] = counts[slots[leaf]] != 0
    should = dict(zip(words[wanted].tolist(), slots[wanted].tolist(), strict=True))
    if should != links.slot_of:
        differ = sorted(word for word, _ in should.items() ^ links.slot_of.items())
        _fail(out, "an SPTE that has no backlink and should, or the reverse", np.array(differ, np.int64))
    listed = {word: slot for slot, each in links.lists.items() for word in each}
    if listed != links.slot_of or sum(map(len, links.lists.values())) != len(listed) or not all(links.lists.values()):
        out.append(AuditFailure(_RULE, "the lists have other SPTEs than those that have a backlink"))
    _audit_unused(engine, out)


def _audit_none(engine: XiEngine, out: list[AuditFailure]) -> None:
    links = engine.links
    assert isinstance(links, NoBacklinks)
    _, slots = _used(engine)
    lead = Counter((slots[slots >= links.parents(0)] - links.parents(0)).tolist())
    for index, count in enumerate(links.references):
        if count != lead[index]:
            out.append(AuditFailure(_RULE, f"{lead[index]} SPTEs lead to SPTI {index}, {count} are counted"))
    _audit_unused(engine, out)


def _audit_unused(engine: XiEngine, out: list[AuditFailure]) -> None:
    if _backlinks(engine).any():
        out.append(AuditFailure(_RULE, "a page of backlinks is in use"))


_AUDITS: Final[Mapping[str, Callable[[XiEngine, list[AuditFailure]], None]]] = {
    "all": _audit_all,
    "gpt-only": _audit_tables,
    "none": _audit_none,
}
