"""The plain fill fault, and what it costs as the guest grows: in mapped pages (`mappings`), mappings of each frame
(`sharing`), or table writes between two faults (`writes`).

A round unmaps `writes` neighbouring pages of one table, flushes (INVLPG for one page, a CR3 load for more), and touches
one of them: the guest gets its #PF, its kernel maps the pages back, and the access is made again, which fills the
shadow. Nothing else happens, and the guest is at the end as large as it was: a cost that grows along the series grows
with the guest's size alone. With probability `locality` a round goes on in the table of the last one, else in any table
of any space, by a CR3 load.
"""

from __future__ import annotations

from harness.workload.program import USER_STORE, Program
from harness.x86.bits import PAGE_SHIFT


class Refill(Program):
    """See above."""

    def work(self) -> None:
        random, knobs, guest = self.random, self.knobs, self.guest
        burst = min(knobs.writes, knobs.fill)
        va = self.elsewhere()
        for _ in range(knobs.rounds):
            if random.random() >= knobs.locality:
                va = self.elsewhere()
            self.refill(guest.table_of(guest.current, va), va, random.randrange(knobs.fill - burst + 1), burst)

    def elsewhere(self) -> int:
        """Another process runs, or the same one again. The address of the table in which it does what it does."""
        self.guest.switch(self.random.choice(self.spaces))
        return self.random.choice(self.table_addresses)

    def refill(self, table: int, va: int, first: int, count: int) -> None:
        guest = self.guest
        indices = range(first, first + count)
        entries = [guest.entry(table, index) for index in indices]
        for index in indices:
            guest.write(table, index, 0)
        if count == 1:
            guest.invlpg(va + (first << PAGE_SHIFT))
        else:
            guest.flush()
        wanted = va + (self.random.choice(indices) << PAGE_SHIFT)
        code = guest.touch(wanted, USER_STORE)
        assert code, "a page that is not mapped faults"
        for index, entry in zip(indices, entries, strict=True):
            guest.write(table, index, entry)
        guest.touch(wanted, USER_STORE)
