"""A guest kernel that does with its page tables what a kernel of 2006 does: the part that a shadow engine sees.

All memory is mapped in the kernel map; tables are written through it, a store for an entry; a frame that becomes a
table was data before, and is data again when the table is freed. Translations that may be cached are flushed as Linux
2.6 flushes them: INVLPG for one page, a CR3 load for more.
"""

from __future__ import annotations

from random import Random
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.engine import EngineConfig, PlainMemory, ShadowEngine
from harness.workload.layout import (
    KERNEL_PAGE,
    LOWMEM_FRAMES,
    control_state,
    direct_base,
    table_flags,
    table_span,
)
from harness.workload.model_mmu import ModelMmu
from harness.workload.workload import MakeEngine, WorkloadError, pool_frames
from harness.x86.access import Access
from harness.x86.bits import PAGE_SHIFT, PAGE_SIZE, PF_P, PTE_P, PTE_PS, PTE_RW, error_code_text
from harness.x86.control import ControlState
from harness.x86.modes import MODES

Gfns = npt.NDArray[np.int64]

LARGE_FRAMES: Final = 1024  # frames are counted in whole large pages of any mode
FIRST_FRAME: Final = 16  # below are what a PC has there; nothing of the guest's
_STORE: Final = int(Access.STORE)
_LOAD: Final = int(Access.LOAD)


class Space:
    """The address space of a process. root: gfn of its root table; below: for each level but the root's, from the
    highest down, the tables by the part of the address that leads to them; leaves: the last of them, L1 tables."""

    __slots__ = ("below", "leaves", "root")

    def __init__(self, root: int, levels: int) -> None:
        self.root = root
        self.below: list[dict[int, int]] = [{} for _ in range(levels - 1)]
        self.leaves = self.below[-1]

    @property
    def tables(self) -> int:
        return 1 + sum(map(len, self.below))


