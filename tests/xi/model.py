"""A plain MMU to hold the engine against: one recursive walk, from the manual, with no caches and no cleverness.

The same function is the guest's MMU (on the guest's memory and control registers) and the hardware under the shadow (on
the pool and the shadow's control registers). Nothing of `harness.xi` is used here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.x86.access import Access
from harness.x86.bits import PF_I, PF_P, PF_PK, PF_RSVD, PF_U, PF_W
from harness.x86.control import ControlState
from harness.x86.modes import reserved_bits

Reader = Callable[[int, int], int]  # (byte address, bytes) -> little-endian value


@dataclass(frozen=True)
class Answer:
    """frame: where the access lands, None for a fault. code: the #PF error code, None for #GP or no fault.

    touched: (entry address, bits) of the accessed and dirty bits that a completed walk leaves set.
    """

    frame: int | None
    code: int | None = None
    general_protection: bool = False
    touched: tuple[tuple[int, int], ...] = ()


def mmu(read: Reader, state: ControlState, va: int, access: Access, pdptes: tuple[int, ...] | None = None) -> Answer:
    """What the MMU does with one access, EFLAGS.AC = 0. pdptes: the four PDPTE registers of PAE paging, where they
    are not to be read from memory."""
    mode = state.mode
    if not mode.levels:
        return Answer(va >> 12)
    if not mode.is_canonical(va):
        return Answer(None, general_protection=True)
    base = (PF_W if access.is_store else 0) | (PF_U if access.is_user else 0)
    if access.is_fetch and (state.smep or (state.cr4 & 0x20 and state.nxe)):
        base |= PF_I
    root = state.cr3 & mode.root_mask
    if pdptes is not None and mode.name == "pae":
        latched = pdptes[va >> 30]
        if not latched & 1:
            return Answer(None, base)
        if latched & reserved_bits(mode, 3, False, state.nxe):
            return Answer(None, base | PF_P | PF_RSVD)
        return _walk(read, state, va, access, base, 1, latched & mode.address_mask, True, True, False, ())
    return _walk(read, state, va, access, base, 0, root, True, True, False, ())


def _walk(
    read: Reader,
    state: ControlState,
    va: int,
    access: Access,
    base: int,
    depth: int,
    table: int,
    rw: bool,
    us: bool,
    nx: bool,
    path: tuple[tuple[int, int], ...],
) -> Answer:
    mode = state.mode
    level = mode.levels[depth]
    address = table + level.index(va) * mode.entry_bytes
    entry = read(address, mode.entry_bytes)
    if not entry & 1:
        return Answer(None, base)
    large = level.may_map_large and bool(entry & 0x80) and state.pse
    if entry & reserved_bits(mode, level.number, large, state.nxe):
        return Answer(None, base | PF_P | PF_RSVD)
    if level.has_rights:
        rw = rw and bool(entry & 2)
        us = us and bool(entry & 4)
        nx = nx or (mode.has_nx and bool(entry >> 63))
    if level.has_ad:
        path = (*path, (address, 0x20))
    if not large and level.number > 1:
        return _walk(read, state, va, access, base, depth + 1, entry & mode.address_mask, rw, us, nx, path)
    denied = _denied(state, access, rw, us, nx, entry >> 59 & 15)
    if denied is not None:
        return Answer(None, base | denied)
    if access.is_store:
        path = (*path, (address, 0x40))
    if not large:
        return Answer((entry & mode.address_mask) >> 12, touched=path)
    start = entry & mode.address_mask & ~(level.span - 1)
    if mode.entry_bytes == 4:
        start |= (entry & 0x1FE000) << 19
    return Answer((start + (va & (level.span - 1))) >> 12, touched=path)


def _denied(state: ControlState, access: Access, rw: bool, us: bool, nx: bool, key: int) -> int | None:
    """The bits that a refusal adds to the error code; None when the access is allowed."""
    if access.is_user and not us:
        return PF_P
    if state.pke and us and not access.is_fetch:
        no_access, no_write = state.pkru >> 2 * key & 1, state.pkru >> 2 * key & 2
        if no_access or (no_write and access.is_store and (access.is_user or state.wp)):
            return PF_P | PF_PK
    if access.is_fetch and nx:
        return PF_P
    if access.is_store and not rw and (access.is_user or state.wp):
        return PF_P
    if not access.is_user and us and (state.smep if access.is_fetch else state.smap):
        return PF_P
    return None
