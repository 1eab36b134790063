"""The life of SPTIs: bound to a role, found again, recycled in LRU order, torn down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from harness.engine import EngineConfig, MachineMemory
from harness.x86.bits import ENTRIES, PTE_PS
from harness.xi.asi import Asi
from harness.xi.gpt import entry_rules, guest_part
from harness.xi.pool import LOW_WATER, Spti, Tenant
from harness.xi.roles import GUEST, Role, shadow_shift
from harness.xi.shared_pool import SharedPool

IDLE_DROPS: Final = 8  # SPTEs taken off a table in one idle moment: some 10 us
IDLE_ZEROES: Final = 2  # SPTIs zeroed in one idle moment: some 5 us


class Life(Asi):
    """Makes and tears down SPTs."""

    def __init__(self, config: EngineConfig, memory: MachineMemory, shared_pool: SharedPool | None = None) -> None:
        super().__init__(config, memory, shared_pool)
        self.pool_memory.join(self)

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
            self.owner_of(victim).evict(victim, self)
            taken = self.pool_memory.take()
            assert taken is not None
        spti, inline = taken
        self.counters.zeroed_inline += inline
        self.counters.made += 1
        self._bind(spti, role)
        return spti

    def make_child(self, spti: Spti, index: int, role: Role, force: bool) -> Spti | None:
        """`spti_make_shadow` for what the empty SPTE `index` of `spti` is about to lead to."""
        if spti.kind is not GUEST:
            return self.spti_make_shadow(role, force)
        before = spti.snapshot_entry(index)
        child = self.spti_make_shadow(role, force)
        if spti.snapshot_entry(index) != before:
            # A table below this one was recycled for it, and the entry marked as changed: its other SPTE led there, or
            # as one without an SPTE.
            spti.set_snapshot_entry(index, before)
            self.counters.eager_truncated += spti.halved
        return child

    def _bind(self, spti: Spti, role: Role) -> None:
        spti.role = role
        spti.kind = role.kind
        spti.gfn = role.gfn
        spti.level = role.level
        spti.shift = shadow_shift(role.level)
        spti.synced = False
        spti.fresh = True
        spti.halved = 0
        self.pool_memory.levels[spti.index] = role.level
        if role.kind is GUEST:
            rules = entry_rules(role.mode, role.level, role.variant, self.config.phys_bits)
            part = guest_part(role.mode, role.level, role.quadrant)
            spti.rules = rules
            spti.first = part.first
            spti.count = part.count
            spti.halved = int(rules.doubled)
            spti.guards = not rules.latched and self.p2m.backed(role.gfn)
            self.snapshots.bind(spti)
            if role.gfn not in self.gpts:
                self.gpts[role.gfn] = []
                self.links.table_appears(role.gfn)
            self.gpts[role.gfn].append(spti.index)
        else:
            spti.rules = None
            spti.first = 0
            spti.count = 0
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
            if self.q[word]:  # leaving sync, its table may have dropped it
                self._orphan_parent_entry(word)
        self.drop_all(spti)
        if spti.kind is GUEST:
            self.snapshots.release(spti)
            tables = self.gpts[spti.gfn]
            tables.remove(spti.index)
            if not tables:
                del self.gpts[spti.gfn]
                self.links.table_gone(spti.gfn)
        del self.by_role[spti.role]
        self.orphans.pop(spti.index, None)
        self.dirty[spti.index] = 0
        self.dirty_below[spti.index].clear()
        self.exposed.discard(spti.index)
        if self.watching:
            self.aliases.forget(spti.index)
        self.pool_memory.give_back(spti)
        self.pool_memory.space.no_victim = False

    def _orphan_parent_entry(self, word: int) -> None:
        # An eager shadow must find the entry again at the next resync: it looks changed, its table out of sync.
        parent = self.pool_memory.owner(word)
        self.links.unlink(word)
        self.q[word] = 0
        self.counters.sptes_written += 1
        self.overridden.discard(word)
        if self.eager:
            self.set_out_of_sync(parent)
            if parent.kind is GUEST:
                if parent.snapshot_entry(word & 511):
                    parent.set_snapshot_entry(word & 511, 0)
                if parent.halved and self.q[word ^ 1]:  # the same guest entry's other SPTE
                    self.drop(parent, word ^ 1)

    def drop_all(self, spti: Spti) -> None:
        """Unlinks and clears every SPTE of an SPT that is being torn down."""
        used = spti.spt.nonzero()[0]
        self.counters.sptes_visited += ENTRIES
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
        self.counters.sptes_written += len(used)
        for child in children:
            self.parent_gone(child)
        if self.overridden:
            self.overridden.difference_update(words.tolist())

    def destroy_tree(self, spti: Spti) -> None:
        """Tears down `spti` and whatever nothing else leads to below it."""
        self.counters.sptes_visited += ENTRIES
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
        """The SPTI to recycle: an orphan, else the least recently used that may go; in a shared pool that may be
        another domain's.

        Never a domain's current root nor a pinned table; under eager fill nothing that the current root reaches, unless
        `force`.
        """
        pool = self.pool_memory
        for domain in (self, *pool.neighbours):
            orphan = domain.pick_orphan()
            if orphan is not None:
                return orphan
        if pool.space.no_victim and not force:
            return None
        memo: dict[int, bool] = {}
        passed: list[int] = []
        found: int | None = None
        for index, owner in pool.order.items():
            domain = owner or self
            if domain.spares(index):
                continue
            if not force and domain.in_use(index, memo):
                passed.append(index)  # it goes to the young end, so that the next search is short
                continue
            found = index
            break
        for index in passed:
            self.owner_of(index).pool_memory.touch(index)
        if found is None:
            pool.space.no_victim = True
        return found

    def pick_orphan(self) -> int | None:
        """An SPTI of this domain that nothing leads to, and that may go."""
        for index in self.orphans:
            if not self.spares(index):
                return index
        return None

    def owner_of(self, index: int) -> Tenant:
        """The domain that uses SPTI `index`."""
        return self.pool_memory.order[index] or self

    # What another domain may want to know or to have, when the pool is shared: `harness.xi.pool.Tenant`.

    def spares(self, index: int) -> bool:
        return index in self.pins or (self.root_spti is not None and index == self.root_spti.index)

    def in_use(self, index: int, memo: dict[int, bool]) -> bool:
        """Under demand fill nothing is: what goes comes back by a fault."""
        return self.eager and self.reachable(index, memo)

    def evict(self, index: int, asker: Tenant) -> None:
        self.counters.recycled += 1
        if asker is not self:
            self.counters.taken_by_others += 1
            asker.counters.taken_from_others += 1
        self.destroy(self.sptis[index])

    def evict_a_piece(self, index: int, asker: Tenant) -> None:
        """Under demand fill an SPTE may go at any time, so that a full table goes piece by piece."""
        spti = self.sptis[index]
        if not self.eager:
            used = spti.spt.nonzero()[0]
            if len(used) > IDLE_DROPS:
                self.counters.sptes_visited += ENTRIES
                for number in used[:IDLE_DROPS].tolist():
                    self.drop(spti, spti.base + number)
                return
        self.evict(index, asker)

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
        reserve = pool.space.reserve
        if free < LOW_WATER and (self.orphans or free < reserve) and self._recycle_ahead(free < reserve):
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
        is none. Under eager fill only orphans are taken."""
        victim = self.pick_victim(False) if in_use and not self.eager else self.pick_orphan()
        if victim is None:
            return False
        self.owner_of(victim).evict_a_piece(victim, self)
        return True
