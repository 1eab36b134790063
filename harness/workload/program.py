"""What every synthetic guest does: it has processes, which have touched all their pages before it is measured."""

from __future__ import annotations

from random import Random
from typing import ClassVar

import numpy as np

from harness.workload.guest import Gfns, Guest, Space
from harness.workload.knobs import Knobs
from harness.workload.layout import WRITABLE, user_tables
from harness.workload.verify import check_guest
from harness.workload.workload import DONE, MEASURED, WARM_UP, MakeEngine, Mark
from harness.x86.access import Access
from harness.x86.bits import PAGE_SHIFT

USER_LOAD, USER_STORE = int(Access.USER_LOAD), int(Access.USER_STORE)

SLACK = 2048  # frames that are free when the guest starts
UPPER_TABLES = 8  # tables above level 1 that a process may have, in any mode


class Program:
    """One synthetic guest. A program overrides `build` and `warm_up` as far as it differs, and `work`.

    spare: machine frames beside the guest's own, by the knobs. spaces: of the processes that live.
    """

    spare: ClassVar[int] = 0

    def __init__(self, knobs: Knobs) -> None:
        self.knobs = knobs
        self.random = Random(knobs.seed)
        self.guest = Guest(knobs.mode, self.frames(), knobs.direct, knobs.seed, self.spare)
        self.table_addresses = user_tables(self.guest.mode, knobs.tables)
        self.spaces: list[Space] = []
        self.build()

    # The size.

    def extra_spaces(self) -> int:
        """Processes of the size of the others that come and go in the measured part."""
        return 0

    def tables(self) -> int:
        """Guest tables of processes that may be there at once."""
        return (self.knobs.spaces + self.extra_spaces()) * (self.knobs.tables + UPPER_TABLES)

    def frames(self) -> int:
        """Frames that the guest needs."""
        knobs = self.knobs
        coming = self.extra_spaces() * knobs.tables * knobs.fill
        return -(-knobs.pages // knobs.mappings) + coming + self.tables() + SLACK

    def shadow_tables(self) -> int:
        """Shadow tables for which the engine gets room: so many that nothing is ever given up, unless the knob says how
        many. The kernel map has one table for each 2 MiB, the guest's own or the pieces of a large page; a table of a
        32-bit guest has two shadows, and four at the top."""
        if self.knobs.pool:
            return self.knobs.pool
        halves = 2 if self.guest.mode.entry_bytes == 4 else 1
        return 64 + 2 * halves * self.tables() + 2 * (self.guest.frames >> 9)

    # The guest.

    def build(self) -> None:
        """The guest's tables as they are when it starts: pages of the processes, each frame mapped so many times, at
        places that lie as far from each other as can be."""
        knobs, guest = self.knobs, self.guest
        distinct = -(-knobs.pages // knobs.mappings)
        frames = guest.take_many(distinct)
        uses = np.bincount(np.arange(knobs.pages) % distinct, minlength=distinct)
        for gfn, count in zip(frames.tolist(), uses.tolist(), strict=True):
            guest.references[gfn] = count
        start = 0
        for _ in range(knobs.spaces):
            space = guest.new_space()
            self.spaces.append(space)
            for va in self.table_addresses:
                self.fill(space, va, frames[np.arange(start, start + knobs.fill) % distinct])
                start += knobs.fill

    def fill(self, space: Space, va: int, gfns: Gfns) -> None:
        """Pages from `va` on lead to `gfns`, before the guest starts."""
        self.guest.write_many(self.guest.table_of(space, va), 0, gfns, WRITABLE)

    def warm_up(self) -> None:
        """Each process stores to all its pages, and the kernel looks at all their tables."""
        guest = self.guest
        for space in self.spaces:
            guest.switch(space)
            for tables in space.below:
                for table in tables.values():
                    guest.read(table)
            for va in self.table_addresses:
                for at in range(va, va + (self.knobs.fill << PAGE_SHIFT), 1 << PAGE_SHIFT):
                    guest.touch(at, USER_STORE)

    def work(self) -> None:
        """The measured part."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises WorkloadError unless the engine is right."""
        check_guest(self.guest, self.spaces, self.knobs.seed)

    def facts(self) -> dict[str, int]:
        """How large the guest is now."""
        guest = self.guest
        tables = sum(space.tables for space in self.spaces) + guest.kernel.tables
        return {"pages": self.knobs.pages, "tables": tables, "spaces": len(self.spaces), "frames": guest.frames}

    def run(self, make: MakeEngine, mark: Mark) -> None:
        self.guest.boot(make, self.shadow_tables())
        mark(WARM_UP)
        self.warm_up()
        mark(MEASURED)
        self.work()
        mark(DONE)
        self.check()

    # What programs have in common.

    def any_page(self) -> int:
        """The address of some page that every process has."""
        return self.random.choice(self.table_addresses) + (self.random.randrange(self.knobs.fill) << PAGE_SHIFT)

    def touch_all(self, space: Space, vas: list[int]) -> None:
        """Stores to pages of `space`, which is loaded."""
        assert space is self.guest.current
        for va in vas:
            self.guest.touch(va, USER_STORE)

    def new_page(self, space: Space, va: int) -> None:
        """What a kernel does about a store to a page that is not there: a cleared frame."""
        gfn = self.guest.take()
        self.guest.clear(gfn)
        self.guest.map(space, va, gfn, WRITABLE)
