"""`remap`: the machine frames behind the guest's change while it runs, as ballooning, migration and page sharing do."""

from __future__ import annotations

from collections import deque
from typing import ClassVar, Final

from harness.workload.knobs import Knobs
from harness.workload.program import USER_STORE, Program
from harness.x86.bits import PAGE_SHIFT

TABLE_OF: Final = 16  # moves, one of which is of a page table


class Moves(Program):
    """A round moves the frame behind a page of the process that runs, which `mappings` pages share, to another machine
    frame; now and then the frame of the page's table as well. Then the page is stored to. With probability `locality`
    the same process goes on.

    The kernel map is of 4 KiB pages unless told otherwise: a large page whose frames have moved apart can only be
    shadowed in pieces, which is another cost (see `large`).
    """

    spare: ClassVar[int] = 256

    def __init__(self, knobs: Knobs) -> None:
        super().__init__(knobs)
        guest = self.guest
        self.machine = deque(range(guest.frames, guest.frames + self.spare))

    def move(self, gfn: int) -> None:
        self.machine.append(self.guest.move(gfn, self.machine.popleft()))

    def work(self) -> None:
        guest, random, knobs = self.guest, self.random, self.knobs
        for number in range(knobs.rounds):
            if random.random() >= knobs.locality:
                guest.switch(random.choice(self.spaces))
            va = self.any_page()
            if number % TABLE_OF == 0:
                self.move(guest.table_of(guest.current, va))
            self.move(guest.leaf(guest.current, va) >> PAGE_SHIFT & guest.frames_mask)
            guest.touch(va, USER_STORE)
