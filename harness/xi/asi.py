"""The ASI: XI's state for one domain, and the life of an SPTI in it.

Operations are layered on this class (`large`, `protect`, `resync`, `faults`, `remap`), each one small method, so that
a variant of the engine overrides one and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from harness.engine import EngineConfig, MachineMemory, Words
from harness.x86.bits import ENTRIES, PTE_ADDR, PTE_NX, PTE_PS
from harness.x86.control import ControlState
from harness.xi.backlinks import Backlinks, Ints
from harness.xi.gpt import UNBACKED_TABLE_ENTRY, entry_rules, part_of
from harness.xi.p2m import P2m
from harness.xi.pool import SPTI_SHIFT, Pool, Spti
from harness.xi.roles import GUEST, Role
from harness.xi.stats import Stats
from harness.xi.watch import Aliases

FILLS: Final = ("eager", "demand")
OPTIONS: Final = {"zeroing": "idle"}  # name -> default
PAE_ROOT_LIMIT: Final = 1 << 20  # frames below 4 GiB: CR3 has 32 bits in PAE format

_UNBACKED_PAGE: Final[Words] = np.full(ENTRIES, UNBACKED_TABLE_ENTRY, np.uint64)
_UNBACKED_PAGE.flags.writeable = False


class Asi:
    """Pool, roles, backlinks, p2m, guards and statistics of one domain.

    by_role: SPTI number by role. gpts: the GUEST SPTIs of each gfn. guarded: uint16, for each gfn, how many in-sync
    SPTIs keep it write-protected; the same summed over each 2 MiB and 1 GiB. dirty: for each SPTI, whether it or
    anything below it waits for synchronisation (then so do all its parents, and `dirty_below` of each of them names
    it). exposed: tables linked while they, or something below, waited for synchronisation: what is stale in them was
    never the translation of their new address, so whoever linked them synchronises them before they are used.
    orphans: SPTIs whose last parent has gone. pins: SPTIs on the path being built. overridden: words of SPTEs opened
    for a CR0.WP=0 store.
    """

    name = "xi"

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        """Raises ValueError when `config` cannot work; the message says what would."""
        unknown = sorted(set(config.options) - set(OPTIONS))
        if unknown:
            raise ValueError(f"unknown option {', '.join(unknown)}; the options are {', '.join(sorted(OPTIONS))}")
        if config.fill not in FILLS:
            raise ValueError(f"fill={config.fill!r}: one of {', '.join(FILLS)}")
        if config.frames < 1:
            raise ValueError(f"a domain of {config.frames} frames")
        if config.pool_base_mfn + config.pool_frames > PAE_ROOT_LIMIT:
            raise ValueError(
                f"the pool ends at frame {config.pool_base_mfn + config.pool_frames:#x}: a root in PAE format must lie "
                f"below 4 GiB, so pool_base_mfn may be at most {PAE_ROOT_LIMIT - config.pool_frames:#x}"
            )
        options = OPTIONS | config.options
        self.config = config
        self.memory = memory
        self.pool_memory = Pool(config.pool_frames, config.pool_base_mfn, config.pool_memory, options["zeroing"])
        self.q = self.pool_memory.q
        self.sptis = self.pool_memory.sptis
        self.p2m = P2m(
            config.frames,
            config.p2m,
            memory.frames,
            range(config.pool_base_mfn, config.pool_base_mfn + config.pool_frames),
        )
        self.links = Backlinks(self.pool_memory, config.frames)
        self.counters = Stats()
        self.eager = config.fill == "eager"
        self.by_role: dict[Role, int] = {}
        self.gpts: dict[int, list[int]] = {}
        self.guarded_array = np.zeros(config.frames, np.uint16)
        self.guarded = self.guarded_array.data.cast("B").cast("H")
        self.guarded_2m = [0] * (-(-config.frames // 512))
        self.guarded_1g = [0] * (-(-config.frames // (512 * 512)))
        self.logging = False
        self.logged_array = np.zeros(config.frames, np.uint8)
        self.logged = self.logged_array.data
        self.dirty = bytearray(len(self.pool_memory))
        self.dirty_below: list[set[int]] = [set() for _ in self.sptis]
        self.exposed: set[int] = set()
        self.orphans: dict[int, None] = {}
        self.pins: list[int] = []
        self.overridden: set[int] = set()
        self.no_victim = False
        self.state = ControlState()
        self.root_spti: Spti | None = None
        self.pdptes = (0, 0, 0, 0)
        self.aliases = Aliases(self.pool_memory, self.links, self.p2m, self.guarded_array, self.counters)

    # Guest memory.

    def guest_page(self, spti: Spti) -> Words:
        """The guest table that `spti` shadows, as the guest has it now (512 words)."""
        if not self.p2m.backed(spti.gfn):
            return _UNBACKED_PAGE
        return self.memory.page(self.p2m.to_mfn[spti.gfn])

    def snapshot_entry(self, spti: Spti, index: int) -> int:
        """The guest entry number `index` (of its page) in the snapshot."""
        assert spti.rules is not None
        if spti.rules.entry_bytes == 4:
            return self.pool_memory.d[(spti.base + 512) * 2 + index]
        return self.q[spti.base + 512 + index]

    def set_snapshot_entry(self, spti: Spti, index: int, entry: int) -> None:
        assert spti.rules is not None
        if spti.rules.entry_bytes == 4:
            self.pool_memory.d[(spti.base + 512) * 2 + index] = entry
        else:
            self.q[spti.base + 512 + index] = entry

    @staticmethod
    def guest_index(spti: Spti, index: int) -> int:
        """The guest entry (number in its page) that SPTE `index` stands for."""
        assert spti.rules is not None
        return spti.first + (index >> 1 if spti.rules.doubled else index)

    # SPTIs: made, found, torn down.

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
        if spti.rules is None or not spti.rules.doubled:
            return self.spti_make_shadow(role, force)
        number = self.guest_index(spti, index)
        before = self.snapshot_entry(spti, number)
        child = self.spti_make_shadow(role, force)
        if self.snapshot_entry(spti, number) != before:
            # What the guest entry's other SPTE led to was recycled for this one, and the entry marked as changed.
            self.set_snapshot_entry(spti, number, before)
            self.counters.eager_truncated += 1
        return child

    def _bind(self, spti: Spti, role: Role) -> None:
        spti.role = role
        spti.kind = role.kind
        spti.gfn = role.gfn
        spti.level = role.level
        spti.synced = False
        spti.fresh = True
        spti.zeroed = False
        if role.kind is GUEST:
            rules = entry_rules(role.mode, role.level, role.variant, self.config.phys_bits)
            part = part_of(role)
            page = spti.snapshot.view(np.uint32) if rules.entry_bytes == 4 else spti.snapshot
            spti.rules = rules
            spti.first = part.first
            spti.entries = page[part.first : part.first + part.count]
            spti.guards = not rules.latched and self.p2m.backed(role.gfn)
            self.gpts.setdefault(role.gfn, []).append(spti.index)
        else:
            spti.rules = None
            spti.first = 0
            spti.entries = spti.snapshot[:0]
            spti.guards = False
        self.by_role[role] = spti.index
        self.dirty[spti.index] = 1
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
                self.set_snapshot_entry(parent, self.guest_index(parent, word & 511), 0)
                assert parent.rules is not None
                if parent.rules.doubled and self.q[word ^ 1]:  # the same guest entry's other SPTE
                    self.drop(parent, word ^ 1)
            self.set_out_of_sync(parent)

    def drop_all(self, spti: Spti) -> None:
        """Unlinks every SPTE of an SPT that is being torn down. The words stay until the SPT is zeroed."""
        used = np.flatnonzero(spti.spt)
        if not len(used):
            return
        words = used + spti.base
        sptes = spti.spt[used]
        self.aliases.note_gone(spti, sptes)
        children: list[int] = []
        if spti.level > 1:
            children = [self.pool_memory.child(s).index for s in sptes.tolist() if not s & PTE_PS]
        self.links.unlink_many(words)
        spti.spt[used] = 0
        for child in children:
            self.aliases.parents_changed(child)
            if self.links.empty(self.links.parents(child)):
                self.orphans[child] = None
        if self.overridden:
            self.overridden.difference_update(words.tolist())

    def destroy_tree(self, spti: Spti) -> None:
        """Tears down `spti` and whatever nothing else leads to below it."""
        children = {self.pool_memory.child(s) for s in spti.spt[spti.spt != 0].tolist() if self._leads_down(spti, s)}
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

    def pick_victim(self, force: bool) -> int | None:
        """The SPTI to recycle: an orphan, else the least recently used that may go.

        Never the current root nor a pinned table; under eager fill nothing that the current root reaches, unless
        `force`.
        """
        root = self.root_spti.index if self.root_spti is not None else -1
        for index in self.orphans:
            if index not in self.pins and index != root:
                return index
        if self.no_victim and not force:
            return None
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

    # SPTEs: set, linked, dropped. No other code writes a nonzero word over a zero one, or the reverse.

    def set_leaf(self, spti: Spti, word: int, gfn: int, spte: int) -> None:
        """An empty SPTE becomes a leaf for `gfn` (the page's first frame)."""
        self.q[word] = spte
        self.links.link(word, self.links.slot(spti.level, gfn))
        if spti.level == 1 and self.guarded[gfn]:
            self.aliases.mark(gfn)
        if not spte & PTE_NX:
            self.aliases.gain_leaf(spti, gfn)

    def set_child(self, spti: Spti, word: int, child: Spti, flags: int) -> None:
        """An empty SPTE becomes one that leads to `child`."""
        self.q[word] = child.mfn << 12 | flags
        self.links.link(word, self.links.parents(child.index))
        self.orphans.pop(child.index, None)
        self.aliases.parents_changed(child.index)
        if self.dirty[child.index]:
            self.dirty_below[spti.index].add(child.index)
            self.mark_dirty(spti.index)
            self.exposed.add(child.index)

    def drop(self, spti: Spti, word: int) -> None:
        """Unlinks an SPTE and clears it; a table below may become an orphan."""
        spte = self.q[word]
        self.links.unlink(word)
        self.q[word] = 0
        if self.overridden:
            self.overridden.discard(word)
        if spti.level > 1 and not spte & PTE_PS:
            child = self.pool_memory.child(spte).index
            self.aliases.parents_changed(child)
            if self.links.empty(self.links.parents(child)):
                self.orphans[child] = None
            return
        if spti.level == 1:
            gfn = self.leaf_gfn(spte)
            if self.guarded[gfn]:
                self.aliases.mark(gfn)

    def leaf_gfn(self, spte: int) -> int:
        """First gfn of the page that a leaf SPTE maps."""
        return self.p2m.to_gfn[(spte & PTE_ADDR) >> 12]

    def writable(self, gfn: int) -> bool:
        """Whether an SPTE may let the guest write `gfn` now: not a guarded table, and logged if that is asked."""
        return not self.guarded[gfn] and (not self.logging or bool(self.logged[gfn]))

    # Synchronisation state.

    def mark_dirty(self, index: int) -> None:
        """Notes on the way up that something at or below SPTI `index` waits for synchronisation."""
        if self.dirty[index]:
            return
        self.dirty[index] = 1
        for word in self.links.nodes(self.links.parents(index)):
            parent = word >> SPTI_SHIFT
            self.dirty_below[parent].add(index)
            self.mark_dirty(parent)

    def set_out_of_sync(self, spti: Spti) -> None:
        """`spti` may differ from its guest table from now on, and no longer protects it."""
        if not spti.synced:
            return
        spti.synced = False
        self.mark_dirty(spti.index)
        if spti.guards:
            self.release_gfn(spti.gfn)

    def release_gfn(self, gfn: int) -> None:
        """One SPTI fewer protects `gfn`; after the last one its SPTEs are writable again where the guest's are."""
        self.guarded[gfn] -= 1
        self.guarded_2m[gfn >> 9] -= 1
        self.guarded_1g[gfn >> 18] -= 1
        if self.guarded[gfn]:
            return
        self.counters.released += 1
        self.aliases.mark(gfn)
        self.unprotect_gfn(gfn)

    def unprotect_gfn(self, gfn: int) -> None:
        """Gives RW back to the SPTEs of `gfn` whose D bit says that the guest's entry allows it."""
        raise NotImplementedError

    def words_of(self, spti: Spti, used: Ints) -> Ints:
        """Pool words of the SPTEs numbered `used`."""
        return used + spti.base
