"""`promote`: a data frame becomes a page table, while there are so many L1 shadows.

Nothing may write the frame unseen from then on: the engine must find every SPTE through which the guest could, and that
is where reverse maps and searches part. The kernel has just cleared the frame through its map. With mappings=1 that is
all, as when a free frame is taken that nobody has mapped for long. With more, processes can write it as well: Linux
never does so on purpose, but the shadow does not know when a process is dead, and the frames that its tables led to
are taken for the tables of the next.

The kernel map is of 4 KiB pages unless told otherwise: large ones would have to be divided too, which is another cost
(see `large`).
"""

from __future__ import annotations

from harness.workload.guest import Space
from harness.workload.knobs import Knobs
from harness.workload.layout import WRITABLE, user_tables
from harness.workload.program import USER_STORE, Program
from harness.x86.bits import PAGE_SHIFT


class Promote(Program):
    """See above. Each round takes another frame, so that none has been a table before.

    candidates: those frames. free: an address at which no process has a table.
    """

    def __init__(self, knobs: Knobs) -> None:
        self.candidates: list[int] = []
        super().__init__(knobs)
        *self.table_addresses, self.free = user_tables(self.guest.mode, knobs.tables + 1)

    def tables(self) -> int:
        return super().tables() + self.knobs.rounds

    def frames(self) -> int:
        return super().frames() + 2 * self.knobs.rounds

    def build(self) -> None:
        """Each frame takes the place of other pages, in `mappings` - 1 tables."""
        self.table_addresses = user_tables(self.guest.mode, self.knobs.tables + 1)[:-1]
        super().build()
        guest = self.guest
        places = [(space, va) for space in self.spaces for va in self.table_addresses]
        self.random.shuffle(places)
        slots = dict.fromkeys(range(len(places)), 0)
        for number in range(self.knobs.rounds):
            gfn = guest.take()
            self.candidates.append(gfn)
            for alias in range(self.knobs.mappings - 1):
                at = (number * (self.knobs.mappings - 1) + alias) % len(places)
                self.lend(*places[at], slots[at], gfn)
                slots[at] = (slots[at] + 1) % self.knobs.fill

    def lend(self, space: Space, va: int, slot: int, gfn: int) -> None:
        """The page `slot` of the table of `va` becomes `gfn`."""
        va += slot << PAGE_SHIFT
        self.guest.unmap(space, va)
        self.guest.map(space, va, gfn, WRITABLE)
        self.guest.references[gfn] += 1

    def warm_up(self) -> None:
        """The kernel has written the frames before, as data; and each process has had a table there."""
        super().warm_up()
        for gfn in self.candidates:
            self.guest.clear(gfn)
        for space in self.spaces:
            self.guest.switch(space)
            gfn = self.guest.take()
            self.make_table(space, gfn)
            self.guest.drop(gfn)

    def work(self) -> None:
        guest, random, knobs = self.guest, self.random, self.knobs
        for gfn in self.candidates:
            if random.random() >= knobs.locality:
                guest.switch(random.choice(self.spaces))
            self.make_table(guest.current, gfn)

    def make_table(self, space: Space, gfn: int) -> None:
        """`gfn` is cleared and linked, a page is mapped by it and touched; then it is data again."""
        guest = self.guest
        guest.clear_table(gfn)
        guest.link_table(space, self.free, gfn)
        self.new_page(space, self.free)
        guest.touch(self.free, USER_STORE)
        guest.unmap(space, self.free)
        guest.unlink_table(space, self.free)
        guest.flush()
