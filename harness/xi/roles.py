"""What an SPT stands for: its role, the key under which it is found again.

Two SPTs of one guest table differ in role when their SPTEs mean different things: another level (a table mapped
recursively), another quadrant (a 32-bit guest's table is wider than one SPT), or control bits that change what an
entry says.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from harness.x86.control import ControlState


class Kind(IntEnum):
    """What the SPTEs are made from.

    GUEST: the entries of a guest table. DIRECT: a run of guest frames, with all rights (the pieces of a divided large
    page, and the map of an unpaged guest; rights are checked above). QUADRANTS: the root over the four L2 SPTs of a
    32-bit guest's page directory. UNPAGED: the root over the direct map.
    """

    GUEST = 0
    DIRECT = 1
    QUADRANTS = 2
    UNPAGED = 3


# The members as plain names: looking one up on the class costs a fifth of a microsecond in Python 3.11.
GUEST: Final = Kind.GUEST
DIRECT: Final = Kind.DIRECT
QUADRANTS: Final = Kind.QUADRANTS
UNPAGED: Final = Kind.UNPAGED

# Bits of Role.variant (for DIRECT the variant is the protection key instead).
VARIANT_WP: Final = 1
VARIANT_NXE: Final = 2
VARIANT_SMEP_NO_WP: Final = 4
VARIANT_SMAP_NO_WP: Final = 8
VARIANT_PSE: Final = 16
# With CR0.WP=0 only: the rights of the entries above are cumulated in the role, and checked at the leaf. A supervisor
# store may have to open a leaf for itself alone, and whether that is right depends on the whole path.
VARIANT_READ_ONLY_ABOVE: Final = 32
VARIANT_SUPERVISOR_ABOVE: Final = 64


class Role(NamedTuple):
    """gfn: the guest table, or the first frame of a DIRECT run. level: of the SPT, 1 to 5. mode: paging mode's name.

    quadrant: which part of the guest's table the SPT covers: 0-3 of a `nopae` PD, 0-1 of a `nopae` PT, which 32-byte
    slot of its frame holds a `pae` PDPT, else 0. variant: VARIANT_* bits, or a DIRECT run's protection key.
    """

    kind: Kind
    gfn: int
    level: int
    mode: str
    quadrant: int
    variant: int

    @property
    def text(self) -> str:
        """Short human form, e.g. ``guest L2 gfn 0x105 pae q0 v3``."""
        return (
            f"{self.kind.name.lower()} L{self.level} gfn {self.gfn:#x} {self.mode} q{self.quadrant} v{self.variant:x}"
        )


def variant_of(state: ControlState) -> int:
    """The control bits that change what an SPTE means, as KVM's role keeps them (its kernel document, `mmu.rst`)."""
    variant = 0
    if state.wp:
        variant |= VARIANT_WP
    else:
        variant |= (VARIANT_SMEP_NO_WP if state.smep else 0) | (VARIANT_SMAP_NO_WP if state.smap else 0)
    if state.nxe:
        variant |= VARIANT_NXE
    if state.pse:
        variant |= VARIANT_PSE
    return variant


# Shadow format of each guest mode: the level of its root, and the name of the mode the hardware walks it in.
ROOT_LEVEL: Final = {"unpaged": 3, "nopae": 3, "pae": 3, "long4": 4, "long5": 5}
FORMAT: Final = {"unpaged": "pae", "nopae": "pae", "pae": "pae", "long4": "long4", "long5": "long5"}


def shadow_shift(level: int) -> int:
    """Lowest virtual-address bit of an SPT's index at `level`; every shadow format has nine index bits a level."""
    return 3 + 9 * level


def root_role(state: ControlState) -> Role:
    """The role of the root SPT for a guest in `state`."""
    return root_role_at(state.mode.name, variant_of(state), state.root_gpa)


def root_role_at(mode: str, variant: int, root_gpa: int) -> Role:
    """The role of the root SPT of a guest in `mode` with control bits `variant`; root_gpa: see `ControlState`."""
    level = ROOT_LEVEL[mode]
    if mode == "unpaged":
        return Role(UNPAGED, 0, level, mode, 0, 0)
    if mode == "nopae":
        return Role(QUADRANTS, root_gpa >> 12, level, mode, 0, variant)
    slot = (root_gpa & 0xFFF) >> 5 if mode == "pae" else 0
    return Role(GUEST, root_gpa >> 12, level, mode, slot, variant)
