"""What XI knows of a frame or of an address, as JSON-able records for failure reports and debugging."""

from __future__ import annotations

from typing import Any

from harness.x86.bits import PTE_ADDR, PTE_PS
from harness.xi.asi import Asi
from harness.xi.gpt import SW_OVERRIDE, SW_PRESENT, SW_WRITE
from harness.xi.pool import Spti
from harness.xi.roles import shadow_shift

_FLAGS = (
    ("P", 1 << 0),
    ("RW", 1 << 1),
    ("US", 1 << 2),
    ("A", 1 << 5),
    ("D", 1 << 6),
    ("PS", 1 << 7),
    ("NX", 1 << 63),
    ("present", SW_PRESENT),
    ("write", SW_WRITE),
    ("override", SW_OVERRIDE),
)


def spte_text(spte: int) -> str:
    """An SPTE for a reader: its target address and the flags that are set."""
    if not spte:
        return "empty"
    key = spte >> 59 & 0xF
    flags = [name for name, bit in _FLAGS if spte & bit] + ([f"key={key}"] if key else [])
    return f"{spte & PTE_ADDR:#x} [{' '.join(flags)}]"


def spti_state(spti: Spti) -> str:
    """How an SPTI in use stands to what it shadows."""
    return "in sync" if spti.synced else ("fresh" if spti.fresh else "out of sync")


def describe_spti(asi: Asi, spti: Spti) -> dict[str, Any]:
    """One SPTI in use. lru: its place, 0 is the next to be recycled."""
    assert spti.role is not None
    return {
        "spti": spti.index,
        "mfn": spti.mfn,
        "role": spti.role.text,
        "state": spti_state(spti),
        "write_protects": spti.guards and spti.synced,
        "lru": list(asi.pool_memory.lru).index(spti.index),
        "sptes": int((spti.spt != 0).sum()),
        "parents": len(asi.links.aside().nodes(asi.links.parents(spti.index))),
        "bases": sorted(f"{base >> 2:#x}" for base in asi.aliases.bases_of(spti.index))[:16],
    }


def describe_gfn(asi: Asi, gfn: int) -> dict[str, Any]:
    """A guest frame: its machine frame, the SPTIs that shadow it, and every SPTE on its backlinks."""
    if not 0 <= gfn < asi.config.frames:
        return {"gfn": gfn, "mfn": None}
    mfn = asi.p2m.to_mfn[gfn]
    backlinks = []
    for word, level in asi.links.aside().mapping(gfn):
        spti = asi.pool_memory.owner(word)
        role = spti.role.text if spti.role is not None else "free"
        spte = asi.q[word]
        backlinks.append(
            {
                "spti": spti.index,
                "index": word & 511,
                "level": level,
                "role": role,
                "spte": spte,
                "text": spte_text(spte),
            }
        )
    return {
        "gfn": gfn,
        "mfn": mfn if mfn >= 0 else None,
        "write_protected": asi.guarded[gfn] != 0,
        "logged": bool(asi.logged[gfn]) if asi.logging else None,
        "sptis": [describe_spti(asi, asi.sptis[index]) for index in asi.gpts.get(gfn, ())],
        "backlinks": backlinks,
        "addresses": sorted(f"{va:#x}" for va in asi.aliases.addresses_of(gfn)),
    }


def describe_walk(asi: Asi, va: int) -> list[dict[str, Any]]:
    """The shadow walk of `va`, from the root down, as far as it leads (armed entries are followed too)."""
    out: list[dict[str, Any]] = []
    spti = asi.root_spti
    while spti is not None and spti.role is not None:
        index = (va >> shadow_shift(spti.level)) & 511
        spte = asi.q[spti.base + index]
        leaf = spti.level == 1 or bool(spte & PTE_PS)
        step = {
            "level": spti.level,
            "spti": spti.index,
            "mfn": spti.mfn,
            "index": index,
            "spte": spte,
            "text": spte_text(spte),
            "role": spti.role.text,
            "state": "in sync" if spti.synced else "out of sync",
        }
        if spti.rules is not None:
            step["snapshot"] = spti.snapshot_entry(index)
        if spte and leaf:
            step["gfn"] = asi.leaf_gfn(spte) + ((va >> 12) & ((1 << 9 * (spti.level - 1)) - 1))
        out.append(step)
        spti = None if leaf or not spte else asi.pool_memory.child(spte)
    return out


# Backlinks for who looks into an engine that may be broken.


def listed_leaves(xi: Asi, gfn: int) -> list[tuple[int, int]]:
    """(word, level) of the SPTEs on the lists of a frame and of the large pages around it."""
    return [(word, level) for level in (1, 2, 3) for word in xi.links.listed(xi.links.slot(level, gfn))]
