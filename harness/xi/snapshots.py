"""Snapshots: what a guest table held when its SPT was last synchronised, so that a resync looks at changes only.

Two policies. ``reserved``: a page for each SPTI, for life. ``dynamic``: a page is taken from a pool of its own when a
table goes out of sync, and given back when it is in sync again; while it is in sync the table itself is the snapshot,
since nobody can write it. A fresh SPT has none to begin with, so that it must be synchronised when it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from harness.engine import MachineMemory, Words
from harness.x86.bits import ENTRIES, PTE_D, PTE_PS, PTE_RW
from harness.xi.gpt import AD
from harness.xi.p2m import P2m
from harness.xi.pool import SNAPSHOT, Pool, Spti
from harness.xi.stats import Stats

Mask = npt.NDArray[np.bool_]

AD_PAIR: Final = AD | AD << 32
"""A and D in both halves of a word: the entries of 32-bit guests."""

SUM_BYTES: Final = 8
_PAGE: Final = 4096
_NOT_AD: Final = np.uint64(~AD_PAIR & (1 << 64) - 1)
_NOTHING: Final[Words] = np.zeros(ENTRIES, np.uint64)
_NOTHING.flags.writeable = False
# Odd, so that a change of one entry always changes the sum.
_WEIGHTS: Final[Words] = np.random.default_rng(2006).integers(0, 1 << 63, ENTRIES, np.uint64) | np.uint64(1)


class Guest(Protocol):
    """What a store of snapshots needs of the domain. eager: stores are announced after they are made."""

    memory: MachineMemory
    p2m: P2m
    counters: Stats
    eager: bool

    def guest_page(self, spti: Spti) -> Words: ...


class Snapshots(Protocol):
    """Where snapshots are. An SPTI's own fields (`Spti.entries`, `Spti.snapshots`, `Spti.first_entry`) lead there."""

    policy: str
    sync_when_made: bool

    def bind(self, spti: Spti) -> None:
        """A GUEST SPTI is bound to its role: its snapshot is all zero."""

    def keep(self, spti: Spti, page: Words) -> None:
        """`spti` has been brought in line with the guest table's `page`, and is in sync from here on."""

    def leave(self, spti: Spti) -> bool:
        """`spti` is about to go out of sync. True when its SPTEs may not be those of the snapshot that it has now."""

    def release(self, spti: Spti) -> None:
        """`spti` is torn down."""

    def entries_of(self, spti: Spti) -> Any:
        """The snapshot of the part of the guest's table that `spti` covers: uint32 or uint64, for reading."""

    def word(self, spti: Spti, index: int) -> int:
        """Pool word that holds the snapshot of the entry behind SPTE `index`; -1: it is not in the pool."""

    def differing(self, sptis: Sequence[Spti], now: Words) -> Mask:
        """Which of the in-sync `sptis` have a table that has changed, A and D aside. now: a page for each."""

    spti_pages: int  # 4 KiB pages that an SPTI owns for its snapshot

    @property
    def fixed_bytes(self) -> int:
        """What is kept for each SPTI beside."""

    @property
    def grown_bytes(self) -> int:
        """What was allocated as it was needed, and is held now."""

    @property
    def pages_held(self) -> int:
        """4 KiB pages that snapshots take now."""

    @property
    def pages_peak(self) -> int:
        """The most that they ever took."""

    @property
    def kept(self) -> str:
        """Which tables have one, for a reader."""


class ReservedSnapshots:
    """A page for each SPTI: the second of its frames."""

    policy = "reserved"
    sync_when_made = False
    kept = "of every table, for life"
    spti_pages = 1
    fixed_bytes = 0
    grown_bytes = 0

    def __init__(self, pool: Pool, guest: Guest) -> None:
        self._pool = pool
        self._counters = guest.counters

    @property
    def pages_held(self) -> int:
        return self._pool.held

    @property
    def pages_peak(self) -> int:
        return self._pool.held_peak

    def bind(self, spti: Spti) -> None:
        narrow = is_narrow(spti)
        spti.entries = (spti.narrow_snapshot if narrow else spti.snapshot)[spti.first : spti.first + spti.count]
        spti.snapshots = self._pool.d if narrow else self._pool.q
        spti.first_entry = (spti.base + SNAPSHOT << narrow) + spti.first

    def keep(self, spti: Spti, page: Words) -> None:
        spti.snapshot[:] = page
        self._counters.snapshots_taken += 1
        self._counters.words_copied += ENTRIES

    def leave(self, spti: Spti) -> bool:
        """It is there."""
        del spti
        return False

    def release(self, spti: Spti) -> None:
        """It stays the SPTI's."""

    def entries_of(self, spti: Spti) -> Any:
        return spti.entries

    def word(self, spti: Spti, index: int) -> int:
        return spti.first_entry + (index >> spti.halved) >> is_narrow(spti)

    def differing(self, sptis: Sequence[Spti], now: Words) -> Mask:
        pages = self._pool.words.reshape(-1, ENTRIES)
        now = now ^ pages[[spti.index * 4 + 1 for spti in sptis]]
        changed: Mask = ((now & _NOT_AD) != 0).any(axis=1)
        return changed


