"""The paging modes as data: levels, entry sizes, index bits, large pages, reserved bits.

Everything that walks tables reads these rows; no code names a mode in an `if` where a row can say it.
Sources: Intel SDM vol. 3A, sections 4.1.1 (mode selection), 4.3 (32-bit), 4.4 (PAE), 4.5 (4- and 5-level).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from harness.x86.bits import PTE_ADDR, PTE_NX, PTE_PS


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a guest's tables.

    number: 1 is the table of 4 KiB pages (PT), 2 the PD, 3 the PDPT, 4 the PML4, 5 the PML5.
    shift: lowest virtual-address bit of this level's index. bits: width of the index.
    may_map_large: a set PS bit makes the entry a leaf (in `nopae` only while CR4.PSE=1).
    has_ad: A exists in this level's entries (PAE's PDPTEs have none, SDM table 4-8).
    has_rights: RW, US and NX exist here (PAE's PDPTEs have none).
    """

    number: int
    shift: int
    bits: int
    may_map_large: bool
    has_ad: bool = True
    has_rights: bool = True

    @property
    def entries(self) -> int:
        return 1 << self.bits

    @property
    def span(self) -> int:
        """Bytes of virtual address space one entry covers."""
        return 1 << self.shift

    def index(self, va: int) -> int:
        return (va >> self.shift) & ((1 << self.bits) - 1)


@dataclass(frozen=True, slots=True)
class PagingMode:
    """One paging mode. `levels` runs from the root down to level 1; empty for `unpaged`.

    entry_bytes: 4 or 8. va_bits: width of a linear address that is translated; `canonical`: the bits above
    must repeat bit va_bits-1 (long modes). `root_mask`: the bits of CR3 that locate the root table.
    `has_nx`: bit 63 of entries can mean NX. `pse36`: 4 MiB pages carry address bits 39:32 in bits 20:13.
    """

    name: str
    levels: tuple[Level, ...]
    entry_bytes: int
    va_bits: int
    canonical: bool
    root_mask: int
    has_nx: bool
    pse36: bool = False

    @property
    def address_mask(self) -> int:
        """The frame bits of a non-leaf or 4 KiB leaf entry."""
        return 0xFFFF_F000 if self.entry_bytes == 4 else PTE_ADDR

    def level(self, number: int) -> Level:
        for level in self.levels:
            if level.number == number:
                return level
        raise ValueError(f"paging mode {self.name} has no level {number}")

    def is_canonical(self, va: int) -> bool:
        """Whether `va` (0 .. 2**64-1) may be translated at all. 32-bit modes: below 4 GiB."""
        if not self.canonical:
            return 0 <= va < 1 << 32
        top = va >> (self.va_bits - 1)
        return top in (0, (1 << (65 - self.va_bits)) - 1)

    def sign_extend(self, va: int) -> int:
        """`va` (low va_bits significant) as the canonical 64-bit address; unchanged in 32-bit modes."""
        va &= (1 << self.va_bits) - 1
        if self.canonical and va >> (self.va_bits - 1):
            va |= ((1 << 64) - 1) ^ ((1 << self.va_bits) - 1)
        return va


UNPAGED: Final = PagingMode("unpaged", (), 8, 32, False, 0, False)
NOPAE: Final = PagingMode(
    "nopae", (Level(2, 22, 10, True), Level(1, 12, 10, False)), 4, 32, False, 0xFFFF_F000, False, pse36=True
)
PAE: Final = PagingMode(
    "pae",
    (
        Level(3, 30, 2, False, has_ad=False, has_rights=False),
        Level(2, 21, 9, True),
        Level(1, 12, 9, False),
    ),
    8,
    32,
    False,
    0xFFFF_FFE0,
    True,
)
_LONG = (Level(4, 39, 9, False), Level(3, 30, 9, True), Level(2, 21, 9, True), Level(1, 12, 9, False))
LONG4: Final = PagingMode("long4", _LONG, 8, 48, True, PTE_ADDR, True)
LONG5: Final = PagingMode("long5", (Level(5, 48, 9, False), *_LONG), 8, 57, True, PTE_ADDR, True)

MODES: Final = {mode.name: mode for mode in (UNPAGED, NOPAE, PAE, LONG4, LONG5)}
PAGED_MODES: Final = (NOPAE, PAE, LONG4, LONG5)

PHYS_BITS_DEFAULT: Final = 40  # MAXPHYADDR of QEMU's TCG processors unless told otherwise (QEMU 7.2)


def reserved_bits(mode: PagingMode, level: int, large: bool, nxe: bool, phys_bits: int = PHYS_BITS_DEFAULT) -> int:
    """Mask of the bits that must be 0 in a present entry, else #PF with RSVD (SDM tables 4-4 to 4-20).

    `level` is the entry's level number, `large` whether it maps a large page (PS set and honoured).
    """
    if mode.entry_bytes == 4:
        # Bit 21 of a 4 MiB page is reserved; with PSE-36 bits 20:13 carry address bits up to 39.
        return 1 << 21 if large else 0
    mask = PTE_ADDR & ~((1 << phys_bits) - 1)
    if not nxe:
        mask |= PTE_NX
    if mode is PAE:
        mask |= 0x7FF << 52
        if level == 3:
            # Bits 2:1 and 8:5 of a PDPTE are reserved too (SDM table 4-8), but they are checked when CR3 is loaded
            # (#GP, SDM 4.4.1): no walk ever meets them. QEMU (7.2) checks them nowhere, and sets bit 5 as A.
            mask |= PTE_NX
    spec = mode.level(level)
    if large:
        mask |= (spec.span - 1) & PTE_ADDR & ~0x1000  # bit 12 is PAT
    elif not spec.may_map_large and level > 1 and mode is not PAE:
        mask |= PTE_PS
    return mask
