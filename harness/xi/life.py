"""The life of SPTIs: bound to a role, found again, recycled in LRU order, torn down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from harness.x86.bits import PTE_PS
from harness.xi.asi import Asi
from harness.xi.gpt import entry_rules, guest_part
from harness.xi.pool import LOW_WATER, SNAPSHOT, Spti
from harness.xi.roles import GUEST, Role, shadow_shift

IDLE_DROPS: Final = 8  # SPTEs taken off a table in one idle moment: some 10 us
IDLE_ZEROES: Final = 2  # SPTIs zeroed in one idle moment: some 5 us


class Life(Asi):
    """Makes and tears down SPTs."""

    def spti_make_shadow(self, role: Role, force: bool = False) -> Spti | None:
        """The SPTI of `role`: the existing one, or a fresh one, out of sync, its SPTEs and snapshot zero.

        `force`: the fault path must have one, so even a table that the current root reaches may be torn down for it.
        None when the pool has none to give.
        """
        known = self.by_role.get(role)
        if known is not None:
            self.counters.found += 1
            self.pool_memory.touch(known)
            return self.sptis[known]
        taken = self.pool_memory.take()
        if taken is None:
            victim = self.pick_victim(force)
            if victim is None:
                self.counters.eager_truncated += 1
                return None
            self.counters.recycled += 1
            self.destroy(self.sptis[victim])
            taken = self.pool_memory.take()
            assert taken is not None
        spti, inline = taken
        self.counters.zeroed_inline += inline
        self.counters.made += 1
        self._bind(spti, role)
        return spti

    def make_child(self, spti: Spti, index: int, role: Role, force: bool) -> Spti | None:
        """`spti_make_shadow` for what the empty SPTE `index` of `spti` is about to lead to."""
        if not spti.halved:
            return self.spti_make_shadow(role, force)
        before = spti.snapshot_entry(index)
        child = self.spti_make_shadow(role, force)
        if spti.snapshot_entry(index) != before:
            # What the guest entry's other SPTE led to was recycled for this one, and the entry marked as changed.
            spti.set_snapshot_entry(index, before)
            self.counters.eager_truncated += 1
        return child

    def _bind(self, spti: Spti, role: Role) -> None:
        spti.role = role
        spti.kind = role.kind
        spti.gfn = role.gfn
        spti.level = role.level
        spti.shift = shadow_shift(role.level)
        spti.synced = False
        spti.fresh = True
        spti.zeroed = False
        spti.halved = 0
        if role.kind is GUEST:
            rules = entry_rules(role.mode, role.level, role.variant, self.config.phys_bits)
            part = guest_part(role.mode, role.level, role.quadrant)
            narrow = rules.entry_bytes == 4
            spti.rules = rules
            spti.first = part.first
            spti.entries = (spti.narrow_snapshot if narrow else spti.snapshot)[part.first : part.first + part.count]
            spti.snapshots = self.pool_memory.d if narrow else self.q
            spti.first_entry = (spti.base + SNAPSHOT << narrow) + part.first
            spti.halved = int(rules.doubled)
            spti.guards = not rules.latched and self.p2m.backed(role.gfn)
            self.gpts.setdefault(role.gfn, []).append(spti.index)
        else:
            spti.rules = None
            spti.first = 0
            spti.entries = spti.snapshot[:0]
            spti.guards = False
        self.by_role[role] = spti.index
        self.dirty[spti.index] = 1
        if self.watching:
            self.aliases.bind(spti)

    def destroy(self, spti: Spti) -> None:
        """Tears an SPT down: its parents forget it, its SPTEs are unlinked, its SPTI is free again."""
        assert spti.role is not None
        if spti.synced:
            spti.synced = False
            if spti.guards:
                self.release_gfn(spti.gfn)
        for word in self.links.nodes(self.links.parents(spti.index)):
            self._orphan_parent_entry(word)
        self.drop_all(spti)
        if spti.kind is GUEST:
            tables = self.gpts[spti.gfn]
            tables.remove(spti.index)
            if not tables:
                del self.gpts[spti.gfn]
        del self.by_role[spti.role]
        self.orphans.pop(spti.index, None)
        self.dirty[spti.index] = 0
        self.dirty_below[spti.index].clear()
        self.exposed.discard(spti.index)
        if self.watching:
            self.aliases.forget(spti.index)
        self.pool_memory.give_back(spti)
        self.no_victim = False

    def _orphan_parent_entry(self, word: int) -> None:
        # An eager shadow must find the entry again at the next resync: it looks changed, its table out of sync.
        parent = self.pool_memory.owner(word)
        self.links.unlink(word)
        self.q[word] = 0
        self.overridden.discard(word)
        if self.eager:
            if parent.kind is GUEST:
                parent.set_snapshot_entry(word & 511, 0)
                if parent.halved and self.q[word ^ 1]:  # the same guest entry's other SPTE
                    self.drop(parent, word ^ 1)
            self.set_out_of_sync(parent)

    def drop_all(self, spti: Spti) -> None:
        """Unlinks and clears every SPTE of an SPT that is being torn down."""
        used = spti.spt.nonzero()[0]
        if len(used) <= IDLE_DROPS:  # numpy would not pay
            for index in used.tolist():
                self.drop(spti, spti.base + index)
            return
        words = used + spti.base
        sptes = spti.spt[used]
        if self.watching:
            self.aliases.note_gone(spti, sptes)
        children: list[int] = []
        if spti.level > 1:
            children = [self.pool_memory.child(s).index for s in sptes.tolist() if not s & PTE_PS]
        self.links.unlink_many(words)
        spti.spt[used] = 0
        for child in children:
            self.parent_gone(child)
        if self.overridden:
            self.overridden.difference_update(words.tolist())

    def destroy_tree(self, spti: Spti) -> None:
        """Tears down `spti` and whatever nothing else leads to below it."""
        below = (self.pool_memory.child(s) for s in spti.spt[spti.spt != 0].tolist() if self._leads_down(spti, s))
        children = dict.fromkeys(below)  # in their order: a set of objects has another in each run
        self.destroy(spti)
        for child in children:
            if child.role is not None and self.links.empty(self.links.parents(child.index)):
                self.destroy_tree(child)

    @staticmethod
    def _leads_down(spti: Spti, spte: int) -> bool:
        return spti.level > 1 and not spte & PTE_PS

    @contextmanager
    def pinned(self, spti: Spti) -> Iterator[None]:
        """Keeps `spti` from being recycled while it is worked on."""
        self.pins.append(spti.index)
        try:
            yield
        finally:
            self.pins.pop()

    # Recycling.

    def pick_victim(self, force: bool) -> int | None:
        """The SPTI to recycle: an orphan, else the least recently used that may go.

        Never the current root nor a pinned table; under eager fill nothing that the current root reaches, unless
        `force`.
        """
        orphan = self.pick_orphan()
        if orphan is not None:
            return orphan
        if self.no_victim and not force:
            return None
        root = self.root_spti.index if self.root_spti is not None else -1
        memo: dict[int, bool] = {}
        passed: list[int] = []
        found: int | None = None
        for index in self.pool_memory.lru:
            if index == root or index in self.pins:
                continue
            if self.eager and not force and self.reachable(index, memo):
                passed.append(index)  # in use: it goes to the young end, so that the next search is short
                continue
            found = index
            break
        for index in passed:
            self.pool_memory.touch(index)
        if found is None:
            self.no_victim = True
        return found

    def pick_orphan(self) -> int | None:
        """An SPTI that nothing leads to, and that may go."""
        root = self.root_spti.index if self.root_spti is not None else -1
        for index in self.orphans:
            if index not in self.pins and index != root:
                return index
        return None

    def reachable(self, index: int, memo: dict[int, bool]) -> bool:
        """Whether the current root leads to SPTI `index`, by climbing its parents. `memo` spans calls."""
        if self.root_spti is not None and index == self.root_spti.index:
            return True
        known = memo.get(index)
        if known is None:
            memo[index] = False
            known = memo[index] = any(
                self.reachable(self.pool_memory.owner(word).index, memo)
                for word in self.links.nodes(self.links.parents(index))
            )
        return known

    # Idle moments.

    def idle(self) -> bool:
        """One piece of what keeps the critical path short: recycling ahead of need, else zeroing. See `harness.engine`.

        The guest may be running. A table that it uses can be taken from it all the same: what the processor has
        cached stays right until the guest flushes, and what it has not faults and comes back.
        """
        pool = self.pool_memory
        free = len(pool.clean) + len(pool.unclean)
        if free < LOW_WATER and (self.orphans or free < self.reserve) and self._recycle_ahead(free < self.reserve):
            return True
        if pool.unclean and pool.idle_zeroing:
            self.idle_zero(IDLE_ZEROES)
            return bool(pool.unclean)
        return False

    def idle_zero(self, count: int) -> int:
        """Zeroes up to `count` free SPTIs. How many it did."""
        done = self.pool_memory.idle_zero(count)
        self.counters.zeroed_idle += done
        return done

    def _recycle_ahead(self, in_use: bool) -> bool:
        """Works on the next table to be recycled: an orphan, or with `in_use` the least recently used. False when there
        is none. Under demand fill an SPTE may go at any time, so that a full table goes piece by piece; under eager
        fill only orphans are taken, and whole."""
        victim = self.pick_victim(False) if in_use and not self.eager else self.pick_orphan()
        if victim is None:
            return False
        spti = self.sptis[victim]
        if not self.eager:
            used = spti.spt.nonzero()[0]
            if len(used) > IDLE_DROPS:
                for index in used[:IDLE_DROPS].tolist():
                    self.drop(spti, spti.base + index)
                return True
        self.counters.recycled += 1
        self.destroy(spti)
        return True