class Guest:
    """A guest of `frames` frames (rounded up), with `spare` machine frames beside its own.

    Until `boot` it has no engine: what is done then costs nothing, and is there when it starts. It is decided by
    `seed` which frame is used for what: free frames are handed out in an order that mixes tables with data, as those of
    a kernel that has run for a while are. p2m: mfn of each gfn. references: entries that lead to each frame, 0 when it
    is free. current: the space that is loaded; kernel: the one without a process.

    Raises ValueError where the mode has no room for the kernel map.
    """

    def __init__(self, mode: str, frames: int, direct: str, seed: int, spare: int = 0) -> None:
        self.mode = MODES[mode]
        self.frames = -(-frames // LARGE_FRAMES) * LARGE_FRAMES
        if not self.mode.canonical and self.frames > LOWMEM_FRAMES:
            raise ValueError(f"{self.frames} frames do not fit into the kernel map of a guest in {mode}")
        self.random = Random(seed)
        self.memory = PlainMemory(np.zeros((self.frames + spare) * PAGE_SIZE, np.uint8))
        self._words = self.memory.bytes.view(np.uint64 if self.mode.entry_bytes == 8 else np.uint32)
        self._entries = self._words.data
        self.per_page = PAGE_SIZE // self.mode.entry_bytes
        self._shift = 3 if self.mode.entry_bytes == 8 else 2
        self.frames_mask = self.mode.address_mask >> PAGE_SHIFT
        self.p2m = list(range(self.frames))
        self.references = [0] * self.frames
        self.direct = direct_base(self.mode)
        self.span_shift = self.mode.level(2).shift
        self._upper = self.mode.levels[:-1]
        self._user = self.direct >> self._upper[0].shift & (self._upper[0].entries - 1)  # root entries of processes
        self.mmu: ModelMmu | None = None
        self.engine: ShadowEngine
        self.state = ControlState()
        self._free = list(range(self.frames - 1, FIRST_FRAME - 1, -1))
        self.kernel = Space(self.take(), len(self.mode.levels))
        self._map_all(direct == "large")
        self.random.shuffle(self._free)  # what the kernel takes when it boots lies together, all else does not
        self.kernel_entries = [
            (index, entry) for index in range(self._upper[0].entries) if (entry := self.entry(self.kernel.root, index))
        ]
        self.current = self.kernel

    def _map_all(self, large: bool) -> None:
        """The kernel map, in the kernel's own space."""
        span = table_span(self.mode)
        for at in range(0, self.frames * PAGE_SIZE, span):
            if large:
                table = self._table_of(self.kernel, self.direct + at, 2)
                self.write(table, self._index(self.direct + at, 2), at | KERNEL_PAGE | PTE_PS)
            else:
                first = at >> PAGE_SHIFT
                self.write_many(
                    self.table_of(self.kernel, self.direct + at),
                    0,
                    np.arange(first, first + (span >> PAGE_SHIFT), dtype=np.int64),
                    KERNEL_PAGE,
                )

    # Frames.

    def take(self) -> int:
        """A free frame, the one that was freed last. Raises ValueError when there is none."""
        if not self._free:
            raise ValueError(f"the guest has no frame left of {self.frames}")
        gfn = self._free.pop()
        self.references[gfn] = 1
        return gfn

    def take_many(self, count: int) -> Gfns:
        return np.array([self.take() for _ in range(count)], np.int64)

    def take_block(self, frames: int) -> int:
        """The first of `frames` free frames that follow each other, aligned to as many; before `boot`.

        Raises ValueError when there are none.
        """
        free = set(self._free)
        for first in range(0, self.frames, frames):
            block = range(first, first + frames)
            if free.issuperset(block):
                free.difference_update(block)
                self._free = [gfn for gfn in self._free if gfn in free]
                for gfn in block:
                    self.references[gfn] = 1
                return first
        raise ValueError(f"no {frames} frames in a row are free")

    def drop(self, gfn: int) -> None:
        """One entry less leads to `gfn`; with the last it is free."""
        left = self.references[gfn] - 1
        self.references[gfn] = left
        if not left:
            self._free.append(gfn)

    # Tables.

    def _index(self, va: int, level: int) -> int:
        return self.mode.level(level).index(va)

    def entry(self, table: int, index: int) -> int:
        """Entry `index` of the table `table`, as it is now."""
        value: int = self._entries[self.p2m[table] * self.per_page + index]
        return value

    def write(self, table: int, index: int, entry: int) -> None:
        """Stores an entry through the kernel map."""
        if self.mmu is not None:
            self._reach(self.mmu, table, index << self._shift, _STORE)
        self._entries[self.p2m[table] * self.per_page + index] = entry

    def write_many(self, table: int, first: int, gfns: Gfns, flags: int) -> None:
        """Entries from `first` on for 4 KiB pages `gfns`, all at once; before `boot`."""
        assert self.mmu is None, "a guest that runs stores entry by entry"
        start = self.p2m[table] * self.per_page + first
        self._words[start : start + len(gfns)] = gfns << PAGE_SHIFT | flags

    def _reach(self, mmu: ModelMmu, gfn: int, offset: int, access: int) -> None:
        """An access of the kernel to `gfn`."""
        va = self.direct + (gfn << PAGE_SHIFT) + offset
        mfn = mmu.access(va, access)
        if mfn != self.p2m[gfn]:
            raise WorkloadError(_wrong(va, access, mfn, f"the kernel map leads to machine frame {self.p2m[gfn]:#x}"))

    def clear(self, gfn: int) -> None:
        """Writes a whole frame through the kernel map: a page for a process, or one that becomes a table."""
        if self.mmu is not None:
            self._reach(self.mmu, gfn, 0, _STORE)

    def read(self, gfn: int) -> None:
        """Reads a whole frame through the kernel map."""
        if self.mmu is not None:
            self._reach(self.mmu, gfn, 0, _LOAD)

    def new_table(self) -> int:
        """A frame that was data, all zero."""
        gfn = self.take()
        self.clear_table(gfn)
        return gfn

    def clear_table(self, gfn: int) -> None:
        self.clear(gfn)
        start = self.p2m[gfn] * self.per_page
        self._words[start : start + self.per_page] = 0

    def table_of(self, space: Space, va: int) -> int:
        """The L1 table of `va`; what is missing on the way is made."""
        table = space.leaves.get(va >> self.span_shift)
        return self._table_of(space, va, 1) if table is None else table

    def _table_of(self, space: Space, va: int, level: int) -> int:
        table = space.root
        for row, known in zip(self._upper, space.below, strict=True):
            if row.number == level:
                break
            key = va >> row.shift
            child = known.get(key)
            if child is None:
                child = known[key] = self.new_table()
                self.write(table, row.index(va), child << PAGE_SHIFT | table_flags(self.mode, row.number))
            table = child
        return table

    def link_table(self, space: Space, va: int, table: int) -> None:
        """`table` becomes the L1 table of `va`, where there is none."""
        above = self._table_of(space, va, 2)
        space.leaves[va >> self.span_shift] = table
        self.write(above, self._index(va, 2), table << PAGE_SHIFT | table_flags(self.mode, 2))

    def unlink_table(self, space: Space, va: int) -> None:
        """Takes the L1 table of `va` out of `space`. The frame stays the caller's, data once a flush has followed."""
        del space.leaves[va >> self.span_shift]
        self.write(self._table_of(space, va, 2), self._index(va, 2), 0)

    # Spaces.

    def new_space(self) -> Space:
        """A space with the kernel's part in it, and in PAE with all its directories (as Linux 2.6 makes them, since a
        PDPTE counts only from a CR3 load on)."""
        space = Space(self.new_table(), len(self.mode.levels))
        for index, entry in self.kernel_entries:
            self.write(space.root, index, entry)
        if not self._upper[0].has_rights:
            for number in range(self._user):
                self._table_of(space, number << self._upper[0].shift, 2)
        return space

    def end_space(self, space: Space) -> None:
        """Unmaps and frees all of a space that is not loaded."""
        for key, table in space.leaves.items():
            for index in range(self.per_page):
                if self.entry(table, index):
                    self.unmap_at(table, index)
            self._unlink(space, key << self.span_shift, len(self._upper) - 1)
        for depth in range(len(self._upper) - 2, -1, -1):
            for key in space.below[depth]:
                self._unlink(space, key << self._upper[depth].shift, depth)
        for tables in space.below:
            for table in tables.values():
                self.drop(table)
        self.drop(space.root)

    def _unlink(self, space: Space, va: int, depth: int) -> None:
        row = self._upper[depth]
        above = space.root if not depth else space.below[depth - 1][va >> self._upper[depth - 1].shift]
        self.write(above, row.index(va), 0)

    def switch(self, space: Space) -> None:
        """MOV CR3; of the space that is loaded: a flush."""
        self.current = space
        cr3 = space.root << PAGE_SHIFT
        self.state = control_state(self.mode, space.root)
        self.engine.load_cr3(cr3)
        self.exit_done()

    def flush(self) -> None:
        self.switch(self.current)

    def invlpg(self, va: int) -> None:
        self.engine.invlpg(va)
        self.exit_done()

    # Pages.

    def map(self, space: Space, va: int, gfn: int, flags: int) -> None:
        """`va` leads to `gfn`, whose reference the caller has."""
        self.write(self.table_of(space, va), va >> PAGE_SHIFT & self.per_page - 1, gfn << PAGE_SHIFT | flags)

    def map_large(self, space: Space, va: int, entry: int) -> None:
        """The entry of the large page at `va` becomes `entry`."""
        self.write(self._table_of(space, va, 2), self._index(va, 2), entry)

    def unmap(self, space: Space, va: int) -> None:
        """`va` leads nowhere; its frame is free once nothing leads there. The caller flushes."""
        self.unmap_at(space.leaves[va >> self.span_shift], va >> PAGE_SHIFT & self.per_page - 1)

    def unmap_at(self, table: int, index: int) -> None:
        gfn = self.entry(table, index) >> PAGE_SHIFT & self.frames_mask
        self.write(table, index, 0)
        self.drop(gfn)

    def leaf(self, space: Space, va: int) -> int:
        """The L1 entry of `va`, 0 where there is no table for it."""
        table = space.leaves.get(va >> self.span_shift)
        return 0 if table is None else self.entry(table, va >> PAGE_SHIFT & self.per_page - 1)

    def touch(self, va: int, access: int) -> int:
        """A process's access in the current space, to a page of 4 KiB or to none: 0 when it is made, else the #PF error
        code.

        Raises WorkloadError when it is made elsewhere than the tables say, or faults where they allow it.
        """
        mmu = self.mmu
        assert mmu is not None
        mfn = mmu.access(va, access)
        entry = self.leaf(self.current, va)
        needed = PTE_P | PTE_RW if access & 3 == 1 else PTE_P
        if mfn >= 0:
            if entry & needed == needed and mfn == self.p2m[entry >> PAGE_SHIFT & self.frames_mask]:
                return 0
        elif entry & needed != needed and not (~mfn ^ entry) & PF_P:
            return ~mfn
        raise WorkloadError(_wrong(va, access, mfn, f"the guest's entry is {entry:#x}"))

    def use(self, va: int, access: int, gfn: int) -> None:
        """A process's access in the current space, which must come to `gfn`. Raises WorkloadError if it does not."""
        assert self.mmu is not None
        mfn = self.mmu.access(va, access)
        if mfn != self.p2m[gfn]:
            raise WorkloadError(_wrong(va, access, mfn, f"the tables lead to machine frame {self.p2m[gfn]:#x}"))

    # The machine.

    def move(self, gfn: int, mfn: int) -> int:
        """The machine frame of `gfn` becomes `mfn`, with its content. The old one."""
        old = self.p2m[gfn]
        self.memory.page(mfn)[:] = self.memory.page(old)
        self.engine.xi_invld_mfn(gfn, mfn)
        self.p2m[gfn] = mfn
        self.exit_done()
        return old

    def exit_done(self) -> None:
        """The engine was called for the guest, which goes on."""
        assert self.mmu is not None
        self.mmu.enter()

    # The engine.

    def boot(self, make: MakeEngine, tables: int) -> None:
        """Starts on an engine that `make` makes, with room for `tables` shadow tables."""
        frames = pool_frames(make, tables)
        base = self.memory.frames
        p2m = np.array(self.p2m, np.int64)
        self.engine = make(EngineConfig(self.frames, frames, base, p2m=p2m, fill="demand"), self.memory)
        self.state = control_state(self.mode, self.current.root)
        self.engine.control(self.state)
        self.mmu = ModelMmu(self.engine)
        self.mmu.enter()


def _wrong(va: int, access: int, mfn: int, truth: str) -> str:
    got = f"leads to machine frame {mfn:#x}" if mfn >= 0 else f"gets #PF {error_code_text(~mfn)}"
    return f"{Access(access).text} at {va:#x} {got}, and {truth}"