class DynamicSnapshots:
    """Pages of a pool of its own, held while a table is out of sync.

    The PDPTEs of a PAE guest are registers, and so never in memory: their SPT holds a page as long as it lives. A table
    without a frame reads as zero, and needs none.

    A snapshot that is taken when the guest is about to write is right. But who tells of the write may do so too late
    (under observation the store has been made; a checker has written in the table and put it back), and then nothing
    tells what was there. So the sum of the page is kept from the moment it came in sync: if it differs, or an SPTE goes
    beyond its entry, or stores are known to be announced late, `leave` says so, and the SPTEs have to be brought in
    line with the page as it is.

    pages: the pool, as many as there are SPTIs, so that it never runs out; page_of: by SPTI, -1 for none; sums: of the
    pages of in-sync tables.
    """

    policy = "dynamic"
    sync_when_made = True
    kept = "of tables out of sync only: one in sync is its own"
    spti_pages = 0

    def __init__(self, pool: Pool, guest: Guest) -> None:
        self._guest = guest
        self.pages: Words = np.zeros((len(pool), ENTRIES), np.uint64)
        view = self.pages.reshape(-1).data.cast("B")
        self._q, self._d = view.cast("Q"), view.cast("I")
        self.free: list[int] = list(range(len(pool) - 1, -1, -1))
        self.page_of = [-1] * len(pool)
        self.sums = [0] * len(pool)
        self.fixed_bytes = SUM_BYTES * len(pool)
        self.pages_held = 0
        self.pages_peak = 0

    @property
    def grown_bytes(self) -> int:
        return self.pages_held * _PAGE

    def bind(self, spti: Spti) -> None:
        assert spti.rules is not None
        if spti.rules.latched:
            self._take(spti)[:] = 0
        else:
            self._use_nothing(spti)

    def keep(self, spti: Spti, page: Words) -> None:
        self.release(spti)
        self.sums[spti.index] = page_sum(page)
        self._guest.counters.entries_compared += ENTRIES
        if not self._guest.p2m.backed(spti.gfn):
            self._use_nothing(spti)
            return
        memory, narrow = self._guest.memory, is_narrow(spti)
        spti.entries = None
        spti.snapshots = _TheTable(
            memory.read32 if narrow else memory.read64, self._guest.p2m.to_mfn[spti.gfn] << 12, 2 if narrow else 3
        )
        spti.first_entry = spti.first

    def leave(self, spti: Spti) -> bool:
        if spti.rules is None or spti.rules.latched:
            return False
        counters = self._guest.counters
        page = self._guest.guest_page(spti)
        self._take(spti)[:] = page
        late = self._guest.eager
        if not late:
            counters.entries_compared += ENTRIES
            late = page_sum(page) != self.sums[spti.index]
        if not late:
            counters.sptes_visited += ENTRIES
            late = _exceeds(spti)
        counters.snapshots_taken += 1
        counters.snapshots_late += late
        return late

    def release(self, spti: Spti) -> None:
        page = self.page_of[spti.index]
        if page >= 0:
            self.page_of[spti.index] = -1
            self.free.append(page)
            self.pages_held -= 1

    def entries_of(self, spti: Spti) -> Any:
        if spti.entries is not None:
            return spti.entries
        page = self._guest.guest_page(spti)
        return (page.view(np.uint32) if is_narrow(spti) else page)[spti.first : spti.first + spti.count]

    def word(self, spti: Spti, index: int) -> int:
        del spti, index
        return -1

    def differing(self, sptis: Sequence[Spti], now: Words) -> Mask:
        sums = np.array([self.sums[spti.index] for spti in sptis], np.uint64)
        changed: Mask = (now & _NOT_AD) @ _WEIGHTS != sums
        return changed

    def _take(self, spti: Spti) -> Words:
        counters = self._guest.counters
        counters.pages_allocated += 1
        counters.words_copied += ENTRIES  # the caller sets up all of it
        number = self.page_of[spti.index] = self.free.pop()
        self.pages_held += 1
        self.pages_peak = max(self.pages_peak, self.pages_held)
        page: Words = self.pages[number]
        narrow = is_narrow(spti)
        spti.entries = (page.view(np.uint32) if narrow else page)[spti.first : spti.first + spti.count]
        spti.snapshots = self._d if narrow else self._q
        spti.first_entry = (number * ENTRIES << narrow) + spti.first
        return page

    @staticmethod
    def _use_nothing(spti: Spti) -> None:
        narrow = is_narrow(spti)
        spti.entries = (_NOTHING.view(np.uint32) if narrow else _NOTHING)[spti.first : spti.first + spti.count]
        spti.snapshots = _NOTHING.data.cast("B").cast("I" if narrow else "Q")
        spti.first_entry = spti.first


class _TheTable:
    """In place of a snapshot: the guest's table itself, while nobody can write it."""

    __slots__ = ("_at", "_read", "_shift")

    def __init__(self, read: Callable[[int], int], at: int, shift: int) -> None:
        """read: of an entry, by machine address; at: of the table; an entry has 1 << `shift` bytes."""
        self._read = read
        self._at = at
        self._shift = shift

    def __getitem__(self, number: int) -> int:
        return self._read(self._at + (number << self._shift))

    def __setitem__(self, number: int, entry: int) -> None:
        """The table says it already: what is put down has been read there, but for A and D."""


def _exceeds(spti: Spti) -> bool:
    """Whether an SPTE has A or D, or is writable for the sake of D, where the snapshot's entry has not."""
    entries = spti.entries.astype(np.uint64)
    if spti.halved:
        entries = np.repeat(entries, 2)
    sptes = spti.spt[: len(entries)]
    beyond = sptes & ~entries & np.uint64(AD)
    if spti.level > 1:  # the SPTE above the pieces of a large page has no D
        beyond |= (sptes & np.uint64(PTE_RW)) * ((entries & np.uint64(PTE_PS | PTE_D)) == PTE_PS)
    return bool(beyond.any())


def is_narrow(spti: Spti) -> bool:
    """Whether the entries of the guest table of a GUEST SPTI have 4 bytes."""
    assert spti.rules is not None
    return spti.rules.entry_bytes == 4


def page_sum(page: Words) -> int:
    """A sum of a guest table's page, A and D aside, that another page hardly ever has."""
    return int((page & _NOT_AD) @ _WEIGHTS)
