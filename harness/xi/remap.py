"""Changes of the p2m while the domain runs: no SPTE may keep the old machine frame."""

from __future__ import annotations

import numpy as np

from harness.x86.bits import PTE_P
from harness.x86.control import ControlState
from harness.xi.faults import Faults
from harness.xi.pool import Spti
from harness.xi.roles import DIRECT, GUEST, UNPAGED


class Remap(Faults):
    """`xi_invld_mfn`: the fourth use of backlinks.

    A frame that was taken away is no hole. What met it is answered with AWAY, and met it is only by the fault path: no
    SPTE maps a frame that is away, no SPT stands for one. A guest table's shadows are torn down when its frame goes, so
    that whoever needs the table next finds it missing and faults. The one table that cannot go is the root in use,
    which has no SPTE above it to fault on, and whose PDPTEs a CR4 write may load again; and a root that is loaded must
    be there (`needs`).
    """

    def needs(self, state: ControlState) -> int:
        """See `harness.engine.ShadowEngine.needs`."""
        gfn = state.root_gpa >> 12
        return gfn if state.mode.levels and gfn in self.p2m.away else -1

    def xi_invld_mfn(self, gfn: int, mfn: int) -> None:
        """From now on `gfn` is machine frame `mfn` (-1: none). The caller has moved the contents, and flushes the TLB.

        Every SPTE that maps the frame, or a large page around it, is invalidated through its backlink; under eager fill
        they are then made anew. Raises ValueError when `mfn` cannot be given to the guest (see `P2m.check`), and for
        taking away the root in use.
        """
        self.p2m.check(gfn, mfn)
        root = self.root_spti
        if mfn < 0 and root is not None and root.gfn == gfn and root.kind is not UNPAGED:
            raise ValueError(f"gfn {gfn:#x} is the root table in use: it can move, but not go")
        # Where the large page is one piece now it may be in pieces after this, and the reverse.
        dropped = [word for word, _ in self.links.mapping(gfn)]
        old = self.p2m.to_mfn[gfn]
        was_table = gfn in self.gpts
        if was_table:
            self.table_written(gfn)  # its SPTIs go out of sync; the frame is read afresh when next synchronised
        for word in dropped:
            self.drop(self.pool_memory.owner(word), word)
        self.p2m.assign(gfn, mfn)
        self.known_paths.clear()
        self.counters.remapped += 1
        if was_table and (old < 0) != (mfn < 0):
            for index in list(self.gpts[gfn]):
                self._rebind(self.sptis[index])
        self._refill(dropped)
        if self.eager and old < 0 <= mfn:
            self._gain_frame(gfn)

    def _gain_frame(self, gfn: int) -> None:
        """A frame that no SPTE could map so far: what leads to it has no backlinks, and is searched for."""
        for index in list(self.pool_memory.lru):
            spti = self.sptis[index]
            if spti.role is None:  # recycled for one of the others
                continue
            with self.pinned(spti):
                self._gain_frame_in(spti, gfn)

    def _gain_frame_in(self, spti: Spti, gfn: int) -> None:
        if spti.kind is not GUEST:
            at = (gfn - spti.gfn) >> 9 * (spti.level - 1)
            if spti.kind is DIRECT and 0 <= at < 512:
                self.fill_direct_entry(spti, at, False)
            return
        rules = spti.rules
        assert rules is not None
        wanted = gfn << 12 | PTE_P
        entries = self.snapshots.entries_of(spti).astype(np.uint64)
        self.counters.entries_compared += len(entries)
        for number in np.flatnonzero(entries & np.uint64(rules.frame_mask | PTE_P) == wanted).tolist():
            for at in (number * 2, number * 2 + 1) if rules.doubled else (number,):
                self.resync_spte(spti, at, int(entries[number]), True)
                if spti.snapshot_entry(at) != entries[number]:  # a table below was recycled, and this entry marked
                    spti.set_snapshot_entry(at, int(entries[number]))

    def _rebind(self, spti: Spti) -> None:
        # A table that gained or lost its frame: guarded or not is decided when an SPTI is bound.
        if self.root_spti is not spti:
            self.destroy(spti)
        else:
            assert spti.rules is not None
            spti.guards = not spti.rules.latched and self.p2m.backed(spti.gfn)

    def _refill(self, words: list[int]) -> None:
        if not self.eager:
            return
        for word in words:
            spti = self.pool_memory.owner(word)
            if spti.role is None or self.q[word]:
                continue
            with self.pinned(spti):
                if spti.kind is GUEST:
                    entry = spti.snapshot_entry(word & 511)
                    self.resync_spte(spti, word & 511, entry, True)
                else:
                    self.fill_direct_entry(spti, word & 511, False)
