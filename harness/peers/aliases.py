"""Where frames appear in virtual memory, worked out from the shadow as it is, with the rights of the guest."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from harness.engine import Words
from harness.peers.pages import ShadowPage
from harness.peers.tables import Tables
from harness.x86.bits import PTE_ADDR, PTE_PS
from harness.x86.modes import MODES
from harness.xi.roles import ROOT_LEVEL, shadow_shift
from harness.xi.watch import MAX_BASES, MAY_EXECUTE, MAY_WRITE, guest_rights

_RIGHTS: Final = MAY_WRITE | MAY_EXECUTE
_NONE: Final[frozenset[int]] = frozenset()


class Aliases:
    """Bases of every page of a shadow: (first address << 2 | rights) for each path from a root; and what changed since
    it was last asked. All is worked out anew when the shadow has changed in between: these engines follow nothing."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._version = -1
        self._bases: dict[int, frozenset[int]] = {}
        self._watched: dict[int, frozenset[int]] = {}
        self._executable = np.zeros(tables.config.frames, np.bool_)
        self._executable_version = -1

    def addresses_of(self, gfn: int, writable: bool = False, executable: bool = False) -> frozenset[int]:
        """4 KiB-aligned addresses of `gfn` in any root, with the rights asked for."""
        tables = self._tables
        if not 0 <= gfn < tables.config.frames or tables.p2m.to_mfn[gfn] < 0:
            return _NONE
        wanted = (MAY_WRITE if writable else 0) | (MAY_EXECUTE if executable else 0)
        bases = self.bases()
        out: set[int] = set()
        frames = ((tables.pool_pages.words & np.uint64(PTE_ADDR)) >> np.uint64(12)).view(np.int64)
        used = tables.pool_pages.words != 0
        for level in (1, 2, 3):
            pages = 1 << 9 * (level - 1)
            mfn = tables.p2m.to_mfn[gfn & -pages]
            for word in np.flatnonzero(used & (frames == mfn)).tolist():
                page = tables.pool_pages.owner(word)
                spte = tables.q[word]
                if page.role is None or page.level != level or (level > 1 and not spte & PTE_PS):
                    continue
                if wanted & ~guest_rights(spte):
                    continue
                extend = MODES[page.role.mode].sign_extend
                offset = ((word & 511) << shadow_shift(level)) + ((gfn & (pages - 1)) << 12)
                out.update(extend((b >> 2) + offset) for b in bases.get(page.index, _NONE) if b & wanted == wanted)
        return frozenset(out)

    def watch_changes(self) -> dict[int, frozenset[int]]:
        """See `harness.engine.ShadowEngine.watch_changes`."""
        tables = self._tables
        now = {gfn: self.addresses_of(gfn, writable=True) for gfn in np.flatnonzero(tables.protected).tolist()}
        out = {gfn: addresses for gfn, addresses in now.items() if addresses != self._watched.get(gfn, _NONE)}
        out |= {gfn: _NONE for gfn in self._watched if gfn not in now}
        self._watched = {gfn: addresses for gfn, addresses in now.items() if addresses}
        return out

    def executable_changes(self) -> npt.NDArray[np.int64]:
        """See `harness.engine.ShadowEngine.executable_changes`."""
        if self._executable_version == self._tables.version:
            return np.empty(0, np.int64)
        self._executable_version = self._tables.version
        before, self._executable = self._executable, np.zeros(len(self._executable), np.bool_)
        for index, bases in self.bases().items():
            if any(base & MAY_EXECUTE for base in bases):
                self._note_executable(self._tables.pool_pages.pages[index])
        return np.flatnonzero(self._executable & ~before)

    def _note_executable(self, page: ShadowPage) -> None:
        leaves = page.spt[(page.spt != 0) & (page.spt >> np.uint64(63) == 0)]
        if page.level > 1:
            leaves = leaves[(leaves & np.uint64(PTE_PS)) != 0]
        gfns = self._tables.p2m.m2p[((leaves & np.uint64(PTE_ADDR)) >> np.uint64(12)).view(np.int64)]
        if page.level == 1:
            self._executable[gfns] = True
            return
        for gfn in gfns.tolist():
            self._executable[gfn : gfn + (1 << 9 * (page.level - 1))] = True

    def bases(self) -> dict[int, frozenset[int]]:
        """By page number, of all pages that some root leads to."""
        if self._version != self._tables.version:
            self._version = self._tables.version
            self._bases = self._all_bases()
        return self._bases

    def _all_bases(self) -> dict[int, frozenset[int]]:
        tables = self._tables
        found: dict[int, set[int]] = {}
        by_level: dict[int, list[ShadowPage]] = {}
        for page in tables.pool_pages.in_use.values():
            by_level.setdefault(page.level, []).append(page)
            if page.role is not None and page.level == ROOT_LEVEL[page.role.mode]:
                found[page.index] = {_RIGHTS}
        for level in range(5, 1, -1):
            for page in by_level.get(level, ()):
                self._lead_down(page, found)
        return {index: frozenset(bases) for index, bases in found.items()}

    def _lead_down(self, page: ShadowPage, found: dict[int, set[int]]) -> None:
        mine = found.get(page.index)
        if not mine:
            return
        below: Words = page.spt[page.spt != 0]
        for index, spte in zip(page.used, below.tolist(), strict=True):
            if spte & PTE_PS:
                continue
            bases = found.setdefault(self._tables.pool_pages.child(spte).index, set())
            if len(bases) < MAX_BASES:
                add, mask = index << page.shift + 2, ~_RIGHTS | guest_rights(spte)
                bases.update((base + add) & mask for base in mine)
