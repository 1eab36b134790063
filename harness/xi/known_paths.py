"""The upper part of a path that an earlier fault went, and what must still be so for the next one to go it again.

Faults come in groups: the next one is likely to need another entry of the same level-1 table. What led there then, the
guest's entries above it, their snapshots and the SPTEs that go with them, is read again and compared each time: a guest
may change a table at any time without telling. So what is remembered is only what follows from them: rights, tables,
SPTIs. The other things that it follows from are the root, the control registers and the p2m; with a change of those all
is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from harness.xi.pool import Spti

KNOWN_SHIFT: Final = 21  # what one level-1 SPT covers


class UpperWalk:
    """A walk of the guest's tables as far as its level-1 table.

    entries, addresses: as of `guest_walk.Walk`. grants: RW, US and A, those that all entries have. nx: the feature of
    RIGHTS, 0 if none has NX. page: machine address of the level-1 table's page, -1 if nothing backs it.
    """

    __slots__ = ("addresses", "entries", "grants", "nx", "page")

    def __init__(self, entries: list[int], addresses: list[int], grants: int, nx: int, page: int) -> None:
        self.entries = entries
        self.addresses = addresses
        self.grants = grants
        self.nx = nx
        self.page = page


class KnownPath:
    """The way to one level-1 SPT, on which every table above agreed with the guest's, and had A set.

    upper: the guest's side of it. spti: the SPTI at its end; above: the numbers of those above it, from the root down.
    """

    __slots__ = ("_guest", "_shadow", "above", "spti", "upper")

    def __init__(self, upper: UpperWalk, path: list[Spti], shadow: dict[int, int]) -> None:
        """path: from the root to level 1. shadow: words of the pool that must stay as they are, with their values."""
        self.upper = upper
        self.above = [spti.index for spti in path[:-1]]
        self.spti = path[-1]
        self._guest = [(at, entry) for at, entry in zip(upper.addresses, upper.entries, strict=True) if at >= 0]
        self._shadow = list(shadow.items())

    def holds(self, read: Callable[[int], int], pool: memoryview) -> bool:
        """Whether everything that was compared then is the same now. read: of a guest's entry, by machine address."""
        for address, entry in self._guest:
            if read(address) != entry:
                return False
        for word, value in self._shadow:  # noqa: SIM110 (a generator would take as long again)
            if pool[word] != value:
                return False
        return True
