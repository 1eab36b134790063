"""What the `xen302` engine keeps of guest tables that are out of sync: a snapshot of each, and one list for the domain
of the SPTEs by which the guest was let write them.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from harness.engine import Words
from harness.work import PAGE

Ints = npt.NDArray[np.int64]
RECORD_BYTES: Final = 48
"""One record: links, frame numbers of the table and of its snapshot, the SPTE, the address."""


class Snapshot:
    """A guest table as it was when it went out of sync: the entries from `first` to `last`, zeros around them.

    entries: of the whole table, as uint32 or uint64. late: it was taken when the guest may have stored already, and
    vouches for nothing.
    """

    __slots__ = ("entries", "first", "last", "late")

    def __init__(self, table: npt.NDArray[np.uint32] | Words, first: int, last: int, late: bool) -> None:
        self.entries = np.zeros_like(table)
        self.entries[first : last + 1] = table[first : last + 1]
        self.first = first
        self.last = last
        self.late = late

    @property
    def words(self) -> int:
        """8-byte words written to make it: the page was zeroed, then the span copied."""
        copied = max(0, self.last + 1 - self.first) * self.entries.itemsize
        return (self.entries.nbytes + copied) // 8

    def holds(self, number: int, entry: int) -> bool:
        """Whether it says that entry `number` of the table was `entry`."""
        return not self.late and int(self.entries[number]) == entry

    def note(self, number: int, entry: int) -> None:
        """The engine itself has set A or D in an entry that is in the snapshot."""
        self.entries[number] = entry

    def changed(self, first: int, now: Words) -> Ints:
        """Which of the entries `now`, those of the table from number `first`, may not be what they were: indices in
        `now`. What lies outside the span may not."""
        if self.late:
            return np.arange(len(now))
        differs = self.entries[first : first + len(now)] != now
        differs[: max(0, self.first - first)] = True
        differs[max(0, self.last + 1 - first) :] = True
        return np.flatnonzero(differs)


class OutOfSync:
    """The tables of a domain that are out of sync.

    tables: by gfn, in the order in which they went. writable: words of the SPTEs that were made writable for a store to
    one of them, oldest first; one that is there twice was made so twice. made: snapshots taken in all.
    """

    def __init__(self) -> None:
        self.tables: dict[int, Snapshot] = {}
        self.writable: list[int] = []
        self.made = 0

    def add(self, gfn: int, snapshot: Snapshot) -> None:
        self.tables[gfn] = snapshot
        self.made += 1

    def clear(self) -> None:
        self.tables.clear()
        self.writable.clear()

    @property
    def snapshot_bytes(self) -> int:
        return len(self.tables) * PAGE

    @property
    def record_bytes(self) -> int:
        return max(len(self.tables), len(self.writable)) * RECORD_BYTES
