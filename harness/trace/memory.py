"""The machine memory of a replay: what the trace tells of it, and which of the guest's changes are not flushed yet."""

from __future__ import annotations

from typing import Final

import numpy as np

from harness.check.memory import Ints
from harness.engine import Bytes, EngineConfig, PlainMemory, Words
from harness.trace.sparse import sparse
from harness.x86.bits import PAGE_SHIFT, PTE_A, PTE_D, PTE_P
from harness.x86.modes import PAE, PagingMode
from harness.x86.walk import Path

_PDPT_LEVEL: Final = 3


class ReplayMemory(PlainMemory):
    """`harness.engine.MachineMemory`: zeros but for what was written into it, and no more room taken than that.

    to_mfn: mfn of each gfn as of now, -1 where there is none; to_gfn: the other way round. touched: machine frames that
    the trace tells of.
    """

    def __init__(self, frames: int, config: EngineConfig) -> None:
        """`frames` of machine memory. Raises ValueError, OverflowError or OSError for a size that there cannot be."""
        super().__init__(sparse(frames << PAGE_SHIFT))
        self.q = self._q
        table = np.arange(config.frames, dtype=np.int64) if config.p2m is None else config.p2m.copy()
        self.p2m: Ints = table
        self.to_mfn = table.data.cast("B").cast("q")
        m2p = np.full(frames, -1, np.int64)
        backed = np.flatnonzero(table >= 0)
        m2p[table[backed]] = backed
        self.to_gfn = m2p.data.cast("B").cast("q")
        self.touched: set[int] = set()

    def remap(self, gfn: int, mfn: int) -> None:
        """From now on `gfn` is machine frame `mfn`; -1: none. Raises IndexError for what the machine does not have."""
        old = self.to_mfn[gfn]
        if old >= 0:
            self.to_gfn[old] = -1
        self.to_mfn[gfn] = mfn
        if mfn >= 0:
            self.to_gfn[mfn] = gfn

    def mfn(self, gfn: int) -> int:
        """The machine frame of `gfn`, -1 where there is none."""
        return self.to_mfn[gfn] if 0 <= gfn < len(self.to_mfn) else -1

    def read_guest(self, address: int, size: int) -> int | None:
        """`harness.x86.walk.Read`: guest-physical memory; None where the guest has none."""
        mfn = self.mfn(address >> PAGE_SHIFT)
        if mfn < 0:
            return None
        at = mfn << PAGE_SHIFT | address & 0xFFF
        return self._q[at >> 3] if size == 8 else self._d[at >> 2]

    def guest_bytes(self) -> Bytes:
        """A copy of the guest-physical memory, uint8: zeros where the trace tells of nothing."""
        frames = len(self.to_mfn)
        ram = sparse(frames << PAGE_SHIFT)
        pages = ram.view(np.uint64).reshape(-1, 512)
        for mfn in self.touched:
            gfn = self.to_gfn[mfn]
            if gfn >= 0:
                pages[gfn] = self._words[mfn]
        return ram


class Pending:
    """Entries that the guest has changed and not flushed since: their old translations may still be used.

    An entry that was not present before needs no flush, nor does a change of A and D. With 4-byte entries the two of a
    word count as one. present: the bits of a word of which one is set if it holds an entry that is present.
    """

    def __init__(self) -> None:
        self._words: dict[int, int] = {}  # number of the word in machine memory -> when it changed
        self._flushed: dict[int, int] = {}  # page number of an address -> when INVLPG flushed it
        self._now = 0
        self._ad = self.present = 0

    def enter(self, mode: PagingMode) -> None:
        """The guest's entries are of `mode` from now on."""
        self._ad, self.present = PTE_A | PTE_D, PTE_P
        if mode.entry_bytes == 4:
            self._ad |= self._ad << 32
            self.present |= self.present << 32

    def differs(self, old: int, new: int) -> bool:
        """Whether a word changed in more than A and D."""
        return bool((old ^ new) & ~self._ad)

    def change(self, word: int, old: int, new: int) -> None:
        """The word number `word` of machine memory was `old` and is `new`."""
        if old & self.present and (old ^ new) & ~self._ad:
            self._now += 1
            self._words[word] = self._now

    def change_page(self, mfn: int, old: Words, new: Words) -> bool:
        """The same for all words of a machine frame. Whether any differs in more than A and D."""
        changed = (old ^ new) & np.uint64(~self._ad & (1 << 64) - 1) != 0
        if not changed.any():
            return False
        self._now += 1
        first = mfn << 9
        for index in np.flatnonzero(changed & (old & np.uint64(self.present) != 0)).tolist():
            self._words[first + index] = self._now
        return True

    def flush(self) -> None:
        """Everything was flushed, and the PDPTEs of a PAE guest loaded."""
        self._words.clear()
        self._flushed.clear()

    def synchronise(self, mode: PagingMode, root: int) -> None:
        """Everything was flushed, but the PDPTEs that the guest has loaded stay as they are. root: machine address of
        the root table, -1 without one."""
        kept = {}
        if mode is PAE and root >= 0:
            kept = {word: self._words[word] for word in range(root >> 3, (root >> 3) + 4) if word in self._words}
        self.flush()
        self._words |= kept

    def invlpg(self, va: int) -> None:
        self._now += 1
        self._flushed[va >> PAGE_SHIFT] = self._now

    def covers(self, path: Path, memory: ReplayMemory, mode: PagingMode) -> bool:
        """Whether a translation of before may still be used for the address of `path`, which was walked just now."""
        if not self._words:
            return False
        flushed = self._flushed.get(path.va >> PAGE_SHIFT, 0)
        for step in path.steps:
            mfn = memory.mfn(step.table)
            if mfn < 0:
                continue
            when = self._words.get(mfn << 9 | (step.address & 0xFFF) >> 3, 0)
            if when > flushed or (when and mode is PAE and step.level == _PDPT_LEVEL):
                return True
        return False
