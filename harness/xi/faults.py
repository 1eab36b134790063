"""Page faults on the shadow: the guest's own tables decide whether the guest sees one.

`shadow_fault` walks the guest's tables as they are now, asks the decision table for the verdict and for what the
shadow has to do, and does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from harness.engine import AWAY, GENERAL_PROTECTION, MMIO, RETRY
from harness.x86.access import ALL_ACCESSES, USER_BIT
from harness.x86.bits import PTE_A, PTE_ADDR, PTE_D, PTE_P, PTE_PS, PTE_RW, PTE_US
from harness.xi.decision import PLACE, RESYNC, RIGHTS, Resync, Step, Verdict
from harness.xi.gpt import AD, SW_OVERRIDE
from harness.xi.guest_walk import ASKED, NX, RIGHTS_SHIFT, RW, RW_US, GuestWalks, Walk
from harness.xi.known_paths import KNOWN_SHIFT, KnownPath, UpperWalk
from harness.xi.pool import Spti
from harness.xi.roles import GUEST

_NO_FRAME, _FRAME_AWAY, _BACKED = (PLACE.part("frame", value) for value in ("none", "away", "backed"))
_STORE, _GPT, _UNLOGGED, _OVERRIDDEN = (PLACE.part(name, "yes") for name in ("store", "gpt", "unlogged", "override"))
_SET_AD, _MMIO, _AWAY, _UNSYNC, _LOG, _OVERRIDE = (
    int(step) for step in (Step.SET_AD, Step.MMIO, Step.AWAY, Step.UNSYNC, Step.LOG, Step.OVERRIDE)
)
_SELDOM: Final = _MMIO | _AWAY | _UNSYNC | _LOG  # of what most faults need nothing
_PLAIN: Final = int(Step.SET_AD | Step.FILL)
# Of an SPTE that leads to a table: what all but few have of these bits.
_STATE: Final = PTE_P | PTE_RW | SW_OVERRIDE
_OPEN: Final = PTE_P | PTE_RW
# Of a large page's entry: the SPTE above its pieces must have RW then. What sets D goes by one SPTE of the entry, and
# where the guest's table is its own snapshot nothing else tells that another one lags behind.
_STORED_TO: Final = PTE_PS | PTE_RW | PTE_D
_ALLOW: Final = int(Verdict.ALLOW)
_ACCESSES: Final = frozenset(int(access) for access in ALL_ACCESSES)
# RESYNC, for the entry of a 4 KiB page that is to be filled; and what its SPTE was, if there is one.
_PAGE: Final = RESYNC.part("now", "leaf") | RESYNC.part("fill", "yes")
_WAS_PAGE: Final = RESYNC.part("was", "leaf")
_SAME: Final = RESYNC.part("same", "yes")
_REFLAG, _REPLACE = int(Resync.REFLAG), int(Resync.REPLACE)


class Faults(GuestWalks):
    """The fault path."""

    def shadow_fault(self, va: int, access: int) -> int:
        """See `harness.engine.ShadowEngine.shadow_fault`. Raises ValueError for an access code that is none."""
        self.counters.faults += 1
        if access not in _ACCESSES:
            raise ValueError(f"{access} is no access")
        known = self.known_paths.get(va >> KNOWN_SHIFT)
        if known is not None:
            result = self._known_fault(va, access, known)
            if result is not None:
                return result
        if va >> self._top_shift not in self._tops:
            return GENERAL_PROTECTION
        if not self._rows:
            return self._place(va, access, Walk([], [], RW, True, va >> 12, 0))
        walk = self.gva_to_gpa(va)
        verdict = self.judge(walk, access)
        if verdict != _ALLOW:
            return self._refused(walk, self._codes[verdict][access])
        return self._place(va, access, walk)

    def _known_fault(self, va: int, access: int, known: KnownPath) -> int | None:
        """The fault that nine in ten are: at the end of a known path, on a page that the guest's tables forbid to be
        used so, or allow and nothing is needed but A, D, the SPTE, and that the entry is brought in sync. What
        `shadow_fault` returns; None: it is another, and nothing has been done.

        It is the walk, `judge`, `set_accessed`, `follow` and `fill_page` in one piece: in as many steps, each of which
        hands its finds to the next, it takes twice the time.
        """
        entries = self._entries
        if self._keys or self.logging or not known.holds(entries, self.q):
            return None
        upper, spti = known.upper, known.spti
        mask, checked, nx = self._last
        number = upper.first + (va >> 12 & mask)
        entry = entries[number]
        if entry & checked != PTE_P:
            return None
        grants = upper.grants & entry
        rights = (grants & RW_US) << RIGHTS_SHIFT | (NX if entry & nx else upper.nx) | self._control_rights
        verdict = RIGHTS.lookup[ASKED[access] | rights]
        if verdict != _ALLOW:
            self.counters.faults_injected += 1
            return self._codes[verdict][access]
        gfn, p2m = (entry & self._frame_mask) >> 12, self.p2m
        if gfn >= p2m.frames or p2m.to_mfn[gfn] < 0:
            return None
        index = va >> 12 & 511
        snapshots, at = spti.snapshots, spti.first_entry + index  # at level 1 an SPTE has a guest entry to itself
        old = snapshots[at]
        behind = (old ^ entry) & ~AD != 0
        if behind and (spti.synced or spti.fresh or self.fault_resync_all):
            return None
        features = _BACKED | _GPT if self.guarded[gfn] else _BACKED
        if access & 3 == 1:
            if not grants & PTE_RW:  # only CR0.WP=0 allows it
                return None
            features |= _STORE
            missing = AD & ~entry
        else:
            missing = PTE_A & ~entry
        if PLACE.lookup[features] != _PLAIN:
            return None
        if behind:
            self.resync_one(spti, index)
        if missing:
            entry |= missing
            self._set_in_guest(number << self._size_shift, missing)
        if old != entry:
            snapshots[at] = entry
        touch = self.pool_memory.lru.move_to_end
        for above in known.above:
            touch(above)
        touch(spti.index)
        self.counters.faults_filled += 1
        self.fill_page(spti, index, entry, gfn)
        return RETRY

    def _refused(self, walk: Walk, result: int) -> int:
        if result == AWAY:
            self.counters.faults_away += 1
            self.away_gfn = walk.gfn
        else:
            self.counters.faults_injected += 1
        return result

    def shadow_faults(self, addresses: Sequence[int], accesses: Sequence[int]) -> list[int]:
        """`shadow_fault` for many faults at one moment: the guest does not run between them.

        Neighbours on one page share a walk of the guest's tables, and of those that the guest allows one is placed,
        a store if there is one, since its path then serves the others too: they all get RETRY, and the one among
        them that still faults comes back.
        """
        out: list[int] = []
        start, count = 0, len(addresses)
        while start < count:
            page = addresses[start] >> 12
            end = start + 1
            while end < count and addresses[end] >> 12 == page:
                end += 1
            out += self._faults_of_page(addresses[start], accesses[start:end])
            start = end
        return out

    def _faults_of_page(self, va: int, accesses: Sequence[int]) -> list[int]:
        if len(accesses) == 1 or not self._rows or va >> self._top_shift not in self._tops:
            return [self.shadow_fault(va, access) for access in accesses]
        walk = self.gva_to_gpa(va)
        out = self.results(walk, accesses)
        allowed = [access for access, result in zip(accesses, out, strict=True) if result == RETRY]
        refused = len(out) - len(allowed)
        self.counters.faults += refused
        if refused:
            for result in out:
                if result != RETRY:
                    self._refused(walk, result)
        if allowed:
            self.counters.faults += 1
            result = self._place(va, next((access for access in allowed if access & 3 == 1), allowed[0]), walk)
            if result != RETRY:
                out = [result if code == RETRY else code for code in out]
        return out

    def _place(self, va: int, access: int, walk: Walk) -> int:
        """A fault on an access that the guest's tables allow."""
        gfn, p2m = walk.gfn, self.p2m
        path: list[Spti] | None = None
        if gfn < p2m.frames and p2m.to_mfn[gfn] >= 0:
            path = self.follow(va, walk)
            if path is None:
                # A fault on a missing translation: XI synchronises, then looks again.
                if walk.known is not None and not self.fault_resync_all:  # all above the entry is as the guest's
                    self.resync_one(walk.known.spti, va >> 12 & 511)
                else:
                    self.counters.fault_resyncs += 1
                    walk.known = None
                    if self.fault_resync_all:
                        self.shadow_resync_all()
                    else:
                        self.resync_address(va)
                path = self.follow(va, walk)
            features = _BACKED
            if self.guarded[gfn]:
                features |= _GPT
            if self.logging and not self.logged[gfn]:
                features |= _UNLOGGED
        else:
            features = _FRAME_AWAY if gfn in p2m.away else _NO_FRAME
        store = access & 3 == 1
        if store:
            features |= _STORE
            if not access & USER_BIT and self.needs_override(walk):
                features |= _OVERRIDDEN
        steps = PLACE.lookup[features]
        changed = self.set_accessed(walk, store) if steps & _SET_AD else False
        if steps & _SELDOM:
            if steps & _AWAY:
                return self._refused(walk, AWAY)
            if steps & _MMIO:
                self.counters.faults_mmio += 1
                return MMIO
            if steps & _UNSYNC:
                self.table_written(gfn)
            if steps & _LOG:
                self.log_dirty(gfn)
        override = steps & _OVERRIDE != 0
        if path is None or override or (changed and walk.leaf > 1):  # there is something to do above the path's end
            assert self.root_spti is not None
            path = [self.root_spti]
        self.counters.faults_filled += 1
        last = path[-1]
        if last.level == 1:  # no table is made, so none can be recycled
            self._fill_entry(last, va >> 12 & 511, walk, override)
        else:
            self.fill(va, walk, path, store and self.logging, override)
        return RETRY

    # Filling the path.

    def follow(self, va: int, walk: Walk) -> list[Spti] | None:
        """The tables that the hardware goes through for `va`, from the root down to the first whose entry is not as
        the guest's, or that is the last; they become the most recently used. An entry above the guest's leaf is
        "as the guest's" when nothing at all is left to do about it. On a known path only the last table is given, all
        above it being so.

        None when one of the tables, the first that disagrees with the walk or any below it, has fallen behind the
        guest's (by more than A and D). An in-sync table that has was written by a store that nothing announced; it
        goes out of sync here.
        """
        touch, known = self.pool_memory.lru.move_to_end, walk.known
        if known is not None:
            for number in known.above:
                touch(number)
            spti = known.spti
        else:
            assert self.root_spti is not None
            spti = self.root_spti
        path: list[Spti] = []
        q = self.q
        entries, root_level = walk.entries, self._root_level
        settled = True
        while True:
            index = va >> spti.shift & 511
            if settled:
                path.append(spti)
                touch(spti.index)
            if spti.kind is GUEST:
                entry = entries[root_level - spti.level]
                old = spti.snapshots[spti.first_entry + (index >> spti.halved)]
                if old != entry:
                    if (old ^ entry) & ~AD:
                        if spti.synced:
                            self.counters.unexplained += 1
                            self.set_out_of_sync(spti)
                        return path if spti.fresh else None
                    settled = False
            if spti.level == 1:
                break
            spte = q[spti.base + index]
            if not spte or spte & PTE_PS:
                return path
            if spte & _STATE != _OPEN and (
                spte & (PTE_P | SW_OVERRIDE) != PTE_P or (spti.kind is GUEST and entry & _STORED_TO == _STORED_TO)
            ):
                settled = False
            spti = self.pool_memory.child(spte)
        if known is None and walk.upper is not None and path[-1] is spti:
            self._remember(va, walk.upper, path)
        return path

    def _remember(self, va: int, upper: UpperWalk, path: list[Spti]) -> None:
        """The next fault that needs an entry of the last table of `path` finds it at once."""
        size = self._size_shift
        guest = {at >> size: entry for at, entry in zip(upper.addresses, upper.entries, strict=True) if at >= 0}
        shadow: dict[int, int] = {}
        for spti in path[:-1]:
            index = va >> spti.shift & 511
            words = [spti.base + index]
            if spti.kind is GUEST:
                words.append(self.snapshots.word(spti, index))
            shadow |= {word: self.q[word] for word in words if word >= 0}
        if len(self.known_paths) >= len(self.sptis):
            self.known_paths.clear()
        self.known_paths[va >> KNOWN_SHIFT] = KnownPath(upper, path, guest, shadow)

    def fill(self, va: int, walk: Walk, path: list[Spti], divide: bool, override: bool) -> None:
        """Brings what is missing of the path of `va` into the shadow, recycling what it must but nothing of the path.

        path: what `follow` found; it ends above level 1. divide: a large page is to be divided (a store while the dirty
        log runs). override: see `needs_override`.
        """
        spti = path[-1]
        held = len(self.pins)
        self.pins += [above.index for above in path]
        try:
            while True:
                index = va >> spti.shift & 511
                word = spti.base + index
                self._fill_entry(spti, index, walk, override)
                if self.exposed:
                    self.sync_exposed()
                spte = self.q[word]
                if spti.level == 1:
                    break
                if spte & PTE_PS:
                    if not divide:
                        break
                    self.divide_large_page(spti, word, force=True)
                    spte = self.q[word]
                assert spte, "the pool holds a path (minimum_sptis)"
                spti = self.pool_memory.child(spte)
                self.pins.append(spti.index)
                self.pool_memory.touch(spti.index)
        finally:
            del self.pins[held:]

    def _fill_entry(self, spti: Spti, index: int, walk: Walk, override: bool) -> None:
        if spti.kind is not GUEST:
            self.fill_direct_entry(spti, index, True)
            return
        entry = walk.entries[self._root_level - spti.level]
        snapshots, at = spti.snapshots, spti.first_entry + (index >> spti.halved)
        old = snapshots[at]
        if old != entry:
            if (old ^ entry) & ~AD:
                self.shadow_resync(spti)
                snapshots, at = spti.snapshots, spti.first_entry + (index >> spti.halved)
            snapshots[at] = entry
            if spti.halved:  # the other SPTE of the same guest entry, whose snapshot this is too
                self.resync_spte(spti, index ^ 1, entry, self.eager)
        if spti.level == 1:
            self.fill_page(spti, index, entry, walk.gfn)
        else:
            self.resync_spte(spti, index, entry, True, True)
        if override and spti.level == walk.leaf:
            self.override_spte(spti, spti.base + index)

    def fill_page(self, spti: Spti, index: int, entry: int, gfn: int) -> None:
        """`resync_spte` for the `entry` of a 4 KiB page `gfn` that a walk has found valid and backed."""
        rules = spti.rules
        assert rules is not None
        word = spti.base + index
        flags = rules.leaf[entry & 0x7F] | entry & rules.leaf_copy
        if flags & PTE_D and self.writable(gfn):
            flags |= PTE_RW
        target = self.p2m.to_mfn[gfn] << 12
        spte = self.q[word]
        features = _PAGE
        if spte:
            features |= _WAS_PAGE | _SAME if spte & PTE_ADDR == target else _WAS_PAGE
        action = RESYNC.lookup[features]
        if action == _REFLAG:
            self.set_flags(spti, word, gfn, flags)
            return
        if action == _REPLACE:
            self.drop(spti, word)
        self.set_leaf(spti, word, gfn, target | flags)

    def override_spte(self, spti: Spti, word: int) -> None:
        """Opens the SPTE of a guest's page for a supervisor store that CR0.WP=0 allows: RW=1, and US=0 so that users
        keep out. A user access faults on it and has it put back."""
        rules = spti.rules
        assert rules is not None
        spte = self.q[word]
        rights = PTE_RW
        if spti.level == 1 or spte & PTE_PS:
            rights = PTE_D | self.leaf_rw(spti, self.leaf_gfn(spte), PTE_D)  # the page may be a table in sync again
        elif self.watching:
            self.aliases.parents_changed(self.pool_memory.child(spte).index)
        self.q[word] = (spte | rights | SW_OVERRIDE | rules.override_nx) & ~PTE_US
        self.overridden.add(word)
        self.counters.overrides += 1

    def end_overrides(self) -> None:
        """Puts every overridden SPTE back to what its entry says."""
        for word in list(self.overridden):
            spti = self.pool_memory.owner(word)
            self.resync_spte(spti, word & 511, spti.snapshot_entry(word & 511), True)
