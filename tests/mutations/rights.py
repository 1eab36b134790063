"""Mutations of what an SPTE allows and of the fault that a guest is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from harness.engine import ShadowRoot
from harness.x86.bits import (
    CR0_WP,
    CR4_SMAP,
    CR4_SMEP,
    PF_I,
    PF_RSVD,
    PTE_A,
    PTE_D,
    PTE_G,
    PTE_NX,
    PTE_P,
    PTE_PK,
    PTE_RW,
    PTE_US,
)
from harness.xi.decision import RIGHTS as RIGHTS_TABLE
from harness.xi.engine import XiEngine
from harness.xi.gpt import SW_WRITE, EntryRules
from harness.xi.pool import Spti
from harness.xi.roles import Role
from tests.mutations.mutation import Mutation, caught

Twist = Callable[[EntryRules], EntryRules]
Flags = Callable[[int, int], int]


def with_rules(twist: Twist) -> type[XiEngine]:
    """An engine that makes its SPTEs by other rules; its own reading of the guest (the fault path) stays right."""

    class Twisted(XiEngine):
        def _bind(self, spti: Spti, role: Role) -> None:
            super()._bind(spti, role)
            if spti.rules is not None:
                spti.rules = twist(spti.rules)

    return Twisted


def with_leaves(change: Flags) -> type[XiEngine]:
    """An engine that gives the SPTEs of present leaves the flags `change(low bits of the guest's entry, flags)`."""

    def twist(rules: EntryRules) -> EntryRules:
        leaf = tuple(change(bits, flags) if flags else 0 for bits, flags in enumerate(rules.leaf))
        return replace(rules, leaf=leaf, leaf_array=np.array(leaf, np.uint64))

    return with_rules(twist)


def with_tables(change: Flags) -> type[XiEngine]:
    """The same for the SPTEs that lead to tables."""

    def twist(rules: EntryRules) -> EntryRules:
        if not rules.has_rights:  # a PAE PDPTE, in which these flags are reserved
            return rules
        return replace(
            rules, table=tuple(change(bits, flags) if flags else 0 for bits, flags in enumerate(rules.table))
        )

    return with_rules(twist)


def with_control(cr0: int = 0, cr4: int = 0) -> type[XiEngine]:
    """An engine that has the hardware run on the shadow without these bits of CR0 and CR4."""

    class Uncontrolled(XiEngine):
        def _hardware_root(self, root: Spti) -> ShadowRoot:
            real = super()._hardware_root(root)
            control = replace(real.control, cr0=real.control.cr0 & ~cr0, cr4=real.control.cr4 & ~cr4)
            return replace(real, control=control)

    return Uncontrolled


def with_codes(change: Flags) -> type[XiEngine]:
    """An engine that injects the error code `change(access, code)`."""

    class Miscoded(XiEngine):
        def latch_walk(self) -> None:
            super().latch_walk()
            self._codes = tuple(
                tuple(change(access, code) if code >= 0 else code for access, code in enumerate(row))
                for row in self._codes
            )

    return Miscoded


class WriteProtectAssumed(XiEngine):
    """Judges every access as if CR0.WP were set."""

    def latch_walk(self) -> None:
        super().latch_walk()
        self._control_rights |= 1 << RIGHTS_TABLE.shift["wp"]


class RootBesideThePool(XiEngine):
    """Gives the hardware a root just behind its pool."""

    def _hardware_root(self, root: Spti) -> ShadowRoot:
        return replace(super()._hardware_root(root), root=self.config.pool_base_mfn + self.config.pool_frames << 12)


LOST_FRAME_BIT: Final = with_rules(lambda r: replace(r, frame_mask=r.frame_mask & ~0x1000) if r.level == 1 else r)

RIGHTS: Final = (
    Mutation(
        "nx-dropped",
        "NX is not copied into SPTEs",
        caught("probe", "audit:F7"),
        "perm",
        "pae",
        with_rules(lambda r: replace(r, leaf_copy=r.leaf_copy & ~PTE_NX, table_copy=r.table_copy & ~PTE_NX)),
    ),
    Mutation(
        "user-always",
        "U/S is set in the SPTE of every page",
        caught("probe", "audit:F6"),
        "perm",
        "nopae",
        with_leaves(lambda bits, flags: flags | PTE_US),
    ),
    Mutation(
        "user-dropped",
        "U/S is dropped in SPTEs that lead to tables",
        caught("probe", "audit:F6"),
        "basic",
        "nopae",
        with_tables(lambda bits, flags: flags & ~PTE_US),
    ),
    Mutation(
        "writable-always",
        "RW is set in the SPTE of every page that was ever used",
        caught("probe", "audit:F8"),
        "perm",
        "nopae",
        with_leaves(lambda bits, flags: flags | PTE_D | SW_WRITE if flags & PTE_P else flags),
    ),
    Mutation(
        "read-only-table-ignored",
        "RW=0 in an entry that leads to a table does not reach the SPTE",
        caught("probe", "audit:F8"),
        "perm",
        "pae",
        with_tables(lambda bits, flags: flags | PTE_RW | SW_WRITE),
    ),
    Mutation(
        "key-dropped",
        "the protection key is not copied into SPTEs",
        caught("probe", "audit:F8"),
        "perm",
        "long4",
        with_rules(lambda r: replace(r, leaf_copy=r.leaf_copy & ~PTE_PK)),
    ),
    Mutation(
        "global-kept",
        "G is copied into SPTEs, so that a CR3 load would spare them",
        caught("audit:F2"),
        "switch",
        "nopae",
        with_rules(lambda r: replace(r, leaf_copy=r.leaf_copy | PTE_G)),
    ),
    Mutation(
        "reserved-ignored",
        "an entry with a reserved bit is shadowed like any other",
        caught("probe", "audit:X1"),
        "hostile_rsvd",
        "pae",
        with_rules(lambda r: replace(r, reserved=0, reserved_large=0)),
    ),
    Mutation(
        "frame-bit-lost",
        "the lowest bit of a page's frame number is lost",
        caught("probe", "audit:X3"),
        "basic",
        "long4",
        LOST_FRAME_BIT,
    ),
    Mutation(
        "pse36-ignored",
        "a 4 MiB page's address bits 39:32 are not read",
        caught("probe"),
        "large",
        "nopae",
        with_rules(lambda r: replace(r, pse36=False)),
    ),
    Mutation(
        "fetch-bit-wrong",
        "the I bit of the error code is inverted for fetches",
        caught("probe"),
        "basic",
        "nopae",
        with_codes(lambda access, code: code ^ PF_I if access & 3 == 2 else code),
    ),
    Mutation(
        "rsvd-bit-missing",
        "the error code of a reserved bit lacks RSVD",
        caught("probe"),
        "hostile_rsvd",
        "pae",
        with_codes(lambda access, code: code & ~PF_RSVD),
    ),
    Mutation(
        "smep-ignored",
        "the hardware runs on the shadow without SMEP",
        caught("probe"),
        "perm",
        "nopae",
        with_control(cr4=CR4_SMEP),
    ),
    Mutation(
        "smap-ignored",
        "the hardware runs on the shadow without SMAP",
        caught("probe"),
        "perm",
        "nopae",
        with_control(cr4=CR4_SMAP),
    ),
    Mutation(
        "wp-assumed",
        "CR0.WP=0 is ignored: supervisor stores to read-only pages are refused",
        caught("probe"),
        "perm",
        "nopae",
        WriteProtectAssumed,
    ),
    Mutation(
        "wp-off-in-hardware",
        "the hardware runs on the shadow with CR0.WP=0",
        caught("probe"),
        "basic",
        "nopae",
        with_control(cr0=CR0_WP),
    ),
    Mutation(
        "root-beside-the-pool",
        "CR3 of the hardware points just behind the pool",
        caught("probe"),
        "basic",
        "long5",
        RootBesideThePool,
    ),
    Mutation(
        "accessed-ignored",
        "an SPTE is present before the guest's A bit is set",
        caught("ad_bits", "audit:F4"),
        "perm",
        "nopae",
        with_leaves(lambda bits, flags: flags | PTE_P | PTE_A),
    ),
    Mutation(
        "dirty-ignored",
        "an SPTE is writable before the guest's D bit is set",
        caught("ad_bits", "audit:F5", "audit:X2"),
        "switch",
        "nopae",
        with_leaves(lambda bits, flags: flags | PTE_D if bits & PTE_RW and bits & PTE_A else flags),
    ),
)
