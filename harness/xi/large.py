"""Large pages: when one SPTE may stand for 2 MiB or 1 GiB, and what stands for it when none may.

A large page that holds a guarded guest table, or whose machine frames are scattered, is *divided*: its SPTE leads to a
DIRECT SPT of 512 smaller pages with every right; the guest's rights, A and D are checked in the SPTE above. An
unpaged guest's map is the same thing: four 1 GiB pages, all divided.
"""

from __future__ import annotations

import numpy as np

from harness.x86.bits import PTE_ADDR, PTE_PK, PTE_PK_SHIFT, PTE_PS, PTE_RW
from harness.xi.gpt import OPEN_LEAF, OPEN_PDPTE, OPEN_TABLE, SW_OVERRIDE, divided_flags
from harness.xi.life import Life
from harness.xi.pool import Spti
from harness.xi.roles import DIRECT, GUEST, QUADRANTS, UNPAGED, Role


class LargePages(Life):
    """Division of large pages, and the DIRECT tables that come of it."""

    def whole(self, gfn: int, level: int) -> bool:
        """Whether the large page of `level` at `gfn` can be one SPTE: contiguous, aligned, no guarded table inside."""
        if not self.p2m.whole(gfn, level):
            return False
        return not (self.guarded_2m[gfn >> 9] if level == 2 else self.guarded_1g[gfn >> 18])

    def divide_large_page(self, spti: Spti, word: int, force: bool = False) -> bool:
        """Replaces the large SPTE at `word` of `spti` by one that leads to its 512 pieces.

        False when the pool has no SPTI for it; the SPTE is then gone, and a fault may bring it back.
        """
        spte = self.q[word]
        gfn = self.leaf_gfn(spte)
        self.drop(spti, word)
        self.counters.divided += 1
        # The SPTE's RW may be withheld for the time being; D says what the guest's entry allows.
        return self.link_divided(
            spti, word, gfn, (spte & PTE_PK) >> PTE_PK_SHIFT, divided_flags(spte & ~PTE_ADDR), force
        )

    def link_divided(self, spti: Spti, word: int, gfn: int, key: int, flags: int, force: bool = False) -> bool:
        """Makes the empty SPTE at `word` lead to the pieces of the large page at `gfn`; filled, under eager fill."""
        assert spti.role is not None
        role = Role(DIRECT, gfn, spti.level - 1, spti.role.mode, 0, key)
        with self.pinned(spti):
            child = self.make_child(spti, word & 511, role, force)
            if child is None:
                return False
            if child.fresh:  # nothing to compare with: it is in sync from the start, if with holes
                child.synced = True
                self.dirty[child.index] = 0
            self.set_child(spti, word, child, flags)
            if flags & SW_OVERRIDE:
                self.overridden.add(word)
            if self.eager and child.fresh:
                self.fill_direct(child)
        return True

    def fill_direct(self, spti: Spti) -> None:
        """Brings in every missing SPTE of a table that no guest table stands behind. It is in sync then."""
        spti.synced = True
        spti.fresh = False
        count = 4 if spti.kind in (UNPAGED, QUADRANTS) else 512
        self.counters.sptes_visited += count
        with self.pinned(spti):
            if spti.kind is DIRECT and spti.level == 1:
                self._fill_frames(spti)
                return
            for index in range(count):
                if not self.q[spti.base + index]:
                    self.fill_direct_entry(spti, index, False)

    def _fill_frames(self, spti: Spti) -> None:
        assert spti.role is not None
        mfns = self.p2m.table[spti.gfn : spti.gfn + 512]
        used = np.flatnonzero((mfns >= 0) & (spti.spt[: len(mfns)] == 0))
        gfns = used + spti.gfn
        blocked = self.guarded_array[gfns] != 0
        if self.logging:
            blocked |= self.logged_array[gfns] == 0
        flags = np.where(blocked, np.uint64(OPEN_LEAF), np.uint64(OPEN_LEAF | PTE_RW))
        key = np.uint64(spti.role.variant << PTE_PK_SHIFT)
        spti.spt[used] = mfns[used].astype(np.uint64) << np.uint64(12) | flags | key
        self.counters.sptes_written += len(used)
        self.links.link_many(self.words_of(spti, used), gfns)
        if self.watching:
            self.aliases.mark_guarded(gfns)
            self.aliases.gain_many(spti, gfns)

    def fill_direct_entry(self, spti: Spti, index: int, force: bool) -> bool:
        """Brings SPTE `index` of a DIRECT or root table up to date. False when it could not be filled."""
        assert spti.role is not None
        word = spti.base + index
        if spti.level == 1:
            return self._fill_frame(spti, word, spti.gfn + index, OPEN_LEAF | spti.role.variant << PTE_PK_SHIFT)
        spte = self.q[word]
        if spti.kind is QUADRANTS:
            return bool(spte) or self._link_quadrant(spti, index, force)
        key = spti.role.variant if spti.kind is DIRECT else 0
        gfn = spti.gfn + (index << 9 * (spti.level - 1))
        if spte:
            if spte & (PTE_PS | PTE_RW) == PTE_PS and not self.logging:
                self.q[word] = spte | PTE_RW
                self.counters.sptes_written += 1
            return True
        if gfn >= self.config.frames:
            return False
        if spti.kind is DIRECT and self.whole(gfn, spti.level):
            flags = OPEN_LEAF | PTE_PS | key << PTE_PK_SHIFT | (0 if self.logging else PTE_RW)
            self.set_leaf(spti, word, gfn, self.p2m.to_mfn[gfn] << 12 | flags)
            return True
        return self.link_divided(spti, word, gfn, key, OPEN_PDPTE if spti.kind is UNPAGED else OPEN_TABLE, force)

    def _fill_frame(self, spti: Spti, word: int, gfn: int, flags: int) -> bool:
        if not self.p2m.backed(gfn):
            return False
        if self.writable(gfn):
            flags |= PTE_RW
        spte = self.p2m.to_mfn[gfn] << 12 | flags
        old = self.q[word]
        if not old:
            self.set_leaf(spti, word, gfn, spte)
        elif old != spte:
            self.q[word] = spte
            self.counters.sptes_written += 1
        return True

    def _link_quadrant(self, spti: Spti, index: int, force: bool) -> bool:
        assert spti.role is not None
        role = Role(GUEST, spti.gfn, 2, spti.role.mode, index, spti.role.variant)
        child = self.spti_make_shadow(role, force)
        if child is None:
            return False
        self.set_child(spti, spti.base + index, child, OPEN_PDPTE)
        self.made(child)
        return True
