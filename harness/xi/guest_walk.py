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
_NX: Final = 1 << _R["nx"]
_USER_SHIFT: Final = _R["user"]
# RW and US of an entry become the features of the same name by one shift.
_RIGHTS_SHIFT: Final = _R["rw"] - (PTE_RW.bit_length() - 1)
assert US == PTE_US << _RIGHTS_SHIFT
_LATCHED: Final = -1  # in place of an entry's address: it is a register, or nothing is there


class Walk:
    """A walk of the guest's tables.

    entries: those read, from the root down, as they are in memory by now. addresses: where they are in machine memory,
    -1 for one that is latched or not backed. rights: packed RIGHTS features of the outcome. accessed: every entry that
    has an A bit has it set. gfn: the frame; the table's whose frame is away, if the walk met one; -1 for a walk that
    did not complete otherwise. leaf: the level of the last entry.
    """

    __slots__ = ("accessed", "addresses", "entries", "gfn", "leaf", "rights")

    def __init__(
        self, entries: list[int], addresses: list[int], rights: int, accessed: bool, gfn: int, leaf: int
    ) -> None:
        self.entries = entries
        self.addresses = addresses
        self.rights = rights
        self.accessed = accessed
        self.gfn = gfn
        self.leaf = leaf


@lru_cache(maxsize=2)
def _codes(instruction_bit: bool) -> tuple[tuple[int, ...], ...]:
    """By Verdict, then by access: the error code to inject, or the result that stands for none."""
    by_access = [Access(value).error_bits(instruction_bit) if value in ALL_ACCESSES else 0 for value in range(8)]
    return tuple(
        tuple(RESULT[verdict] if verdict in RESULT else ERROR_CODE[verdict] | bits for bits in by_access)
        for verdict in Verdict
    )


# One level: its number, shift, index mask, whether its entries are latched, the bit that makes one a leaf (PS or 0),
# reserved bits of one that is none, the bits that count as set because the level does not have them, NX, and all rules.
_Row = tuple[int, int, int, bool, int, int, int, int, EntryRules]


class GuestWalks(Resynchronisation):
    """Walks the guest's tables and judges accesses."""

    _rows: tuple[_Row, ...] = ()
    _wide: bool = True  # entries have 8 bytes, not 4
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
            rows.append((level.number, level.shift, mask, rules.latched, large, rules.reserved, lacks, rules.nx, rules))
        self._rows = tuple(rows)
        self._wide = mode.entry_bytes == 8
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
        entries: list[int] = []
        addresses: list[int] = []
        table = self._root_gpa
        every, any_nx = PTE_RW | PTE_US | PTE_A, 0
        p2m, frames, frame_mask = self.p2m, self.config.frames, self._frame_mask
        to_mfn = p2m.to_mfn
        read, size_shift = (self.memory.read64, 3) if self._wide else (self.memory.read32, 2)
        for number, shift, mask, latched, large, reserved, lacks, nx, rules in self._rows:
            index = va >> shift & mask
            address = _LATCHED
            if latched:
                entry = self.pdptes[index]
            else:
                gfn = table >> 12
                mfn = to_mfn[gfn] if gfn < frames else -1
                if mfn >= 0:
                    address = (mfn << 12) + (index << size_shift)
                    entry = read(address)
                elif gfn in p2m.away:
                    return Walk(entries, addresses, TABLE_AWAY, False, gfn, number)
                else:
                    entry = UNBACKED_TABLE_ENTRY
            entries.append(entry)
            addresses.append(address)
            if not entry & PTE_P:
                return Walk(entries, addresses, ABSENT, False, -1, number)
            every &= entry | lacks
            any_nx |= entry & nx
            if entry & large:
                if entry & rules.reserved_large:
                    return Walk(entries, addresses, RESERVED, False, -1, number)
                gfn = rules.large_frame(entry) + ((va & ((1 << shift) - 1)) >> 12)
                break
            if entry & reserved:
                return Walk(entries, addresses, RESERVED, False, -1, number)
            table = entry & frame_mask
            if number == 1:
                gfn = table >> 12
                break
        rights = (every & (PTE_RW | PTE_US)) << _RIGHTS_SHIFT | (_NX if any_nx else 0)
        return Walk(entries, addresses, rights, bool(every & PTE_A), gfn, number)

    def judge(self, walk: Walk, access: int) -> int:
        """The Verdict on `access` after `walk`."""
        packed = (access & 3) | (access >> 2 & 1) << _USER_SHIFT | walk.rights | self._control_rights
        return RIGHTS.lookup[packed | self._key_rights(walk) if self._keys else packed]

    def results(self, walk: Walk, accesses: Sequence[int]) -> list[int]:
        """For each access: the error code to inject, RETRY where the guest allows it, or AWAY."""
        common = walk.rights | self._control_rights | self._key_rights(walk)
        lookup, codes = RIGHTS.lookup, self._codes
        return [codes[lookup[common | (access & 3) | (access >> 2 & 1) << _USER_SHIFT]][access] for access in accesses]

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
        for number, accessed in enumerate(self._accessed[: last + 1]):
            wanted = accessed | (PTE_D if store and number == last else 0)
            missing = wanted & ~entries[number]
            if missing:
                self.counters.accessed_set += bool(missing & PTE_A)
                self.counters.dirty_set += bool(missing & PTE_D)
                if self._wide:
                    self.memory.or64(walk.addresses[number], missing)
                else:
                    self.memory.or32(walk.addresses[number], missing)
                if self.logging:  # a store to the guest's memory that no fault tells of
                    self.log_dirty(self.p2m.to_gfn[walk.addresses[number] >> 12])
                entries[number] |= missing
        return True

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
