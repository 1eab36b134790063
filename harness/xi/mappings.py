"""Every address at which a guest frame is mapped, in every root, exactly: climbed from its backlinks.

Rights are told twice: those of the guest, as the SPTEs keep them, and what the processor may do now (an SPTE without P
or RW is filled in by a fault). JSON-able records.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from harness.x86.bits import PTE_NX, PTE_P, PTE_RW, PTE_US
from harness.x86.modes import MODES
from harness.xi.asi import Asi
from harness.xi.describe import listed_leaves
from harness.xi.gpt import SW_OVERRIDE, SW_WRITE
from harness.xi.pool import SPTI_SHIFT, Spti
from harness.xi.roles import ROOT_LEVEL, shadow_shift

MOST: Final = 4096
"""Mappings that are told: a guest may map a table into itself, and so a frame at very many addresses."""

_WRITE: Final = 1
_USER: Final = 2
_EXECUTE: Final = 4
_HARDWARE: Final = 8  # shift: the same rights as the processor has them now, and _PRESENT
_PRESENT: Final = 8
_EVERYTHING: Final = 0xFF


def describe_mappings(asi: Asi, gfn: int) -> dict[str, Any]:
    """mappings: all of `gfn`, sorted by root and address; more: whether there are more than the MOST that are told.

    Each: va (of the page), cr3 (of the guest), root_spti, mode, guest and hardware (rights: letters of ``rwxu``; of the
    hardware empty where its walk ends before), page_size in bytes, and the SPTE: spti, index, spte.
    """
    if not 0 <= gfn < asi.config.frames:
        return {"mappings": [], "more": False}
    out: list[dict[str, Any]] = []
    for word, level in listed_leaves(asi, gfn):
        spti = asi.pool_memory.owner(word)
        inside = gfn & ((1 << 9 * (level - 1)) - 1)
        for root, base, rights in climb(asi, word):
            if len(out) == MOST:
                return {"mappings": _sorted(out), "more": True}
            assert root.role is not None
            out.append(
                {
                    "va": MODES[root.role.mode].sign_extend(base) + (inside << 12),
                    "cr3": root.gfn << 12 | (root.role.quadrant << 5 if root.role.mode == "pae" else 0),
                    "root_spti": root.index,
                    "mode": root.role.mode,
                    "guest": guest_letters(rights),
                    "hardware": _letters(rights >> _HARDWARE),
                    "page_size": 1 << shadow_shift(level),
                    "spti": spti.index,
                    "index": word & 511,
                    "spte": asi.q[word],
                }
            )
    return {"mappings": _sorted(out), "more": False}


def _sorted(mappings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(mappings, key=lambda one: (one["root_spti"], one["va"]))


def climb(asi: Asi, word: int) -> Iterator[tuple[Spti, int, int]]:
    """(root, address, rights) of each path from a root down to the SPTE at `word`. Levels rise with each step."""
    ways = [(word, 0, _EVERYTHING | _EVERYTHING << _HARDWARE)]
    while ways:
        word, below, rights = ways.pop()
        spti = asi.pool_memory.owner(word)
        if spti.role is None:
            continue
        va = below + ((word & 511) << shadow_shift(spti.level))
        rights &= _rights(asi.q[word], spti.level == 3 and ROOT_LEVEL[spti.role.mode] == 3)
        if spti.level == ROOT_LEVEL[spti.role.mode]:
            yield spti, va, rights
            continue
        parents = asi.links.listed(asi.links.parents(spti.index))
        ways += [(parent, va, rights) for parent in parents if asi.sptis[parent >> SPTI_SHIFT].level == spti.level + 1]


def _rights(spte: int, pdpte: bool) -> int:
    """What one SPTE allows; a PDPTE of PAE format has no rights of its own (SDM vol. 3A, table 4-8)."""
    present = (_PRESENT if spte & PTE_P else 0) << _HARDWARE
    if pdpte:
        return _WRITE | _USER | _EXECUTE | (_WRITE | _USER | _EXECUTE) << _HARDWARE | present
    execute = 0 if spte & PTE_NX else _EXECUTE
    guest = execute | (_WRITE if spte & SW_WRITE else 0) | (_USER if spte & (PTE_US | SW_OVERRIDE) else 0)
    hardware = execute | (_WRITE if spte & PTE_RW else 0) | (_USER if spte & PTE_US else 0)
    return guest | hardware << _HARDWARE | present


def guest_letters(rights: int) -> str:
    """What the guest allows, of rights that `climb` gives: letters of ``rwxu``."""
    return _letters(rights | _PRESENT)


def _letters(rights: int) -> str:
    if not rights & _PRESENT:
        return ""
    return "r" + "".join(letter for bit, letter in ((_WRITE, "w"), (_EXECUTE, "x"), (_USER, "u")) if rights & bit)
