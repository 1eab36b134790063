"""Page faults on the shadow: the guest's own tables decide whether the guest sees one.

`shadow_fault` walks the guest's tables as they are now, asks the decision table for the verdict and for what the
shadow has to do, and does it. It assumes EFLAGS.AC=0: nothing tells the engine of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from harness.engine import GENERAL_PROTECTION, MMIO, RETRY
from harness.x86 import modes
from harness.x86.access import ALL_ACCESSES, USER_BIT, Access
from harness.x86.bits import PF_P, PF_PK, PF_RSVD, PTE_A, PTE_D, PTE_P, PTE_PK_SHIFT, PTE_PS, PTE_RW, PTE_US
from harness.xi.decision import PLACE, RIGHTS, Step, Verdict
from harness.xi.gpt import AD, SW_OVERRIDE, UNBACKED_TABLE_ENTRY, EntryRules, entry_rules
from harness.xi.pool import Spti
from harness.xi.resync import Resynchronisation
from harness.xi.roles import GUEST, shadow_shift, variant_of

ERROR_CODE: Final[dict[int, int]] = {
    Verdict.NOT_PRESENT: 0,
    Verdict.RESERVED: PF_P | PF_RSVD,
    Verdict.PROTECTION: PF_P,
    Verdict.KEY: PF_P | PF_PK,
}

_R: Final = RIGHTS.shift
_ABSENT: Final = 1 << _R["walk"]
_RESERVED: Final = 2 << _R["walk"]
_RW: Final = 1 << _R["rw"]
_US: Final = 1 << _R["us"]
_NX: Final = 1 << _R["nx"]
_USER_SHIFT: Final = _R["user"]
_P: Final = PLACE.shift
_ADDRESS_LATCHED: Final = -1
_MMIO, _UNSYNC, _LOG, _OVERRIDE = (int(step) for step in (Step.MMIO, Step.UNSYNC, Step.LOG, Step.OVERRIDE))


class WalkStep(NamedTuple):
    """One entry of a guest walk. address: machine address of the entry, -1 if it is latched or not backed."""

    level: int
    address: int
    entry: int


class Walk(NamedTuple):
    """A walk of the guest's tables.

    steps: the entries read, from the root down. rights: packed RIGHTS features of the outcome. gfn: the frame, -1
    when the walk did not complete. leaf: the level of the last entry.
    """

    steps: list[WalkStep]
    rights: int
    gfn: int
    leaf: int


@lru_cache(maxsize=2)
def _codes(instruction_bit: bool) -> tuple[tuple[int, ...], ...]:
    """By Verdict, then by access: the error code to inject, RETRY where the guest allows the access."""
    by_access = [Access(value).error_bits(instruction_bit) if value in ALL_ACCESSES else 0 for value in range(8)]
    return tuple(tuple(ERROR_CODE[verdict] | bits if verdict else RETRY for bits in by_access) for verdict in Verdict)


class Faults(Resynchronisation):
    """The fault path."""

    _walk_rules: tuple[tuple[int, int, int, EntryRules], ...] = ()  # level's number, shift, index mask; its entries
    _root_gpa: int = 0
    _is_canonical: Callable[[int], bool] = modes.UNPAGED.is_canonical
    _control_rights: int = 0
    _codes: tuple[tuple[int, ...], ...] = ()
    _keys: bool = False

    def latch_walk(self) -> None:
        """Prepares the walk for the control state; to be called whenever that changes."""
        state = self.state
        variant = variant_of(state)
        mode = state.mode
        self._walk_rules = tuple(
            (
                level.number,
                level.shift,
                level.entries - 1,
                entry_rules(mode.name, level.number, variant, self.config.phys_bits),
            )
            for level in mode.levels
        )
        self._root_gpa = state.root_gpa
        self._is_canonical = mode.is_canonical
        self._control_rights = state.wp << _R["wp"] | state.smep << _R["smep"] | state.smap << _R["smap"]
        self._codes = _codes(state.reports_fetch)
        self._keys = state.pke

    def gva_to_gpa(self, va: int) -> Walk:
        """Walks the guest's own tables for the canonical address `va`, touching nothing."""
        steps: list[WalkStep] = []
        table = self._root_gpa
        rw, us, nx = PTE_RW, PTE_US, 0
        memory, to_mfn, frames = self.memory, self.p2m.to_mfn, self.config.frames
        for number, shift, mask, rules in self._walk_rules:
            index = (va >> shift) & mask
            address = _ADDRESS_LATCHED
            if rules.latched:
                entry = self.pdptes[index]
            else:
                gfn = table >> 12
                mfn = to_mfn[gfn] if gfn < frames else -1
                if mfn < 0:
                    entry = UNBACKED_TABLE_ENTRY
                elif rules.entry_bytes == 8:
                    address = (mfn << 12) + index * 8
                    entry = memory.read64(address)
                else:
                    address = (mfn << 12) + index * 4
                    entry = memory.read32(address)
            steps.append(WalkStep(number, address, entry))
            if not entry & PTE_P:
                return Walk(steps, _ABSENT, -1, number)
            large = rules.may_be_large and entry & PTE_PS
            if entry & (rules.reserved_large if large else rules.reserved):
                return Walk(steps, _RESERVED, -1, number)
            if rules.has_rights:
                rw &= entry
                us &= entry
                nx |= entry & rules.nx
            if large or number == 1:
                rights = (_RW if rw else 0) | (_US if us else 0) | (_NX if nx else 0)
                if large:
                    gfn = rules.large_frame(entry) + ((va & ((1 << shift) - 1)) >> 12)
                else:
                    gfn = rules.frame(entry)
                return Walk(steps, rights, gfn, number)
            table = entry & rules.frame_mask
        raise AssertionError("a paging mode's last level is level 1")

    def judge(self, walk: Walk, access: int) -> int:
        """The Verdict on `access` after `walk`."""
        packed = (access & 3) | (access >> 2 & 1) << _USER_SHIFT | walk.rights | self._control_rights
        return RIGHTS.lookup[packed | self._key_rights(walk)]

    def _key_rights(self, walk: Walk) -> int:
        """The packed RIGHTS features of the protection key, where one counts."""
        if not self._keys or not walk.rights & _US or walk.gfn < 0:
            return 0
        key = walk.steps[-1].entry >> PTE_PK_SHIFT & 0xF
        return (self.state.pkru >> 2 * key & 3) << _R["key_ad"]

    def shadow_fault(self, va: int, access: int) -> int:
        """See `harness.engine.ShadowEngine.shadow_fault`. Raises ValueError for an access code that is none."""
        self.counters.faults += 1
        if access & ~7 or access & 3 == 3:
            raise ValueError(f"{access} is no access")
        if not self._is_canonical(va):
            return GENERAL_PROTECTION
        if not self._walk_rules:
            return self._unpaged_fault(va, access)
        walk = self.gva_to_gpa(va)
        verdict = self.judge(walk, access)
        if verdict:
            self.counters.faults_injected += 1
            return self._codes[verdict][access]
        return self._serve(va, access, walk)

    def _serve(self, va: int, access: int, walk: Walk) -> int:
        """A fault on an access that the guest's tables allow."""
        if self.p2m.backed(walk.gfn) and self.path_is_stale(va, walk):
            # A fault on a missing translation: XI synchronises everything reachable, then looks again.
            self.counters.fault_resyncs += 1
            self.shadow_resync_all()
        return self._place(va, access, walk)

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
        if len(accesses) == 1 or not self._walk_rules or not self._is_canonical(va):
            return [self.shadow_fault(va, access) for access in accesses]
        walk = self.gva_to_gpa(va)
        common = walk.rights | self._control_rights | self._key_rights(walk)
        lookup, codes = RIGHTS.lookup, self._codes
        out = [codes[lookup[common | (access & 3) | (access >> 2 & 1) << _USER_SHIFT]][access] for access in accesses]
        injected = len(out) - out.count(RETRY)
        self.counters.faults += injected
        self.counters.faults_injected += injected
        if injected < len(out):
            allowed = [access for access, code in zip(accesses, out, strict=True) if code == RETRY]
            self.counters.faults += 1
            result = self._serve(va, next((access for access in allowed if access & 3 == 1), allowed[0]), walk)
            if result != RETRY:
                out = [result if code == RETRY else code for code in out]
        return out

    def _place(self, va: int, access: int, walk: Walk) -> int:
        gfn = walk.gfn
        store = access & 3 == 1
        backed = self.p2m.backed(gfn)
        steps = PLACE.lookup[
            store << _P["store"]
            | backed << _P["backed"]
            | (backed and self.guarded[gfn] != 0) << _P["gpt"]
            | (backed and self.logging and not self.logged[gfn]) << _P["unlogged"]
            | (store and not access & USER_BIT and self.needs_override(walk)) << _P["override"]
        ]
        walk = self.set_accessed(walk, store)
        if steps & _MMIO:
            self.counters.faults_mmio += 1
            return MMIO
        if steps & _UNSYNC:
            self.table_written(gfn)
        if steps & _LOG:
            self.log_dirty(gfn)
        self.fill(va, walk, store and self.logging, bool(steps & _OVERRIDE))
        return RETRY

    def needs_override(self, walk: Walk) -> bool:
        """Whether a supervisor store that the guest allows would fail on hardware that runs with CR0.WP=1: on the way
        something is read-only, or the key of a user page forbids stores. (A page may be the supervisor's by one level
        and read-only by another, so it is not enough to look at user pages.)"""
        if self.state.wp:
            return False
        if not walk.rights & _RW:
            return True
        key = walk.steps[-1].entry >> PTE_PK_SHIFT & 0xF
        return self._keys and bool(walk.rights & _US) and bool(self.state.pkru >> 2 * key & 2)

    def set_accessed(self, walk: Walk, store: bool) -> Walk:
        """Sets A in every entry of the walk that has one, and D in the last for a store. The walk as it is then."""
        steps = list(walk.steps)
        for number, (step, (_, _, _, rules)) in enumerate(zip(walk.steps, self._walk_rules, strict=False)):
            wanted = PTE_A if rules.has_ad else 0
            if store and step.level == walk.leaf:
                wanted |= PTE_D
            missing = wanted & ~step.entry
            if missing:
                self.counters.accessed_set += bool(missing & PTE_A)
                self.counters.dirty_set += bool(missing & PTE_D)
                if rules.entry_bytes == 8:
                    self.memory.or64(step.address, missing)
                else:
                    self.memory.or32(step.address, missing)
                steps[number] = WalkStep(step.level, step.address, step.entry | missing)
        return walk._replace(steps=steps)

    # Filling the path.

    def path_is_stale(self, va: int, walk: Walk) -> bool:
        """Whether a table that the shadow of `va` goes through differs from the guest's, where `va` is concerned.

        An in-sync table that does was written by a store that nothing announced; it goes out of sync here.
        """
        spti = self.root_spti
        while spti is not None:
            index = (va >> shadow_shift(spti.level)) & 511
            if spti.kind is GUEST:
                entry = walk.steps[walk.steps[0].level - spti.level].entry
                if (self.snapshot_entry(spti, self.guest_index(spti, index)) ^ entry) & ~AD:
                    if spti.synced:
                        self.counters.unexplained += 1
                        self.set_out_of_sync(spti)
                    return not spti.fresh
            spte = self.q[spti.base + index]
            if not spte or spti.level == 1 or spte & PTE_PS:
                return False
            spti = self.pool_memory.child(spte)
        return False

    def fill(self, va: int, walk: Walk, divide: bool, override: bool) -> None:
        """Brings the path of `va` into the shadow, recycling what it must but nothing of the path.

        divide: a large page is to be divided (a store while the dirty log runs). override: see `needs_override`.
        """
        pins = len(self.pins)
        try:
            spti = self.root_spti
            assert spti is not None
            while True:
                self.pins.append(spti.index)
                self.pool_memory.touch(spti.index)
                word = spti.base + ((va >> shadow_shift(spti.level)) & 511)
                self._fill_entry(spti, word, walk, override)
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
                assert spte, "the pool holds a path and the pieces of large pages (MINIMUM_SPTIS)"
                spti = self.pool_memory.child(spte)
        finally:
            del self.pins[pins:]
        self.counters.faults_filled += 1

    def _fill_entry(self, spti: Spti, word: int, walk: Walk, override: bool) -> None:
        index = word & 511
        if spti.kind is not GUEST:
            self.fill_direct_entry(spti, index, True)
            return
        entry = walk.steps[walk.steps[0].level - spti.level].entry
        number = self.guest_index(spti, index)
        old = self.snapshot_entry(spti, number)
        if (old ^ entry) & ~AD:
            self.shadow_resync(spti)
        if old != entry:
            self.set_snapshot_entry(spti, number, entry)
        elif spti.level > walk.leaf and not override:
            spte = self.q[word]
            if spte & PTE_P and not spte & SW_OVERRIDE:
                return  # a path that is there already, for the most part
        self.resync_spte(spti, index, entry, True, True)
        if override and spti.level == walk.leaf:
            self.override_spte(spti, word)

    def override_spte(self, spti: Spti, word: int) -> None:
        """Opens the SPTE of a guest's page for a supervisor store that CR0.WP=0 allows: RW=1, and US=0 so that users
        keep out. A user access faults on it and has it put back."""
        rules = spti.rules
        assert rules is not None
        spte = self.q[word]
        rights = PTE_RW
        if spti.level == 1 or spte & PTE_PS:
            rights = PTE_D | self.leaf_rw(spti, self.leaf_gfn(spte), PTE_D)  # the page may be a table in sync again
        else:
            self.aliases.parents_changed(self.pool_memory.child(spte).index)
        self.q[word] = (spte | rights | SW_OVERRIDE | rules.override_nx) & ~PTE_US
        self.overridden.add(word)
        self.counters.overrides += 1

    def end_overrides(self) -> None:
        """Puts every overridden SPTE back to what its entry says."""
        for word in list(self.overridden):
            spti = self.pool_memory.owner(word)
            entry = self.snapshot_entry(spti, self.guest_index(spti, word & 511))
            self.resync_spte(spti, word & 511, entry, True)

    def _unpaged_fault(self, va: int, access: int) -> int:
        gfn = va >> 12
        if not self.p2m.backed(gfn):
            self.counters.faults_mmio += 1
            return MMIO
        store = access & 3 == 1
        if store and self.logging:
            self.log_dirty(gfn)
        self.fill(va, Walk([], 0, gfn, 0), store and self.logging, False)
        return RETRY
