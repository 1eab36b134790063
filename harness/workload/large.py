"""`large`: large pages that must be divided, because each 4 KiB of them is to be logged by itself."""

from __future__ import annotations

import numpy as np

from harness.workload.guest import Space
from harness.workload.knobs import Knobs
from harness.workload.layout import WRITABLE
from harness.workload.program import USER_LOAD, USER_STORE, Program
from harness.workload.workload import WorkloadError
from harness.x86.bits import PAGE_SHIFT, PTE_PS


class Divide(Program):
    """Processes with `tables` large pages each (`fill` does nothing). The dirty log runs; a round unmaps a large page
    and maps it again with one INVLPG, loads from it (the shadow may have it whole), and stores to it: it is divided.

    blocks: the first frame of each large page, by process.
    """

    def __init__(self, knobs: Knobs) -> None:
        self.blocks: list[list[int]] = []
        super().__init__(knobs)

    def frames(self) -> int:
        """Large pages are of 4 MiB at most, and begin behind what the kernel has."""
        return super().frames() + self.knobs.leaves * 1024 + 1024

    def build(self) -> None:
        guest, knobs = self.guest, self.knobs
        size = 1 << guest.span_shift - PAGE_SHIFT
        self.blocks = [[guest.take_block(size) for _ in range(knobs.tables)] for _ in range(knobs.spaces)]
        for blocks in self.blocks:
            space = guest.new_space()
            self.spaces.append(space)
            for va, first in zip(self.table_addresses, blocks, strict=True):
                guest.map_large(space, va, first << PAGE_SHIFT | WRITABLE | PTE_PS)

    def facts(self) -> dict[str, int]:
        pages = self.knobs.leaves << self.guest.span_shift - PAGE_SHIFT
        return super().facts() | {"pages": pages}

    def warm_up(self) -> None:
        """Each process stores to all its large pages."""
        for space, blocks in zip(self.spaces, self.blocks, strict=True):
            self.guest.switch(space)
            for va, first in zip(self.table_addresses, blocks, strict=True):
                self.guest.use(va, USER_STORE, first)

    def work(self) -> None:
        guest, random, knobs = self.guest, self.random, self.knobs
        engine = guest.engine
        engine.dirty_log_start()
        guest.exit_done()
        stored = set()
        number = 0
        guest.switch(self.spaces[number])
        for _ in range(knobs.rounds):
            if random.random() >= knobs.locality:
                number = random.randrange(knobs.spaces)
                guest.switch(self.spaces[number])
            at = random.randrange(knobs.tables)
            stored.add(self.divide(self.spaces[number], self.table_addresses[at], self.blocks[number][at]))
        log = engine.dirty_log_read()
        lost = np.count_nonzero(log[list(stored)] == 0)
        if lost:
            raise WorkloadError(f"{engine.name}: {lost} pages were stored to and are not in the dirty log")
        engine.dirty_log_stop()
        guest.exit_done()

    def divide(self, space: Space, va: int, first: int) -> int:
        """One round on the large page at `va`. The frame that was stored to."""
        guest = self.guest
        guest.map_large(space, va, 0)
        guest.invlpg(va)
        guest.map_large(space, va, first << PAGE_SHIFT | WRITABLE | PTE_PS)
        offset = self.random.randrange(1 << guest.span_shift - PAGE_SHIFT)
        guest.use(va, USER_LOAD, first)
        guest.use(va + (offset << PAGE_SHIFT), USER_STORE, first + offset)
        return first + offset
