"""Resynchronisation: what the guest changed in a table since the snapshot, brought into its SPT.

Only entries that differ from the snapshot are looked at. Afterwards the snapshot equals the table, and the table is
write-protected again. Only tables that the current root reaches are synchronised: the others stay out of sync, so that
a page that was a table and has become data is let be.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from harness.engine import Words
from harness.x86.bits import ENTRIES, PTE_ADDR, PTE_D, PTE_NX, PTE_P, PTE_PK, PTE_PK_SHIFT, PTE_PS, PTE_RW, PTE_US
from harness.xi.decision import RESYNC, Resync
from harness.xi.gpt import SW_OVERRIDE, SW_WRITE, divided_flags
from harness.xi.links import Ints
from harness.xi.pool import SPTI_SHIFT, Spti
from harness.xi.protect import Protection
from harness.xi.roles import GUEST, VARIANT_READ_ONLY_ABOVE, VARIANT_SUPERVISOR_ABOVE, Role
from harness.xi.snapshots import Mask

BULK: Final = 12  # from this many changed entries on, a leaf table is done with numpy

_WAS_LEAF, _WAS_DIVIDED, _WAS_TABLE = (RESYNC.features[0].values.index(n) for n in ("leaf", "divided", "table"))
_NOW_SHIFT: Final = RESYNC.shift["now"]
_SAME: Final = 1 << RESYNC.shift["same"]
_WHOLE: Final = 1 << RESYNC.shift["whole"]
_FILL: Final = 1 << RESYNC.shift["fill"]
_ABSENT, _LEAF, _LARGE, _TABLE = range(4)  # the values of `now`, in order
_KEEP, _FILL_IN, _DIVIDE, _REFLAG, _REPLACE, _CLEAR, _UNLINK = (int(action) for action in Resync)
_FLAG_BITS: Final = np.uint64(0x7F)
_ADDR: Final = np.uint64(PTE_ADDR)
_RW: Final = np.uint64(PTE_RW)
_LEAF_U8: Final = np.uint8(_LEAF << _NOW_SHIFT)
_WAS_LEAF_U8: Final = np.uint8(_WAS_LEAF)
_SAME_U8: Final = np.uint8(_SAME)
_FILL_U8: Final = np.uint8(_FILL)


class Resynchronisation(Protection):
    """Compares guest tables with their snapshots and acts on the differences."""

    # Whole tables.

    def shadow_resync_all(self) -> None:
        """Brings every table that the current root reaches in sync, from the root down."""
        root = self.root_spti
        if root is not None and self.dirty[root.index]:
            self._sync_subtree(root)
        self.exposed.clear()

    def sync_exposed(self) -> None:
        """Synchronises what was linked out of sync, with everything below it."""
        while self.exposed:
            index = self.exposed.pop()
            if self.dirty[index]:
                self._sync_subtree(self.sptis[index])

    def _sync_subtree(self, spti: Spti) -> None:
        index = spti.index
        self.pins.append(index)
        try:
            if not spti.synced:
                self.shadow_resync(spti)
            if self.dirty_below[index]:
                for child in self.dirty_children(spti):
                    if self.dirty[child.index]:
                        self._sync_subtree(child)
                self.dirty_below[index].clear()
        finally:
            self.pins.pop()
        self.dirty[index] = 0

    def dirty_children(self, spti: Spti) -> list[Spti]:
        """The tables right below `spti` that wait for synchronisation, or have something below them that does."""
        below = self.dirty_below[spti.index].items()
        return [self.sptis[index] for index, word in below if self.dirty[index] and self._is_below(spti, index, word)]

    def _is_below(self, spti: Spti, index: int, word: int) -> bool:
        """Whether `spti` leads to SPTI `index`, as it did through the SPTE at `word` when that was noted: it may have
        been unlinked since, or recycled, or have moved to another SPTE."""
        self.counters.sptes_visited += 1
        spte = self.q[word]
        if spte and not spte & PTE_PS and self.pool_memory.child(spte).index == index:
            return True
        return any(node >> SPTI_SHIFT == spti.index for node in self.links.nodes(self.links.parents(index)))

    def shadow_resync(self, spti: Spti) -> None:
        """Brings one SPT in sync with its guest table. The caller has it pinned."""
        self.counters.resyncs += 1
        if spti.kind is not GUEST:
            if self.eager:
                self.fill_direct(spti)
            spti.synced = True
            return
        rules = spti.rules
        assert rules is not None
        if rules.latched:
            now = np.array(self.pdptes, np.uint64)
            self.resync_changed(spti, now)
            spti.entries[:] = now
            self.counters.words_copied += len(now)
        else:
            page = self.guest_page(spti)
            if self.eager or not spti.fresh:  # with no SPTE, and none to be made, there is nothing to decide
                now = page.view(np.uint32) if rules.entry_bytes == 4 else page
                self.resync_changed(spti, now[spti.first : spti.first + spti.count])
            self.take_snapshot(spti, page)
        self.set_synced(spti)

    def resync_changed(self, spti: Spti, now: Words) -> None:
        """Acts on the entries that differ from the snapshot; `now` is the SPT's part of the guest's table.

        Under demand fill those without an SPTE are left out: the decision for them is to keep it so.
        """
        changed = (now != spti.entries).nonzero()[0]
        self.counters.entries_compared += len(now)
        self.counters.sptes_visited += len(changed) << spti.halved
        if len(changed) and not self.eager:
            sptes = spti.spt[changed * 2] | spti.spt[changed * 2 + 1] if spti.halved else spti.spt[changed]
            changed = changed[sptes.nonzero()[0]]
        if len(changed):
            self.resync_entries(spti, changed, now)

    def take_snapshot(self, spti: Spti, page: Words) -> None:
        """The snapshot becomes the guest table's page as it is now."""
        self.snapshots.keep(spti, page)

    def realign(self, spti: Spti) -> None:
        entries = spti.entries
        used: Mask = spti.spt != 0
        if spti.halved:
            used = used[::2] | used[1::2]
        wanted = used[: spti.count].nonzero()[0]
        self.counters.sptes_visited += ENTRIES
        self.counters.entries_compared += len(wanted)
        self._act_on(spti, wanted, entries, False)
        if self.eager:  # what has no SPTE must be found changed at the next synchronisation
            empty: Mask = spti.spt == 0
            if spti.halved:  # while one of two is in place, the other is missing for want of an SPTI
                empty = empty[::2] & empty[1::2]
            entries[empty[: spti.count]] = 0

    def made(self, spti: Spti) -> None:
        if not self.snapshots.sync_when_made or not spti.fresh or spti.synced:
            return
        counters = self.counters
        entries, below = counters.resynced_entries, counters.entries_when_made
        counters.synced_when_made += 1
        self._sync_subtree(spti)
        self.exposed.discard(spti.index)
        below = counters.entries_when_made - below  # decided in tables that were made for this one
        counters.entries_when_made += counters.resynced_entries - entries - below

    def resync_entries(self, spti: Spti, changed: Ints, now: Words) -> None:
        """Acts on the entries numbered `changed` (within the SPT's part); `now` is that part as it is now."""
        self._act_on(spti, changed, now, self.eager)

    def _act_on(self, spti: Spti, changed: Ints, now: Words, fill: bool) -> None:
        self.counters.resynced_entries += len(changed)
        if spti.level == 1 and len(changed) >= BULK:
            self.resync_many(spti, changed, now[changed].astype(np.uint64), fill)
            return
        for number, entry in zip(changed.tolist(), now[changed].tolist(), strict=True):
            if spti.halved:
                self.resync_spte(spti, number * 2, entry, fill)
                self.resync_spte(spti, number * 2 + 1, entry, fill)
            else:
                self.resync_spte(spti, number, entry, fill)

    # One entry.

    def resync_spte(self, spti: Spti, index: int, entry: int, fill: bool, force: bool = False) -> None:
        """Makes SPTE `index` what the guest's `entry` asks for, as the decision table says.

        fill: bring a new translation in (eager fill, or a fault on it). force: see `spti_make_shadow`.
        """
        rules = spti.rules
        assert rules is not None
        word = spti.base + index
        spte = self.q[word]
        now, gfn = _ABSENT, 0
        if entry & PTE_P:
            now, gfn = self._classify(spti, index, entry)
        packed = now << _NOW_SHIFT
        if fill:
            packed |= _FILL
        if now == _LARGE and self.whole(gfn, spti.level):
            packed |= _WHOLE
        if spte:
            packed |= self._what_it_was(spti, spte, now, gfn, entry)
        action = RESYNC.lookup[packed]
        if action == _KEEP:
            return
        if action == _REFLAG:
            self._reflag(spti, word, spte, gfn, entry, now)
            return
        if spte:
            self.drop(spti, word)
            if action in (_CLEAR, _UNLINK):
                return
        self._fill(spti, index, gfn, entry, now, force)

    def _classify(self, spti: Spti, index: int, entry: int) -> tuple[int, int]:
        rules = spti.rules
        assert rules is not None
        large = rules.is_large(entry)
        if rules.is_reserved(entry, large):
            return _ABSENT, 0
        if large:
            gfn = rules.large_frame(entry)
            if rules.doubled:
                gfn += (index & 1) << 9
            return (_LARGE, gfn) if gfn < self.config.frames else (_ABSENT, 0)
        gfn = rules.frame(entry)
        if not self.p2m.backed(gfn):
            return _ABSENT, 0
        return (_LEAF if spti.level == 1 else _TABLE), gfn

    def _what_it_was(self, spti: Spti, spte: int, now: int, gfn: int, entry: int) -> int:
        if spti.level == 1 or spte & PTE_PS:
            same = now in (_LEAF, _LARGE) and self.leaf_gfn(spte) == gfn
            return _WAS_LEAF | (_SAME if same else 0)
        child = self.pool_memory.child(spte)
        assert child.role is not None and spti.rules is not None
        if child.kind is GUEST:
            same = now == _TABLE and child.gfn == gfn
            if same and not spti.rules.wp:
                same = child.role.variant == self.child_variant(spti, entry)
            return _WAS_TABLE | (_SAME if same else 0)
        key = (entry & spti.rules.leaf_copy & PTE_PK) >> PTE_PK_SHIFT
        same = now == _LARGE and child.gfn == gfn and child.role.variant == key
        return _WAS_DIVIDED | (_SAME if same else 0)

    def spte_flags(self, spti: Spti, entry: int, table: bool) -> int:
        """Flags of the SPTE of a present, valid guest entry; RW of leaves is left to `leaf_rw`."""
        rules = spti.rules
        assert rules is not None
        if table:
            return rules.table[entry & 0x7F] | (entry & rules.table_copy)
        return rules.leaf[entry & 0x7F] | (entry & rules.leaf_copy) | (PTE_PS if spti.level > 1 else 0)

    def leaf_rw(self, spti: Spti, gfn: int, flags: int) -> int:
        """RW for a leaf with `flags`: the guest's entry allows it (D), and so do protection and the dirty log."""
        if not flags & PTE_D:
            return 0
        if spti.level > 1:
            return 0 if self.logging else PTE_RW  # a large page holds no guarded table
        return PTE_RW if self.writable(gfn) else 0

    def _reflag(self, spti: Spti, word: int, spte: int, gfn: int, entry: int, now: int) -> None:
        flags = self.spte_flags(spti, entry, now == _TABLE)
        if spti.level == 1 or spte & PTE_PS:
            self.set_flags(spti, word, gfn, flags | self.leaf_rw(spti, gfn, flags))
        else:
            self.set_flags(spti, word, gfn, divided_flags(flags) if now == _LARGE else flags)

    def set_flags(self, spti: Spti, word: int, gfn: int, flags: int) -> None:
        """Changes the flags of an SPTE in use; `gfn`: of the page, for a leaf."""
        spte = self.q[word]
        new = spte & PTE_ADDR | flags
        if new == spte:
            return
        self.q[word] = new
        self.counters.sptes_written += 1
        if spte & SW_OVERRIDE:
            self.overridden.discard(word)
        if self.watching:
            if spti.level == 1 or spte & PTE_PS:
                self.aliases.rights_changed(spti, gfn, spte, new)
            elif (spte ^ new) & (SW_WRITE | PTE_NX | SW_OVERRIDE):
                self.aliases.parents_changed(self.pool_memory.child(spte).index)

    def _fill(self, spti: Spti, index: int, gfn: int, entry: int, now: int, force: bool) -> None:
        word = spti.base + index
        flags = self.spte_flags(spti, entry, now == _TABLE)
        if now == _TABLE:
            child = self.make_child(spti, index, self.child_role(spti, index, gfn, entry), force)
            if child is not None:
                self.set_child(spti, word, child, flags)
                self.made(child)
        elif now == _LARGE and not self.whole(gfn, spti.level):
            self.counters.divided += 1
            self.link_divided(spti, word, gfn, (flags & PTE_PK) >> PTE_PK_SHIFT, divided_flags(flags), force)
        else:
            spte = self.p2m.to_mfn[gfn] << 12 | flags | self.leaf_rw(spti, gfn, flags)
            self.set_leaf(spti, word, gfn, spte)

    @staticmethod
    def child_variant(spti: Spti, entry: int) -> int:
        """Variant of the SPT below a guest entry that leads to a table."""
        rules, role = spti.rules, spti.role
        assert rules is not None and role is not None
        variant = role.variant
        if rules.wp:
            return variant
        if rules.has_rights:
            variant |= 0 if entry & PTE_RW else VARIANT_READ_ONLY_ABOVE
            variant |= 0 if entry & PTE_US else VARIANT_SUPERVISOR_ABOVE
        return variant

    def child_role(self, spti: Spti, index: int, gfn: int, entry: int) -> Role:
        """Role of the SPT of the guest table `gfn` below SPTE `index`: the two SPTEs of a 32-bit guest's PDE lead
        to the two halves of its page table."""
        role = spti.role
        assert role is not None and spti.rules is not None
        return Role(
            GUEST,
            gfn,
            spti.level - 1,
            role.mode,
            index & 1 if spti.rules.doubled else 0,
            self.child_variant(spti, entry),
        )

    # Many entries of a leaf table.

    def resync_many(self, spti: Spti, index: Ints, entries: Words, fill: bool) -> None:
        """`resync_spte` for many entries of a level-1 SPT at once: the same table, gathered with numpy.

        index: SPTE numbers, unique; entries: the guest's entries there, as uint64; fill: bring new translations in.
        """
        rules = spti.rules
        assert rules is not None
        old = spti.spt[index]
        gfns = ((entries & np.uint64(rules.frame_mask)) >> np.uint64(12)).view(np.int64)
        good = (entries & np.uint64(PTE_P | rules.reserved)) == PTE_P
        good &= gfns < self.config.frames
        gfns *= good
        mfns = self.p2m.table[gfns]
        good &= mfns >= 0
        address = mfns.view(np.uint64) << np.uint64(12)
        present = old != 0
        same = present & ((old & _ADDR) == address)
        same &= good
        packed = (good.view(np.uint8) * _LEAF_U8) | (present.view(np.uint8) * _WAS_LEAF_U8)
        packed |= same.view(np.uint8) * _SAME_U8
        if fill:
            packed |= _FILL_U8
        action = RESYNC.array[packed]

        new = (action == _FILL_IN) | (action == _REPLACE)
        written = new | (action == _REFLAG)
        flags = self._many_flags(spti, entries, gfns)
        if present.any():
            gone = (action == _CLEAR) | (action == _REPLACE)
            if gone.any():
                if self.watching:
                    self.aliases.note_gone(spti, old[gone])
                words = self.words_of(spti, index[gone])
                self.links.unlink_many(words)
                spti.spt[index[gone]] = 0
                self.counters.sptes_written += len(words)
                old[gone] = 0
                if self.overridden:
                    self.overridden.difference_update(words.tolist())
            if self.overridden:
                self.overridden.difference_update(self.words_of(spti, index[written]).tolist())
        sptes = (address | flags)[written]
        self.counters.sptes_written += int(np.count_nonzero(sptes != old[written]))
        spti.spt[index[written]] = sptes
        self.links.link_many(self.words_of(spti, index[new]), gfns[new])
        if self.watching:
            self.aliases.mark_guarded(gfns[written])
            if self.aliases.executes(spti):
                executable = (flags < PTE_NX) & (new | (written & (old >= PTE_NX)))
                self.aliases.gain_many(spti, gfns[executable])

    def _many_flags(self, spti: Spti, entries: Words, gfns: Ints) -> Words:
        rules = spti.rules
        assert rules is not None
        flags: Words = rules.leaf_array[(entries & _FLAG_BITS).view(np.int64)]
        flags |= entries & np.uint64(rules.leaf_copy)
        writable = (flags & np.uint64(PTE_D)) != 0
        writable &= self.guarded_array[gfns] == 0
        if self.logging:
            writable &= self.logged_array[gfns] != 0
        flags[writable] |= _RW
        return flags

    # INVLPG.

    def resync_address(self, va: int) -> None:
        """What INVLPG asks for: every table above level 1 on the path of `va` (the processor drops its
        paging-structure caches whole, so all upper tables are brought in sync), and the entry of `va` itself."""
        root = self.root_spti
        if root is None or not self.dirty[root.index]:
            return
        spti = self._sync_upper(root, va)
        if spti is not None and not spti.synced and spti.kind is GUEST:
            self.resync_one(spti, (va >> 12) & 511)

    def _sync_upper(self, root: Spti, va: int) -> Spti | None:
        stack = [root]
        while stack:
            spti = stack.pop()
            if not self.dirty[spti.index] or spti.role is None:
                continue
            if not spti.synced or self.exposed:
                with self.pinned(spti):
                    if not spti.synced:
                        self.shadow_resync(spti)
                    self.sync_exposed()
            if spti.level > 2:  # what waits below level 2 is level 1, and stays as it is
                stack.extend(self.dirty_children(spti))
        spti = root
        while spti.level > 1:
            self.counters.sptes_visited += 1
            spte = self.q[spti.base + (va >> spti.shift & 511)]
            if not spte or spte & PTE_PS:
                return None
            spti = self.pool_memory.child(spte)
        return spti

    def resync_one(self, spti: Spti, index: int) -> None:
        """Brings one entry of an out-of-sync level-1 table up to date, and the snapshot with it."""
        assert spti.rules is not None
        at = self.p2m.to_mfn[spti.gfn] << 12
        number = spti.guest_index(index)
        self.counters.sptes_visited += 1
        self.counters.entries_compared += 1
        if spti.rules.entry_bytes == 4:
            entry = self.memory.read32(at + number * 4)
        else:
            entry = self.memory.read64(at + number * 8)
        if entry != spti.snapshot_entry(index):
            self.counters.resynced_entries += 1
            self.resync_spte(spti, index, entry, self.eager)
            spti.set_snapshot_entry(index, entry)
