"""`dirty`: rounds of dirty logging, as migration makes them, while processes store here and there."""

from __future__ import annotations

from harness.workload.program import USER_STORE, Program
from harness.workload.workload import WorkloadError
from harness.x86.bits import PAGE_SHIFT


class Dirty(Program):
    """A round: `writes` stores, each to the page behind the last with probability `locality`, else to any page of any
    process; then the log is read, which begins the next round.

    Raises WorkloadError when a page that was stored to is not in the log.
    """

    def work(self) -> None:
        guest, random, knobs = self.guest, self.random, self.knobs
        engine = guest.engine
        engine.dirty_log_start()
        guest.exit_done()
        slots = len(self.table_addresses) * knobs.fill
        slot = 0
        for _ in range(knobs.rounds):
            stored = set()
            for _ in range(knobs.writes):
                slot = (slot + 1) % slots
                if random.random() >= knobs.locality:
                    slot = random.randrange(slots)
                    guest.switch(random.choice(self.spaces))
                va = self.table_addresses[slot // knobs.fill] + (slot % knobs.fill << PAGE_SHIFT)
                guest.touch(va, USER_STORE)
                stored.add(guest.leaf(guest.current, va) >> PAGE_SHIFT & guest.frames_mask)
            log = engine.dirty_log_read()
            guest.exit_done()
            lost = [gfn for gfn in stored if not log[gfn]]
            if lost:
                raise WorkloadError(f"{engine.name}: {len(lost)} pages were stored to and are not in the dirty log")
        engine.dirty_log_stop()
        guest.exit_done()
