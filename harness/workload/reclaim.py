"""`spaces`: many address spaces whose tables change while they are not loaded, and the load that must notice."""

from __future__ import annotations

from typing import Final

from harness.workload.program import Program
from harness.x86.bits import PTE_A

TOUCHES: Final = 8  # pages that a process stores to before the next runs


class Reclaim(Program):
    """A round is what the kernel does to find pages that nobody needs, and a switch: `writes` entries, in tables of any
    process, lose their A bit (`page_referenced`), with no flush; then another process is loaded, whose tables must be
    in sync from there on, and stores to a few of its pages. With probability `locality` the next entry is the neighbour
    of the last. The tables of the other spaces stay as they are until those are loaded in their turn.
    """

    def work(self) -> None:
        guest, random, knobs = self.guest, self.random, self.knobs
        for _ in range(knobs.rounds):
            table, index = self.any_entry()
            for _ in range(knobs.writes):
                guest.write(table, index, guest.entry(table, index) & ~PTE_A)
                index = (index + 1) % knobs.fill
                if random.random() >= knobs.locality:
                    table, index = self.any_entry()
            space = random.choice(self.spaces)
            guest.switch(space)
            self.touch_all(space, [self.any_page() for _ in range(TOUCHES)])

    def any_entry(self) -> tuple[int, int]:
        """Some table of some process, and the number of an entry of a page."""
        space = self.random.choice(self.spaces)
        table = space.leaves[self.random.choice(self.table_addresses) >> self.guest.span_shift]
        return table, self.random.randrange(self.knobs.fill)
