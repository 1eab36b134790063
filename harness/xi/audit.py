"""The audit: every invariant, recomputed from the raw tables, without the lists and flags that the engine goes by.

Of the systems before XI (ids as in the project's design notes):

- F1 s.P => g.P; F2 s.G = 0; F3 PS only on a page that XI made large; F4 s.P => g.A; F5 leaf s.RW => g.D;
  F6 s.U = g.U; F7 s.NX = g.NX; F8 s.RW => g.RW (Xen's `sh_audit_flags`). `g` is the snapshot's entry, which is what
  the SPT reflects; under the policy ``dynamic`` that of the table itself, while it is in sync. With CR0.WP=0 an entry
  may be open to the supervisor alone, as KVM's kernel document describes: F6-F8 allow just that, and the rights above a
  leaf count with its own.
- X1 nonzero s => e.P and e is valid; X2 s.A => e.A, s.D => e.D (leaves); X3 the target: a leaf maps p2m of e's frame,
  a non-leaf leads to the shadow of the table that e names, of the right role (Xen 3.0.2 `_check_pagetable`, and K2);
  X4 snapshot and shadow pages belong to no guest frame.
- K3 a present leaf is on a list (part of `backlink-bijection`); K4 what waits for synchronisation is known all the
  way up, so a clean root reaches only in-sync tables; K5 no writable SPTE maps an in-sync guest table.
- H1 no two SPTIs of one role, and the hash and the per-gfn lists agree with the SPTIs; P1 m2p(p2m(gfn)) = gfn;
  P2 nothing but a guest's frame is mapped by a leaf.

XI's own: `backlink-bijection`, `pool-conservation`, `zeroed-is-zero`, `snapshot` (in sync => snapshot == table, A and D
aside; ``dynamic``: a page is held by just the tables out of sync, and the table is as it was when it came in sync),
`divided` (exact frames, the key of the page), `large` (contiguous, no guarded table inside), `dirty-log`, `guards`
(counts of protecting SPTIs), `root` (the root in use is that of the guest's CR3), `orphans`, `alias-bases`,
`eager-complete` (eager fill, while nothing was truncated). Of a shared pool: `pool-owner` (an SPTI is free for all, or
one domain's), `pool-order` (the order of recycling is that of use). How policies change them: `harness.xi.audit_links`,
`harness.xi.audit_snapshots` and `harness.xi.audit_pool`.

Left out: K1 (an unsync page is level 1) and Xen's rule that upper levels are never out of sync, because XI lets tables
of every level go; Xen's flag sets of splintered pages, because here the entry above the pieces carries the rights
(`divided` checks that they have all of them and no others); Xen's and KVM's checks of fields that XI does not have
(shadow page types, pinning counts); "number of reverse maps = writable level-1 SPTEs", weaker than the bijection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from harness.engine import AuditFailure, Words
from harness.x86.bits import PTE_A, PTE_ADDR, PTE_D, PTE_G, PTE_NX, PTE_P, PTE_PK, PTE_PS, PTE_RW, PTE_US
from harness.x86.modes import MODES, reserved_bits
from harness.xi.audit_lists import audit_lists
from harness.xi.audit_snapshots import audit_snapshots, snapshot_page, table_changed
from harness.xi.gpt import SW_OVERRIDE, SW_WRITE
from harness.xi.pool import Spti
from harness.xi.roles import (
    VARIANT_NXE,
    VARIANT_PSE,
    VARIANT_READ_ONLY_ABOVE,
    VARIANT_SMEP_NO_WP,
    VARIANT_SUPERVISOR_ABOVE,
    VARIANT_WP,
    Kind,
    Role,
)

if TYPE_CHECKING:
    from harness.xi.engine import XiEngine

Mask = npt.NDArray[np.bool_]
MOST_PER_RULE: Final = 8  # failures reported of one rule in one SPT; the rest say the same


def u64(value: int) -> np.uint64:
    return np.uint64(value & (1 << 64) - 1)


def has(words: Words, bits: int) -> Mask:
    out: Mask = np.not_equal(words & u64(bits), 0)
    return out


class _Table:
    """One SPT being audited: its used SPTEs, and for a GUEST table the guest entries behind them."""

    def __init__(self, engine: XiEngine, spti: Spti, out: list[AuditFailure]) -> None:
        self.engine = engine
        self.spti = spti
        self.out = out
        page = engine.pool_memory.words
        base = spti.index * 2048
        self.spt: Words = page[base : base + 512]
        self.snapshot = snapshot_page(engine, spti)
        self.used = np.flatnonzero(self.spt)
        self.s: Words = self.spt[self.used]
        self.target = ((self.s & u64(PTE_ADDR)) >> np.uint64(12)).view(np.int64)

    def report(self, invariant: str, broken: Mask, what: str, e: Words | None = None) -> None:
        """`broken`: over the used SPTEs."""
        if not broken.any():  # nearly always: the search below would cost more than all the rest
            return
        for i in np.flatnonzero(broken)[:MOST_PER_RULE].tolist():
            entry = "" if e is None else f", guest entry {int(e[i]):#x}"
            role = self.spti.role.text if self.spti.role else "free"
            self.out.append(
                AuditFailure(
                    invariant,
                    f"SPTI {self.spti.index} ({role}) SPTE {int(self.used[i])} = {int(self.s[i]):#x}{entry}: {what}",
                )
            )


def audit(engine: XiEngine) -> list[AuditFailure]:
    """All invariants that do not hold, in no particular order; empty when all is well."""
    out: list[AuditFailure] = []
    in_use = [spti for spti in engine.sptis if spti.role is not None]
    for spti in in_use:
        table = _Table(engine, spti, out)
        if spti.kind is Kind.GUEST:
            _audit_guest(table)
        else:
            _audit_direct(table)
        if len(table.used):
            _audit_leaves(table)
    out.extend(audit_snapshots(engine))
    out.extend(audit_lists(engine))
    return out


def _audit_guest(table: _Table) -> None:
    engine, spti = table.engine, table.spti
    role = spti.role
    assert role is not None
    mode = MODES[role.mode]
    narrow = mode.entry_bytes == 4
    latched = role.mode == "pae" and role.level == 3
    count = 4 if latched else (256 if narrow and role.level == 2 else 512)
    first = role.quadrant * count if narrow or latched else 0
    entries = (table.snapshot.view(np.uint32) if narrow else table.snapshot)[first : first + count]
    if spti.synced and not latched and engine.p2m.backed(role.gfn):
        changed = table_changed(engine, spti, first, entries)
        table.out.extend(AuditFailure("snapshot", each) for each in changed[:MOST_PER_RULE])
    if not len(table.used) and not engine.eager:
        return
    wide: Words = entries.astype(np.uint64)
    if narrow and role.level == 2:
        wide = np.repeat(wide, 2)
    if len(wide) < 512:
        wide = np.concatenate([wide, np.zeros(512 - len(wide), np.uint64)])
    level = mode.level(role.level)
    may_large = level.may_map_large and (not narrow or bool(role.variant & VARIANT_PSE))
    nxe = bool(role.variant & VARIANT_NXE)
    large = has(wide, PTE_PS) & may_large
    bits = engine.config.phys_bits
    small_reserved = has(wide, reserved_bits(mode, role.level, False, nxe, bits))
    large_reserved = has(wide, reserved_bits(mode, role.level, True, nxe, bits)) if may_large else small_reserved
    valid = has(wide, PTE_P) & ~np.where(large, large_reserved, small_reserved)
    gfn = ((wide & u64(mode.address_mask)) >> np.uint64(12)).view(np.int64)
    if may_large:
        gfn = np.where(large, gfn & ~((level.span >> 12) - 1), gfn)
        if narrow:
            high = ((wide >> np.uint64(13)) & np.uint64(0xFF)).view(np.int64) << 20
            gfn = np.where(large, (gfn | high) + (np.arange(512) & 1) * 512, gfn)
    inside = valid & (gfn < engine.config.frames)
    backed = inside & (engine.p2m.table[np.where(inside, gfn, 0)] >= 0)
    if engine.eager and (spti.synced or not spti.fresh) and not engine.counters.eager_truncated:
        missing = np.flatnonzero((backed | (inside & large)) & (table.spt == 0))
        for i in missing[:MOST_PER_RULE].tolist():
            out = f"SPTI {spti.index} ({role.text}) has no SPTE {i} for {int(wide[i]):#x}"
            table.out.append(AuditFailure("eager-complete", out))
    if not len(table.used):
        return
    e = wide[table.used]
    table.report("X1", ~(valid & (backed | large))[table.used], "the guest's entry is absent, invalid or not backed", e)
    _audit_flags(table, e, large[table.used], level.has_rights, level.has_ad, mode.has_nx and nxe)
    _audit_targets(table, e, large[table.used], gfn[table.used])


def _audit_flags(table: _Table, e: Words, large: Mask, rights: bool, has_ad: bool, has_nx: bool) -> None:
    s, role = table.s, table.spti.role
    assert role is not None
    leaf = large | (role.level == 1)
    table.report("F1", has(s, PTE_P) & ~has(e, PTE_P), "present, the guest's entry is not", e)
    table.report("F2", has(s, PTE_G), "global", e)
    if not rights:  # a PAE PDPTE: the hardware may set A (QEMU 7.2 does), nothing else may be there
        table.report("F8", has(s, PTE_RW | PTE_US | PTE_NX), "rights in a PDPTE", e)
        return
    if has_ad:
        table.report("F4", has(s, PTE_P) & ~has(e, PTE_A), "present before the guest's A is set", e)
    table.report("X2", has(s, PTE_A) & ~has(e, PTE_A), "A without the guest's A", e)
    table.report("X2", leaf & has(s, PTE_D) & ~has(e, PTE_D), "D without the guest's D", e)
    table.report("F5", leaf & has(s, PTE_RW) & ~has(e, PTE_D), "writable before the guest's D is set", e)
    wp = bool(role.variant & VARIANT_WP)
    override = has(s, SW_OVERRIDE)
    if wp:
        table.report("F8", override, "an override although CR0.WP=1", e)
    above = role.variant if not wp else 0  # rights of the entries above, checked at the leaf when CR0.WP=0
    user = has(e, PTE_US) & ~(leaf & bool(above & VARIANT_SUPERVISOR_ABOVE))
    write = has(e, PTE_RW) & ~(leaf & bool(above & VARIANT_READ_ONLY_ABOVE))
    table.report("F6", ~override & (has(s, PTE_US) != user), "U/S differs", e)
    table.report("F8", override & ~leaf, "an override of an entry that leads to a table", e)
    table.report("F6", override & has(s, PTE_US), "overridden, yet open to users", e)
    own_nx = override & bool(role.variant & VARIANT_SMEP_NO_WP)
    guest_nx = has(e, PTE_NX) if has_nx else np.zeros(len(e), np.bool_)
    table.report("F7", ~own_nx & (has(s, PTE_NX) != guest_nx), "NX differs", e)
    table.report("F7", own_nx & ~has(s, PTE_NX), "overridden under SMEP, yet executable", e)
    may_write = write | ((~has(s, PTE_US) | ~leaf) & (not wp))
    table.report("F8", has(s, PTE_RW) & ~may_write, "writable, the guest's entry is not", e)
    table.report("F8", has(s, SW_WRITE) & ~has(e, PTE_RW) & wp, "taken as writable by the guest, which it is not", e)
    if MODES[role.mode].canonical:
        table.report("F8", leaf & has(s, PTE_PS) & ((s ^ e) & u64(PTE_PK) != 0), "protection key differs", e)
        if role.level == 1:
            table.report("F8", (s ^ e) & u64(PTE_PK) != 0, "protection key differs", e)


def _audit_targets(table: _Table, e: Words, large: Mask, gfn: npt.NDArray[np.int64]) -> None:
    engine, role = table.engine, table.spti.role
    assert role is not None
    frames = engine.config.frames
    inside = np.where(gfn < frames, gfn, 0)
    if role.level == 1:
        table.report("X3", engine.p2m.table[inside] != table.target, "not the machine frame of the guest's frame", e)
        return
    page = has(table.s, PTE_PS)
    table.report("F3", page & ~large, "large, the guest's entry is not", e)
    wrong = page & large & (engine.p2m.table[inside] != table.target)
    table.report("X3", wrong, "not the machine frame of the guest's large page", e)
    bad = np.zeros(len(e), np.bool_)
    for i in np.flatnonzero(~page).tolist():
        child = _child(engine, int(table.target[i]))
        if large[i]:
            key = (int(e[i]) & PTE_PK) >> 59 if MODES[role.mode].canonical else 0
            wanted = Role(Kind.DIRECT, int(gfn[i]), role.level - 1, role.mode, 0, key)
        else:
            half = int(table.used[i]) & 1 if role.mode == "nopae" else 0
            variant = role.variant
            if not variant & VARIANT_WP and MODES[role.mode].level(role.level).has_rights:
                variant |= 0 if int(e[i]) & PTE_RW else VARIANT_READ_ONLY_ABOVE
                variant |= 0 if int(e[i]) & PTE_US else VARIANT_SUPERVISOR_ABOVE
            wanted = Role(Kind.GUEST, int(gfn[i]), role.level - 1, role.mode, half, variant)
        bad[i] = child is None or child.role != wanted
    table.report("X3", bad, "does not lead to the shadow of what the guest's entry names", e)


def _child(engine: XiEngine, mfn: int) -> Spti | None:
    offset = mfn - engine.config.pool_base_mfn
    if offset < 0 or offset % 4 or offset // 4 >= len(engine.sptis):
        return None
    return engine.sptis[offset // 4]


def _audit_direct(table: _Table) -> None:
    engine, spti = table.engine, table.spti
    role = spti.role
    assert role is not None
    if role.kind is Kind.QUADRANTS:
        for i, index in enumerate(table.used.tolist()):
            child = _child(engine, int(table.target[i]))
            quadrant = Role(Kind.GUEST, role.gfn, 2, role.mode, index, role.variant)
            if child is None or child.role != quadrant or table.s[i] & u64(PTE_RW | PTE_US | PTE_NX):
                table.out.append(
                    AuditFailure("X3", f"SPTI {spti.index} ({role.text}) entry {index} is not quadrant {index}")
                )
        return
    key = role.variant if role.kind is Kind.DIRECT else 0
    gfn = role.gfn + (table.used << 9 * (role.level - 1))
    page = has(table.s, PTE_PS) | (role.level == 1)
    inside = np.where(gfn < engine.config.frames, gfn, 0)
    frames = engine.p2m.table[inside]
    table.report(
        "divided", (gfn >= engine.config.frames) | page & (frames != table.target), "not the frame of the piece"
    )
    if role.kind is Kind.DIRECT:
        table.report("divided", ~has(table.s, PTE_US) | has(table.s, PTE_NX), "rights belong in the entry above")
        table.report("divided", page & ((table.s & u64(PTE_PK)) >> np.uint64(59) != key), "key of the page differs")
        table.report("divided", ~has(table.s, PTE_P), "a piece is not present")
    bad = np.zeros(len(table.used), np.bool_)
    for i in np.flatnonzero(~page).tolist():
        child = _child(engine, int(table.target[i]))
        bad[i] = child is None or child.role != Role(Kind.DIRECT, int(gfn[i]), role.level - 1, role.mode, 0, key)
    table.report("divided", bad, "does not lead to the pieces of this page")
    if engine.eager and role.level == 1 and not engine.counters.eager_truncated:
        backed = engine.p2m.table[role.gfn : role.gfn + 512] >= 0
        if (backed & (table.spt[: len(backed)] == 0)).any():
            table.out.append(AuditFailure("divided", f"SPTI {spti.index} ({role.text}) lacks pieces of the page"))


def _audit_leaves(table: _Table) -> None:
    engine, level = table.engine, table.spti.level
    leaf = has(table.s, PTE_PS) if level > 1 else np.ones(len(table.s), np.bool_)
    if not leaf.any():
        return
    mfns = table.target
    known = leaf & (mfns < engine.memory.frames)
    gfns = engine.p2m.m2p[np.where(known, mfns, 0)]
    stray = leaf & (~known | (gfns < 0))
    table.report("P2", stray, "maps a frame that is not the guest's")
    sound = leaf & ~stray
    writable = sound & has(table.s, PTE_RW)
    if level == 1:
        guarded = np.zeros(len(leaf), np.bool_)
        guarded[sound] = engine.guarded_array[gfns[sound]] != 0
        table.report("K5", writable & guarded, "writable, and its target is a guest table in sync")
        if engine.logging:
            logged = np.zeros(len(leaf), np.bool_)
            logged[sound] = engine.logged_array[gfns[sound]] != 0
            table.report("dirty-log", writable & ~logged, "writable, and its target is not in the dirty log")
        return
    size = 1 << 9 * (level - 1)
    holds = np.zeros(len(leaf), np.bool_)
    scattered = np.zeros(len(leaf), np.bool_)
    for i in np.flatnonzero(sound).tolist():
        gfn = int(gfns[i])
        run = engine.p2m.table[gfn : gfn + size]
        holds[i] = engine.guarded_array[gfn : gfn + size].any()
        scattered[i] = len(run) != size or gfn % size or int(run[0]) % size or (np.diff(run) != 1).any()
    table.report("large", holds, "a guest table in sync lies inside this large page")
    table.report("large", scattered, "the machine frames of this large page are not one aligned run")
    if engine.logging:
        table.report("dirty-log", writable, "a large page is writable while the dirty log runs")
