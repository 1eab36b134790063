"""The audit that all peer engines share: every invariant recomputed from the raw tables.

Ids as in `harness.xi.audit`. Of a page that the engine holds to be in sync (`PeerEngine.in_sync`: none of an engine
without write protection) `g` is the guest's entry as it is now; of the others, which may be stale as a TLB may,
only what an SPTE says of itself is checked.

- Of every SPTE: F2 s.G = 0; F4 s.P => s.A; F5 leaf s.RW => s.D (A and D of an SPTE are the guest's); F3 PS only where a
  page may be large; P2 a leaf maps a guest's frame, `large` a large one a whole run of them; X3 a non-leaf leads to a
  page in use, one level down; `dirty-log`: what is writable is in the log; K5 no writable SPTE maps a protected table.
- Of a page in sync: F1 s.P => g.P, F4 s.P => g.A, F5 leaf s.RW => g.D, F6 s.U = g.U, F7 s.NX = g.NX, F8 s.RW => g.RW,
  X3 the target is what g names, in the right role; with the exceptions that CR0.WP=0 makes (see `harness.xi.audit`).
- H1 the hash and the pages agree; `pool-conservation`: free + in use = reserved; `root`: that of the guest's CR3;
  P1 m2p is the inverse of p2m; X4 no guest frame lies in the pool; `divided`: pieces of a large page are its frames.

What an engine keeps besides (reverse maps, parents, synchronisation) it audits itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from harness.engine import AuditFailure, Words
from harness.x86.bits import PTE_A, PTE_ADDR, PTE_D, PTE_G, PTE_NX, PTE_P, PTE_PK, PTE_PK_SHIFT, PTE_PS, PTE_RW, PTE_US
from harness.x86.modes import MODES, reserved_bits
from harness.xi.gpt import SW_OVERRIDE
from harness.xi.roles import (
    VARIANT_NXE,
    VARIANT_PSE,
    VARIANT_READ_ONLY_ABOVE,
    VARIANT_SMEP_NO_WP,
    VARIANT_SUPERVISOR_ABOVE,
    VARIANT_WP,
    Kind,
    Role,
    root_role,
)

if TYPE_CHECKING:
    from harness.peers.engine import PeerEngine
    from harness.peers.pages import ShadowPage

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
MOST_PER_RULE: Final = 4


def has(words: Words, bits: int) -> Mask:
    out: Mask = (words & np.uint64(bits & (1 << 64) - 1)) != 0
    return out


def audit(engine: PeerEngine) -> list[AuditFailure]:
    """All invariants that do not hold; empty when all is well."""
    out: list[AuditFailure] = []
    _audit_pool(engine, out)
    for page in engine.pool_pages.in_use.values():
        used = page.spt.nonzero()[0]
        if len(used):
            table = _Page(engine, page, used, out)
            table.audit_own()
            if page.kind is Kind.GUEST and engine.in_sync(page):
                table.audit_against_guest()
            elif page.kind is Kind.DIRECT:
                table.audit_pieces()
    return out


def _audit_pool(engine: PeerEngine, out: list[AuditFailure]) -> None:
    pool = engine.pool_pages
    free, used = set(pool.free), set(pool.in_use)
    if len(free) != len(pool.free) or free & used or len(free) + len(used) != len(pool):
        out.append(AuditFailure("pool-conservation", f"{len(pool.free)} free + {len(used)} in use, of {len(pool)}"))
    roles = {page.role: page for page in pool.in_use.values()}
    if roles != pool.by_role or None in roles:
        out.append(AuditFailure("H1", "the hash of roles and the pages in use disagree"))
    backed, m2p = np.flatnonzero(engine.p2m.table >= 0), engine.p2m.m2p
    known = backed[engine.p2m.table[backed] < len(m2p)]
    if (m2p[engine.p2m.table[known]] != known).any() or np.count_nonzero(m2p >= 0) != len(backed):
        out.append(AuditFailure("P1", "m2p is not the inverse of p2m"))
    inside = (engine.p2m.table >= pool.base_mfn) & (engine.p2m.table < pool.base_mfn + len(pool))
    if inside.any():
        out.append(AuditFailure("X4", "a guest frame lies in the pool"))
    root = engine.root_page
    if root is not None and (root.index not in used or root.role != root_role(engine.state)):
        out.append(AuditFailure("root", f"the root in use is {root.role}, not {root_role(engine.state)}"))


class _Page:
    """One shadow page being audited, of which the SPTEs numbered `used` are not empty."""

    def __init__(self, engine: PeerEngine, page: ShadowPage, used: Ints, out: list[AuditFailure]) -> None:
        assert page.role is not None
        self.engine = engine
        self.page = page
        self.role: Role = page.role
        self.used = used
        self.out = out
        self.s: Words = page.spt[used]
        self.leaf: Mask = has(self.s, PTE_PS) if page.level > 1 else np.ones(len(used), np.bool_)
        self.target: Ints = ((self.s & np.uint64(PTE_ADDR)) >> np.uint64(12)).view(np.int64)

    def report(self, invariant: str, broken: Mask, what: str) -> None:
        """`broken`: over the used SPTEs."""
        for i in np.flatnonzero(broken)[:MOST_PER_RULE].tolist():
            where = f"page {self.page.index} ({self.role.text}) SPTE {int(self.used[i])} = {int(self.s[i]):#x}"
            self.out.append(AuditFailure(invariant, f"{where}: {what}"))

    def audit_own(self) -> None:
        """What every SPTE must say of itself."""
        s, leaf, engine, level = self.s, self.leaf, self.engine, self.page.level
        pdpte = level == 3 and self.role.mode in ("unpaged", "nopae", "pae")
        self.report("F2", has(s, PTE_G), "global")
        self.report("F3", (level not in (1, 2, 3) or pdpte) & leaf, "large at a level that has no large pages")
        if pdpte:
            self.report("F8", has(s, PTE_RW | PTE_US | PTE_NX), "rights in a PDPTE")
        else:
            self.report("F4", has(s, PTE_P) & ~has(s, PTE_A), "present without A")
        self.report("F5", leaf & has(s, PTE_RW) & ~has(s, PTE_D), "writable without D")
        frames = self.target[leaf]
        gfns = np.full(len(s), -1, np.int64)
        inside = frames < len(engine.p2m.m2p)
        gfns[leaf] = np.where(inside, engine.p2m.m2p[np.where(inside, frames, 0)], -1)
        self.report("P2", leaf & (gfns < 0), "maps a frame that is no guest's")
        self._audit_writable(leaf & has(s, PTE_RW) & (gfns >= 0), gfns)
        self._audit_children()

    def _audit_writable(self, writable: Mask, gfns: Ints) -> None:
        engine, span = self.engine, 1 << 9 * (self.page.level - 1)
        for i in np.flatnonzero(self.leaf & (gfns >= 0)).tolist() if span > 1 else ():
            first = int(gfns[i])
            run = engine.p2m.table[first : first + span]
            one = np.zeros(len(self.s), np.bool_)
            one[i] = True
            whole = len(run) == span and bool((run == int(self.target[i]) + np.arange(span)).all())
            if not whole:
                self.report("large", one, "the machine frames are not in one piece")
            if writable[i] and engine.protected[first : first + span].any():
                self.report("K5", one, "a writable large page with a protected table in it")
        if span == 1:
            where = np.where(gfns >= 0, gfns, 0)
            self.report("K5", writable & (engine.protected[where] != 0), "maps a protected table, writable")
            self.report("dirty-log", writable & engine.logging & (engine.logged[where] == 0), "writable, not logged")
        else:
            self.report("dirty-log", writable & engine.logging, "a writable large page while the log runs")

    def _audit_children(self) -> None:
        pool = self.engine.pool_pages
        number = self.target - pool.base_mfn
        for i in np.flatnonzero(~self.leaf).tolist():
            child = pool.in_use.get(int(number[i]))
            if child is None or child.level != self.page.level - 1:
                one = np.zeros(len(self.s), np.bool_)
                one[i] = True
                self.report("X3", one, "leads to no shadow page of the next level")

    def audit_pieces(self) -> None:
        """The pieces of a large page, or of an unpaged guest's memory."""
        gfns = self.role.gfn + (self.used << 9 * (self.role.level - 1))
        inside = np.where(gfns < self.engine.config.frames, gfns, 0)
        wrong = (gfns != inside) | (self.engine.p2m.table[inside] != self.target)
        self.report("divided", self.leaf & wrong, "not the frame of the piece")
        self.report("divided", ~has(self.s, PTE_US) | has(self.s, PTE_NX), "rights belong in the entry above")
        key = (self.s & np.uint64(PTE_PK)) >> np.uint64(PTE_PK_SHIFT)
        self.report("divided", self.leaf & (key != self.role.variant), "key of the page differs")

    def audit_against_guest(self) -> None:
        """F1-F8 and X3, for a table in sync."""
        engine, role, s, leaf = self.engine, self.role, self.s, self.leaf
        mode = MODES[role.mode]
        page = engine.memory.page(engine.p2m.to_mfn[role.gfn])
        narrow = mode.entry_bytes == 4
        number = self.used
        if narrow:
            number = (number >> 1) + role.quadrant * 256 if role.level == 2 else number + role.quadrant * 512
        e: Words = (page.view(np.uint32) if narrow else page)[number].astype(np.uint64)
        level = mode.level(role.level)
        nxe, wp = bool(role.variant & VARIANT_NXE), bool(role.variant & VARIANT_WP)
        large = has(e, PTE_PS) & level.may_map_large & (not narrow or bool(role.variant & VARIANT_PSE))
        bits = engine.config.phys_bits
        reserved = has(e, reserved_bits(mode, role.level, False, nxe, bits))
        if level.may_map_large:
            reserved = np.where(large, has(e, reserved_bits(mode, role.level, True, nxe, bits)), reserved)
        self.report("F1", ~has(e, PTE_P) | reserved, "there, the guest's entry is absent or invalid")
        self.report("F4", has(s, PTE_P) & ~has(e, PTE_A), "present before the guest's A is set")
        ends = large | (role.level == 1)
        self.report("F5", ends & has(s, PTE_RW) & ~has(e, PTE_D), "writable before the guest's D is set")
        above = role.variant if not wp else 0
        user = has(e, PTE_US) & ~(ends & bool(above & VARIANT_SUPERVISOR_ABOVE))
        write = has(e, PTE_RW) & ~(ends & bool(above & VARIANT_READ_ONLY_ABOVE))
        opened = has(s, SW_OVERRIDE)
        self.report("F8", opened & (wp | ~ends), "an override that CR0.WP=0 does not ask for")
        self.report("F6", has(s, PTE_US) != (user & ~opened), "U/S differs")
        guest_nx = has(e, PTE_NX) & (mode.has_nx and nxe)
        own_nx = opened & bool(role.variant & VARIANT_SMEP_NO_WP)
        self.report("F7", has(s, PTE_NX) != (guest_nx | own_nx), "NX differs")
        may_write = write | (not wp) & (~has(s, PTE_US) | ~ends)
        self.report("F8", has(s, PTE_RW) & ~may_write, "writable, the guest's entry is not")
        if mode.canonical:
            self.report("F8", leaf & has(s ^ e, PTE_PK), "protection key differs")
        self._audit_targets(e, large, ends)

    def _audit_targets(self, e: Words, large: Mask, ends: Mask) -> None:
        engine, role = self.engine, self.role
        mode = MODES[role.mode]
        gfns = ((e & np.uint64(mode.address_mask)) >> np.uint64(12)).view(np.int64)
        if large.any():
            start = gfns & ~((mode.level(role.level).span >> 12) - 1)
            if mode.entry_bytes == 4:
                start |= ((e >> np.uint64(13)) & np.uint64(0xFF)).view(np.int64) << 20
                start += (self.used & 1) * 512
            gfns = np.where(large, start, gfns)
        inside = np.where(gfns < engine.config.frames, gfns, 0)
        wrong = (gfns != inside) | (self.leaf & (~ends | (engine.p2m.table[inside] != self.target)))
        for i in np.flatnonzero(~self.leaf).tolist():
            child = engine.pool_pages.pages[(int(self.target[i]) - engine.pool_pages.base_mfn) % len(engine.pool_pages)]
            wrong[i] |= child.role != self._child_role(int(self.used[i]), int(e[i]), bool(large[i]), int(gfns[i]))
        self.report("X3", wrong, "does not lead to what the guest's entry names")

    def _child_role(self, index: int, entry: int, large: bool, gfn: int) -> Role:
        """Role of the page that SPTE `index` must lead to: the pieces of a large page, or a table's shadow."""
        role, mode = self.role, MODES[self.role.mode]
        if large:
            key = (entry & PTE_PK) >> PTE_PK_SHIFT if mode.canonical else 0
            return Role(Kind.DIRECT, gfn, role.level - 1, role.mode, 0, key)
        variant = role.variant
        if not variant & VARIANT_WP and mode.level(role.level).has_rights:
            variant |= 0 if entry & PTE_RW else VARIANT_READ_ONLY_ABOVE
            variant |= 0 if entry & PTE_US else VARIANT_SUPERVISOR_ABOVE
        return Role(Kind.GUEST, gfn, role.level - 1, role.mode, index & 1 if mode.entry_bytes == 4 else 0, variant)
