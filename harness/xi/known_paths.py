"""The upper part of a path that an earlier fault went, and what must still be so for the next one to go it again.

Faults come in groups: the next one is likely to need another entry of the same level-1 table. What led there then, the
guest's entries above it, their snapshots and the SPTEs that go with them, is read again and compared each time: a guest
may change a table at any time without telling. So what is remembered is only what follows from them: rights, tables,
SPTIs. The other things that it follows from are the root, the control registers and the p2m; with a change of those all
is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Final

from harness.xi.guest_entries import Entries
from harness.xi.pool import Spti

KNOWN_SHIFT: Final = 21  # what one level-1 SPT covers


class UpperWalk:
    """A walk of the guest's tables as far as its level-1 table.

    entries, addresses: as of `guest_walk.Walk`. grants: RW, US and A, those that all entries have. nx: the feature of
    RIGHTS, 0 if none has NX. first: number (`guest_entries.Entries`) of the first entry in the level-1 table's page,
    negative if nothing backs it.
    """

    __slots__ = ("addresses", "entries", "first", "grants", "nx")

    def __init__(self, entries: list[int], addresses: list[int], grants: int, nx: int, first: int) -> None:
        self.entries = entries
        self.addresses = addresses
        self.grants = grants
        self.nx = nx
        self.first = first


class KnownPath:
    """The way to one level-1 SPT, on which every table above agreed with the guest's, and had A set.

    upper: the guest's side of it. spti: the SPTI at its end; above: the numbers of those above it, from the root down.
    """

    __slots__ = ("_guest_now", "_guest_then", "_shadow_now", "_shadow_then", "above", "spti", "upper")

    def __init__(self, upper: UpperWalk, path: list[Spti], guest: Mapping[int, int], shadow: Mapping[int, int]) -> None:
        """path: from the root to level 1. What must stay as it is, neither of them empty: guest: entries, by number;
        shadow: words of the pool."""
        self.upper = upper
        self.above = [spti.index for spti in path[:-1]]
        self.spti = path[-1]
        # Reads all of them in one call, from the mapping as from memory.
        self._guest_now, self._shadow_now = itemgetter(*guest), itemgetter(*shadow)
        self._guest_then, self._shadow_then = self._guest_now(guest), self._shadow_now(shadow)

    def holds(self, entries: Entries, pool: memoryview) -> bool:
        """Whether everything that was compared then is the same now. entries: the guest's; pool: its words."""
        same: bool = self._guest_now(entries) == self._guest_then and self._shadow_now(pool) == self._shadow_then
        return same
