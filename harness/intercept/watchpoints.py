"""Write watchpoints over every virtual alias of every in-sync guest table.

Watchpoints match by virtual address in whatever address space is loaded, so a page stays watched as long as
any table needs it, and a hit names every table that is watched there: marking one too many out of sync
costs a resync, never correctness.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.machine.gdbstub import watch_packet
from harness.x86.bits import PAGE_SIZE


class WatchSet:
    """Which 4 KiB pages of virtual addresses are watched, and for which guest tables (gfns)."""

    def __init__(self) -> None:
        self._pages: dict[int, set[int]] = {}
        self._tables: dict[int, frozenset[int]] = {}

    def __len__(self) -> int:
        return len(self._pages)

    def update(self, changes: Mapping[int, frozenset[int]]) -> list[bytes]:
        """Takes gfn -> all its addresses (empty: none any more); gives the Z2/z2 packets that bring it about."""
        touched: dict[int, bool] = {}  # page -> whether it was watched before
        pages = self._pages
        for gfn, addresses in changes.items():
            before = self._tables.get(gfn, frozenset())
            for page in before - addresses:
                touched.setdefault(page, True)
                owners = pages[page]
                owners.discard(gfn)
                if not owners:
                    del pages[page]
            for page in addresses - before:
                owners_or_none = pages.get(page)
                touched.setdefault(page, owners_or_none is not None)
                if owners_or_none is None:
                    pages[page] = {gfn}
                else:
                    owners_or_none.add(gfn)
            if addresses:
                self._tables[gfn] = addresses
            else:
                self._tables.pop(gfn, None)
        packets = []
        for page, was in touched.items():
            now = page in pages
            if now != was:
                packets.append(watch_packet(page, PAGE_SIZE, insert=now))
        return packets

    def addresses(self, gfn: int) -> frozenset[int]:
        """The virtual pages at which table `gfn` is watched."""
        return self._tables.get(gfn, frozenset())

    def tables_at(self, page: int) -> frozenset[int]:
        """The gfns watched at virtual page address `page`."""
        return frozenset(self._pages.get(page, ()))
