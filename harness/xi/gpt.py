"""Guest page tables as XI reads them: what an entry means, in both entry sizes, as tables of flags.

An SPTE's flags depend on seven low bits of the guest's entry and on the role; they are computed once a role into arrays
of 128, so that one entry is an index and a whole table is one numpy gather.

Software bits of an SPTE (9-11, ignored by hardware): SW_PRESENT, the guest's entry is present; SW_WRITE, the guest may
write through it (RW, or CR0.WP=0); SW_OVERRIDE, opened for a supervisor store that CR0.WP=0 allows. An SPTE whose guest
entry has A=0 is *armed*: P=0, with its target, backlink and software bits in place. The D bit of an SPTE says that
nothing but write protection or dirty logging keeps RW off it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from harness.engine import Words
from harness.x86.bits import PTE_A, PTE_ADDR, PTE_D, PTE_NX, PTE_P, PTE_PK, PTE_PS, PTE_RW, PTE_US
from harness.x86.modes import MODES, PagingMode, reserved_bits
from harness.xi.roles import (
    VARIANT_NXE,
    VARIANT_PSE,
    VARIANT_READ_ONLY_ABOVE,
    VARIANT_SMEP_NO_WP,
    VARIANT_SUPERVISOR_ABOVE,
    VARIANT_WP,
)

SW_PRESENT: Final = 1 << 9
SW_WRITE: Final = 1 << 10
SW_OVERRIDE: Final = 1 << 11
AD: Final = PTE_A | PTE_D

# What an entry of a table outside the domain's memory reads as. QEMU 7.2 completes a read of unassigned memory with
# 0 and a decode error that the x86 page walker does not look at. Such a table is therefore all not-present.
UNBACKED_TABLE_ENTRY: Final = 0

# Leaf and non-leaf SPTEs of a DIRECT run: everything is allowed here, the entry above narrows it.
OPEN_LEAF: Final = PTE_P | PTE_US | PTE_A | PTE_D | SW_PRESENT | SW_WRITE
OPEN_TABLE: Final = PTE_P | PTE_RW | PTE_US | PTE_A | SW_PRESENT | SW_WRITE
# A PDPTE in PAE format has no rights and no A (SDM table 4-8).
OPEN_PDPTE: Final = PTE_P | SW_PRESENT | SW_WRITE


def leaf_flags(entry: int, wp: bool) -> int:
    """Flags of the SPTE of a guest leaf, from its low seven bits; 0 when it is not present. RW is never set here."""
    if not entry & PTE_P:
        return 0
    flags = SW_PRESENT | (entry & PTE_US)
    if entry & PTE_A:
        flags |= PTE_P | PTE_A
    if entry & PTE_RW or not wp:
        flags |= SW_WRITE
    # With CR0.WP=0 the supervisor writes read-only pages; on a page that users may not touch that can stand.
    writable = entry & PTE_RW or (not wp and not entry & PTE_US)
    if writable and entry & PTE_A and entry & PTE_D:
        flags |= PTE_D
    return flags


def table_flags(entry: int, wp: bool, has_rights: bool) -> int:
    """Flags of the SPTE of a guest entry that leads to a table; 0 when it is not present."""
    if not entry & PTE_P:
        return 0
    if not has_rights:
        return OPEN_PDPTE
    flags = SW_PRESENT | (entry & PTE_US)
    if entry & PTE_A:
        flags |= PTE_P | PTE_A
    if entry & PTE_RW or not wp:  # with CR0.WP=0 read-only is carried down to the leaf
        flags |= SW_WRITE | PTE_RW
    return flags


def divided_flags(leaf: int) -> int:
    """Flags of the SPTE above the pieces of a large page whose SPTE would have had the flags `leaf`."""
    return leaf & ~(PTE_D | PTE_PK | PTE_RW | PTE_PS) | (PTE_RW if leaf & PTE_D else 0)


@dataclass(frozen=True, slots=True, eq=False)
class EntryRules:
    """How the entries of one guest table level are read under one variant of the control bits.

    entry_bytes 4 or 8; doubled: one guest entry has two SPTEs (a 32-bit guest's PD). may_be_large: PS makes a leaf.
    reserved, reserved_large: bits that must be 0. frame_mask: address bits of a small entry; large_mask of a large one.
    leaf, table: flags by the low seven bits, of the SPTE of a page and of a table; leaf_array: `leaf` for numpy.
    leaf_copy, table_copy: bits taken as they are.
    latched: the entries are registers (the PDPTEs of `pae`, loaded with CR3: SDM vol. 3A, 4.4.1).
    override_nx: NX to put on a page that CR0.WP=0 opened, so that SMEP still holds there.
    """

    mode: PagingMode
    level: int
    entry_bytes: int
    doubled: bool
    may_be_large: bool
    has_ad: bool
    has_rights: bool
    latched: bool
    reserved: int
    reserved_large: int
    frame_mask: int
    large_mask: int
    pse36: bool
    leaf: tuple[int, ...]
    leaf_array: Words
    table: tuple[int, ...]
    leaf_copy: int
    table_copy: int
    override_nx: int
    nx: int
    wp: bool

    def is_large(self, entry: int) -> bool:
        return self.may_be_large and bool(entry & PTE_PS)

    def is_reserved(self, entry: int, large: bool) -> bool:
        return bool(entry & (self.reserved_large if large else self.reserved))

    def frame(self, entry: int) -> int:
        """gfn that a small entry (a 4 KiB leaf, or a table) names."""
        return (entry & self.frame_mask) >> 12

    def large_frame(self, entry: int) -> int:
        """First gfn of a large page; a 4 MiB page has address bits 39:32 in bits 20:13 (SDM table 4-4)."""
        gfn = (entry & self.large_mask) >> 12
        if self.pse36:
            gfn |= (entry >> 13 & 0xFF) << 20
        return gfn


@lru_cache(maxsize=256)
def entry_rules(mode_name: str, level: int, variant: int, phys_bits: int) -> EntryRules:
    """The rules of one level of `mode_name`. Raises ValueError when the mode has no such level."""
    mode = MODES[mode_name]
    row = mode.level(level)
    wp = bool(variant & VARIANT_WP)
    nxe = bool(variant & VARIANT_NXE)
    nx = PTE_NX if mode.has_nx and nxe and row.has_rights else 0
    pk = PTE_PK if mode.canonical else 0
    above = (PTE_RW if variant & VARIANT_READ_ONLY_ABOVE else 0) | (PTE_US if variant & VARIANT_SUPERVISOR_ABOVE else 0)
    leaf = tuple(leaf_flags(bits & ~above, wp) for bits in range(128))
    may_be_large = row.may_map_large and (mode.entry_bytes == 8 or bool(variant & VARIANT_PSE))
    return EntryRules(
        mode=mode,
        level=level,
        entry_bytes=mode.entry_bytes,
        doubled=mode.entry_bytes == 4 and level == 2,
        may_be_large=may_be_large,
        has_ad=row.has_ad,
        has_rights=row.has_rights,
        latched=not row.has_ad,
        reserved=reserved_bits(mode, level, False, nxe, phys_bits),
        reserved_large=reserved_bits(mode, level, True, nxe, phys_bits),
        frame_mask=mode.address_mask,
        large_mask=PTE_ADDR & ~(row.span - 1) & (0xFFFF_FFFF if mode.entry_bytes == 4 else -1),
        pse36=mode.pse36,
        leaf=leaf,
        leaf_array=np.array(leaf, np.uint64),
        table=tuple(table_flags(bits, wp, row.has_rights) for bits in range(128)),
        leaf_copy=nx | pk,
        table_copy=nx,
        override_nx=PTE_NX if variant & VARIANT_SMEP_NO_WP else 0,
        nx=nx,
        wp=wp,
    )


@dataclass(frozen=True, slots=True)
class Part:
    """Which entries of its guest table an SPT covers: `count` entries from `first`."""

    first: int
    count: int


@lru_cache(maxsize=256)
def guest_part(mode: str, level: int, quadrant: int) -> Part:
    """The part of its guest table that the SPT of a GUEST role covers."""
    if mode == "nopae":
        count = 512 if level == 1 else 256
        return Part(quadrant * count, count)
    if mode == "pae" and level == 3:
        return Part(quadrant * 4, 4)
    return Part(0, 512)
