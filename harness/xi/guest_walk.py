"""The walk of the guest's own tables, as a fault needs it: where an address leads, and whether an access may go there.

What the walk needs of the control registers is worked out when they change. EFLAGS.AC counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from harness.engine import AWAY, RETRY
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.bits import PF_P, PF_PK, PF_RSVD, PTE_A, PTE_D, PTE_P, PTE_PK_SHIFT, PTE_PS, PTE_RW, PTE_US
from harness.xi.decision import RIGHTS, Verdict
from harness.xi.gpt import UNBACKED_TABLE_ENTRY, EntryRules, entry_rules
from harness.xi.guest_entries import NARROW, WIDE, Entries, entries_in
from harness.xi.known_paths import KNOWN_SHIFT, KnownPath, UpperWalk
from harness.xi.resync import Resynchronisation
from harness.xi.roles import variant_of

ERROR_CODE: Final[dict[int, int]] = {
    Verdict.NOT_PRESENT: 0,
    Verdict.RESERVED: PF_P | PF_RSVD,
    Verdict.PROTECTION: PF_P,
    Verdict.KEY: PF_P | PF_PK,
}
# What `harness.engine.ShadowEngine.shadow_fault` returns for a verdict that is no error code, whatever the access.
RESULT: Final[dict[int, int]] = {Verdict.ALLOW: RETRY, Verdict.AWAY: AWAY}

_R: Final = RIGHTS.shift
ABSENT, RESERVED, TABLE_AWAY = (RIGHTS.part("walk", value) for value in ("absent", "reserved", "away"))
RW: Final = 1 << _R["rw"]
US: Final = 1 << _R["us"]
NX: Final = 1 << _R["nx"]
RW_US: Final = PTE_RW | PTE_US
assert RW_US < PTE_A  # of _GRANTS, the values above RW_US are those with A
ASKED: Final = tuple((access & 3) << _R["kind"] | access >> 2 << _R["user"] for access in range(8))  # by access
# RW and US of an entry become the features of the same name by one shift.
RIGHTS_SHIFT: Final = _R["rw"] - (PTE_RW.bit_length() - 1)
assert US == PTE_US << RIGHTS_SHIFT
_GRANTS: Final = PTE_RW | PTE_US | PTE_A  # bits of an entry that count only where all of a walk have them
_NOWHERE: Final = -1  # in place of an entry's address or number: it is a register, or nothing is there
_AWAY: Final = -2  # in place of the number of a table's first entry


class Walk:
    """A walk of the guest's tables.

    entries: those read, from the root down, as they are in memory by now. addresses: where they are in machine memory,
    -1 for one that is latched or not backed. rights: packed RIGHTS features of the outcome. accessed: every entry that
    has an A bit has it set. gfn: the frame; the table's whose frame is away, if the walk met one; -1 for a walk that
    did not complete otherwise. leaf: the level of the last entry. upper: what leads to an entry of level 1, which
    completed the walk; known: the path through the shadow that goes with it, if it is known.
    """

    __slots__ = ("accessed", "addresses", "entries", "gfn", "known", "leaf", "rights", "upper")

    def __init__(
        self,
        entries: list[int],
        addresses: list[int],
        rights: int,
        accessed: bool,
        gfn: int,
        leaf: int,
        upper: UpperWalk | None = None,
        known: KnownPath | None = None,
    ) -> None:
        self.entries = entries
        self.addresses = addresses
        self.rights = rights
        self.accessed = accessed
        self.gfn = gfn
        self.leaf = leaf
        self.upper = upper
        self.known = known


@lru_cache(maxsize=2)
def _codes(instruction_bit: bool) -> tuple[tuple[int, ...], ...]:
    """By Verdict, then by access: the error code to inject, or the result that stands for none."""
    by_access = [Access(value).error_bits(instruction_bit) if value in ALL_ACCESSES else 0 for value in range(8)]
    return tuple(
        tuple(RESULT[verdict] if verdict in RESULT else ERROR_CODE[verdict] | bits for bits in by_access)
        for verdict in Verdict
    )


# A level above 1: its number, shift, index mask, whether its entries are latched, the bit that makes one a leaf (PS or
# 0), reserved bits of one that is none, the bits of _GRANTS that count as set because the level does not have them, NX,
# and all rules.
_Row = tuple[int, int, int, bool, int, int, int, int, EntryRules]


class GuestWalks(Resynchronisation):
    """Walks the guest's tables and judges accesses."""

    _rows: tuple[_Row, ...] = ()  # from the root down; none without paging
    _last: tuple[int, int, int] = (0, 0, 0)  # of level 1: index mask, P and the reserved bits, NX
    _entries: Entries
    _size_shift: int = WIDE  # log2 of the bytes of an entry
    _frame_mask: int = 0
    _accessed: tuple[int, ...] = ()  # by level, from the root down: A, where entries have it
    _root_gpa: int = 0
    _root_level: int = 0
    _top_shift: int = 32  # an address is canonical if what is above this is one of _tops
    _tops: tuple[int, ...] = (0,)
    _control_rights: int = 0
    _codes: tuple[tuple[int, ...], ...] = ()
    _keys: bool = False
    _wp: bool = False

    def latch_walk(self) -> None:
        """Prepares the walk for the control state; to be called when anything but CR3 and PKRU changes in it."""
        state = self.state
        variant = variant_of(state)
        mode = state.mode
        rows = []
        for level in mode.levels:
            rules = entry_rules(mode.name, level.number, variant, self.config.phys_bits)
            lacks = (0 if rules.has_rights else PTE_RW | PTE_US) | (0 if rules.has_ad else PTE_A)
            large = PTE_PS if rules.may_be_large else 0
            mask = level.entries - 1
            if level.number == 1:
                self._last = mask, rules.reserved | PTE_P, rules.nx
            else:
                what = rules.latched, large, rules.reserved, lacks, rules.nx, rules
                rows.append((level.number, level.shift, mask, *what))
        self._rows = tuple(rows)
        self._size_shift = WIDE if mode.entry_bytes == 8 else NARROW
        self._entries = entries_in(self.memory, self._size_shift)
        self._frame_mask = mode.address_mask
        self._accessed = tuple(PTE_A if level.has_ad else 0 for level in mode.levels)
        self._root_level = mode.levels[0].number if mode.levels else 0
        self._top_shift = mode.va_bits - 1 if mode.canonical else 32
        self._tops = (0, (1 << 64 - self._top_shift) - 1) if mode.canonical else (0,)
        self._control_rights = state.wp << _R["wp"] | state.smep << _R["smep"] | state.smap << _R["smap"]
        self._codes = _codes(state.reports_fetch)
        self._keys = state.pke
        self._wp = state.wp

    def gva_to_gpa(self, va: int) -> Walk:
        """Walks the guest's own tables for the canonical address `va`, touching nothing. Paging is on."""
        known = self.known_paths.get(va >> KNOWN_SHIFT)
        if known is not None and known.holds(self._entries, self.q):
            upper = known.upper
        else:
            known, above = None, self._walk_above(va)
            if isinstance(above, Walk):
                return above
            upper = above
        mask, checked, nx = self._last
        if upper.first >= 0:
            number = upper.first + (va >> 12 & mask)
            address, entry = number << self._size_shift, self._entries[number]
        else:
            address, entry = _NOWHERE, UNBACKED_TABLE_ENTRY
        entries, addresses = [*upper.entries, entry], [*upper.addresses, address]
        if entry & checked != PTE_P:
            return Walk(entries, addresses, RESERVED if entry & PTE_P else ABSENT, False, -1, 1)
        grants = upper.grants & entry
        rights = (grants & RW_US) << RIGHTS_SHIFT | (NX if entry & nx else upper.nx)
        return Walk(entries, addresses, rights, grants > RW_US, (entry & self._frame_mask) >> 12, 1, upper, known)

    def _walk_above(self, va: int) -> Walk | UpperWalk:
        """The walk through the levels above 1, or the whole of it if it ends there."""
        entries: list[int] = []
        addresses: list[int] = []
        grants, any_nx, first = _GRANTS, 0, self._first_entry(self._root_gpa)  # the root itself is never away
        for number, shift, mask, latched, large, reserved, lacks, nx, rules in self._rows:
            index = va >> shift & mask
            address = _NOWHERE
            if latched:
                entry = self.pdptes[index]
            elif first >= 0:
                address, entry = (first + index) << self._size_shift, self._entries[first + index]
            else:
                entry = UNBACKED_TABLE_ENTRY
            entries.append(entry)
            addresses.append(address)
            if not entry & PTE_P:
                return Walk(entries, addresses, ABSENT, False, -1, number)
            grants &= entry | lacks
            any_nx |= entry & nx
            if entry & large:
                if entry & rules.reserved_large:
                    return Walk(entries, addresses, RESERVED, False, -1, number)
                rights = (grants & RW_US) << RIGHTS_SHIFT | (NX if any_nx else 0)
                gfn = rules.large_frame(entry) + ((va & ((1 << shift) - 1)) >> 12)
                return Walk(entries, addresses, rights, grants > RW_US, gfn, number)
            if entry & reserved:
                return Walk(entries, addresses, RESERVED, False, -1, number)
            table = entry & self._frame_mask
            first = self._first_entry(table)
            if first == _AWAY:
                return Walk(entries, addresses, TABLE_AWAY, False, table >> 12, number - 1)
        return UpperWalk(entries, addresses, grants, NX if any_nx else 0, first)

    def _first_entry(self, gpa: int) -> int:
        """Number of the first entry in the frame of a guest table, _NOWHERE if it has none, _AWAY if that was taken
        away."""
        gfn = gpa >> 12
        mfn = self.p2m.to_mfn[gfn] if gfn < self.config.frames else -1
        if mfn >= 0:
            return mfn << 12 - self._size_shift
        return _AWAY if gfn in self.p2m.away else _NOWHERE

    def judge(self, walk: Walk, access: int) -> int:
        """The Verdict on `access` after `walk`."""
        packed = ASKED[access] | walk.rights | self._control_rights
        return RIGHTS.lookup[packed | self._key_rights(walk) if self._keys else packed]

    def results(self, walk: Walk, accesses: Sequence[int]) -> list[int]:
        """For each access: the error code to inject, RETRY where the guest allows it, or AWAY."""
        common = walk.rights | self._control_rights | self._key_rights(walk)
        lookup, codes = RIGHTS.lookup, self._codes
        return [codes[lookup[common | ASKED[access]]][access] for access in accesses]

    def _key_rights(self, walk: Walk) -> int:
        """The packed RIGHTS features of the protection key, where one counts."""
        if not self._keys or not walk.rights & US or walk.gfn < 0:
            return 0
        key = walk.entries[-1] >> PTE_PK_SHIFT & 0xF
        return (self.state.pkru >> 2 * key & 3) << _R["key_ad"]

    def set_accessed(self, walk: Walk, store: bool) -> bool:
        """Sets A in every entry of the walk that has one, and D in the last for a store. Whether any was not set."""
        entries = walk.entries
        if walk.accessed and not (store and entries and not entries[-1] & PTE_D):
            return False
        last = len(entries) - 1
        if walk.known is None:  # else all of them have A
            for number in range(last):
                if self._accessed[number] & ~entries[number]:
                    entries[number] |= PTE_A
                    self._set_in_guest(walk.addresses[number], PTE_A)
        missing = (self._accessed[last] | PTE_D if store else self._accessed[last]) & ~entries[last]
        if missing:
            entries[last] |= missing
            self._set_in_guest(walk.addresses[last], missing)
        return True

    def _set_in_guest(self, address: int, missing: int) -> None:
        """Sets the bits `missing`, A or D or both, in the entry at machine `address`."""
        if missing & PTE_A:
            self.counters.accessed_set += 1
        if missing & PTE_D:
            self.counters.dirty_set += 1
        if self._size_shift == WIDE:
            self.memory.or64(address, missing)
        else:
            self.memory.or32(address, missing)
        if self.logging:  # a store to the guest's memory that no fault tells of
            self.log_dirty(self.p2m.to_gfn[address >> 12])

    def needs_override(self, walk: Walk) -> bool:
        """Whether a supervisor store that the guest allows would fail on hardware that runs with CR0.WP=1: on the way
        something is read-only, or the key of a user page forbids stores. (A page may be the supervisor's by one level
        and read-only by another, so it is not enough to look at user pages.)"""
        if self._wp:
            return False
        if not walk.rights & RW:
            return True
        if not self._keys or not walk.rights & US:
            return False
        return bool(self.state.pkru >> 2 * (walk.entries[-1] >> PTE_PK_SHIFT & 0xF) & 2)
