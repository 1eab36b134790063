"""What a peer engine knows of a frame or of an address, as JSON-able records for failure reports and debugging."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.xi.describe import spte_text
from harness.xi.roles import GUEST

if TYPE_CHECKING:
    from harness.peers.engine import PeerEngine
    from harness.peers.pages import ShadowPage


def describe_page(engine: PeerEngine, page: ShadowPage) -> dict[str, Any]:
    """One shadow page in use."""
    assert page.role is not None
    return {
        "spti": page.index,
        "mfn": page.mfn,
        "role": page.role.text,
        "sptes": len(page.used),
        "bases": sorted(f"{base >> 2:#x}" for base in engine.aliases.bases().get(page.index, ()))[:16],
    }


def describe_gfn(engine: PeerEngine, gfn: int) -> dict[str, Any]:
    """A guest frame: its machine frame, the shadow pages that stand for it, and where it is mapped."""
    pages = [page for page in engine.pool_pages.in_use.values() if page.kind is GUEST and page.gfn == gfn]
    sptis = [describe_page(engine, page) for page in pages]
    if not 0 <= gfn < engine.config.frames:
        return {"gfn": gfn, "mfn": None, "sptis": sptis}
    mfn = engine.p2m.to_mfn[gfn]
    return {
        "gfn": gfn,
        "mfn": mfn if mfn >= 0 else None,
        "write_protected": bool(engine.protected[gfn]),
        "logged": bool(engine.logged[gfn]) if engine.logging else None,
        "sptis": sptis,
        "addresses": sorted(f"{va:#x}" for va in engine.addresses_of(gfn)),
    }


def describe_walk(engine: PeerEngine, va: int) -> list[dict[str, Any]]:
    """The shadow walk of `va`, from the root down, as far as it leads (entries with P=0 are followed too)."""
    out: list[dict[str, Any]] = []
    page = engine.root_page
    while page is not None and page.role is not None:
        index = va >> page.shift & 511
        spte = engine.q[page.base + index]
        step = {
            "level": page.level,
            "spti": page.index,
            "mfn": page.mfn,
            "index": index,
            "spte": spte,
            "text": spte_text(spte),
            "role": page.role.text,
        }
        out.append(step)
        if not spte:
            break
        if engine.is_leaf(page, spte):
            step["gfn"] = engine.leaf_gfn(spte) + ((va >> 12) & ((1 << 9 * (page.level - 1)) - 1))
            break
        page = engine.pool_pages.child(spte)
    return out
