"""`faults`, the headline: what a Linux of 2006 does to its page tables while it compiles a kernel.

The guest has run for a while. It has residents (daemons, an editor, page cache users: `spaces` processes of `tables` x
`fill` pages, all touched), and they make it large; and `make -j4`, four jobs at a time, each of which is born with an
empty address space, brings in its pages one demand fault after the other, and dies. A shell, a compiler driver, an
assembler lives for some hundred faults, a compiler for some thousand; a life here has 600 pages in 6 L1 tables.

The mix, for each 1000 demand faults (counted in a run in long4; a test holds the guest to it):

- 400 pages of files, which are there already and are mapped read-only by all who run the program; one in eight of them
  is private data and is stored to at once, and copied: 50 faults of that kind besides, with one INVLPG each;
- 600 anonymous pages, which a store brings in: cleared through the kernel map, then mapped;
- 16 new page tables, frames that were data before: 13 for each new process, 6 of them L1;
- 1.3 processes that exit: each of their pages is unmapped by a store to its table, then the tables go;
- 15 bursts in which a process gives `writes` anonymous pages back (free(), munmap()), with one flush by CR3, and
  touches them again: 240 of the faults are of this kind;
- 48 switches of processes, one in eight to a resident, which touches 16 pages and has one of them come back;
- 4 accesses to pages of the working set between two faults.

The proportions are chosen, not measured: half of a program's pages are of files; of every hundred faults two make a
page table, as with some hundred pages to a process and at most 512 to a table they must; and the processes of a compile
talk through pipes, so that they switch often.

The table of the page is written through the kernel map between the fault that the guest gets and the one that fills the
shadow, and nothing is flushed there, since nothing was mapped (x86: no `flush_tlb` in `handle_mm_fault`).
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Final

from harness.workload.guest import Space
from harness.workload.knobs import Knobs
from harness.workload.layout import READ_ONLY, WRITABLE, user_tables
from harness.workload.program import UPPER_TABLES, USER_LOAD, USER_STORE, Program
from harness.x86.access import Access
from harness.x86.bits import PAGE_SHIFT, PF_P

JOBS: Final = 4
JOB_TABLES: Final = 6
JOB_FILL: Final = 100
LIFE: Final = JOB_TABLES * JOB_FILL

SLICE: Final = 24  # faults of a job before another runs
BURST_EVERY: Final = 64  # faults of a job between two bursts of unmapping
TOUCHES: Final = 4  # of the working set between two faults
RESIDENT_OF: Final = 8  # switches, one of which is to a resident
RESIDENT_TOUCHES: Final = 16
PRIVATE_OF: Final = 8  # pages of files, one of which is private data
WORKING_SET: Final = 64  # pages that were faulted in last

# What the six tables of a job hold: its text, data and heap, libraries, the stack.
_OF_FILES: Final = (True, False, False, True, True, False)

USER_FETCH: Final = int(Access.USER_FETCH)


class Job:
    """A process from exec to exit. order: what it will touch, last first: (address, number of the page in the file, or
    -1 for an anonymous one). mapped: addresses in the order in which they came. faults: that it has had."""

    def __init__(self, space: Space, order: list[tuple[int, int]]) -> None:
        self.space = space
        self.order = order
        self.mapped: list[int] = []
        self.anonymous: list[tuple[int, int]] = []
        self.faults = 0


class Compile(Program):
    """See above. counts: of what happened in the measured part, by name."""

    def __init__(self, knobs: Knobs) -> None:
        self.counts: Counter[str] = Counter()
        super().__init__(knobs)
        self.job_tables = user_tables(self.guest.mode, JOB_TABLES)
        self.files = self.guest.take_many(LIFE).tolist()  # page cache: frames stay when nobody maps them
        self.jobs: list[Job] = []
        self.running = 0

    def tables(self) -> int:
        return super().tables() + (JOBS + 1) * (JOB_TABLES + UPPER_TABLES)

    def frames(self) -> int:
        return super().frames() + (JOBS + 2) * LIFE

    def facts(self) -> dict[str, int]:
        facts = super().facts()
        jobs = [job.space for job in self.jobs]
        facts["pages"] += sum(len(job.mapped) for job in self.jobs)
        facts["tables"] += sum(space.tables for space in jobs)
        facts["spaces"] += len(jobs)
        return facts

    # Jobs.

    def new_job(self) -> Job:
        self.counts["processes"] += 1
        job = Job(self.guest.new_space(), self._order(self.random))
        self.counts["tables"] += job.space.tables
        return job

    def _order(self, random: Random) -> list[tuple[int, int]]:
        """The pages of a life: runs of neighbours, now in this table, now in that."""
        left = [list(range(JOB_FILL - 1, -1, -1)) for _ in self.job_tables]
        order = []
        number = 0
        while any(left):
            if not left[number] or random.random() > self.knobs.locality:
                number = random.choice([each for each, slots in enumerate(left) if slots])
            slot = left[number].pop()
            in_file = number * JOB_FILL + slot if _OF_FILES[number] else -1
            order.append((self.job_tables[number] + (slot << PAGE_SHIFT), in_file))
        order.reverse()
        return order

    def demand(self, job: Job) -> None:
        """One demand fault of the job that is loaded, and what comes with it."""
        guest, counts = self.guest, self.counts
        va, in_file = job.order.pop()
        access = USER_STORE if in_file < 0 else USER_LOAD if in_file % 2 else USER_FETCH
        code = guest.touch(va, access)
        assert code and not code & PF_P, "a page that was never mapped faults"
        counts["faults"] += 1
        tables = job.space.tables
        if in_file < 0:
            self.new_page(job.space, va)
            job.anonymous.append((va, in_file))
        else:
            guest.references[self.files[in_file]] += 1
            guest.map(job.space, va, self.files[in_file], READ_ONLY)
            counts["files"] += 1
        counts["tables"] += job.space.tables - tables
        guest.touch(va, access)
        if in_file >= 0 and in_file % PRIVATE_OF == 0:
            self.copy_on_write(job.space, va)
        job.mapped.append(va)
        job.faults += 1
        for _ in range(TOUCHES):
            guest.touch(self.random.choice(job.mapped[-WORKING_SET:]), USER_LOAD)

    def copy_on_write(self, space: Space, va: int) -> None:
        """A store to a page that is mapped read-only: it gets a frame of its own."""
        guest = self.guest
        code = guest.touch(va, USER_STORE)
        assert code & PF_P, "a page that is read-only faults"
        old = guest.leaf(space, va) >> PAGE_SHIFT & guest.frames_mask
        gfn = guest.take()
        guest.read(old)
        guest.clear(gfn)
        guest.map(space, va, gfn, WRITABLE)
        guest.invlpg(va)
        guest.drop(old)
        guest.touch(va, USER_STORE)
        self.counts["copies"] += 1

    def give_back(self, job: Job) -> None:
        """The job unmaps a burst of the pages that came last, and will touch them again."""
        burst, job.anonymous = job.anonymous[-self.knobs.writes :], job.anonymous[: -self.knobs.writes]
        for va, _ in burst:
            self.guest.unmap(job.space, va)
            job.mapped.remove(va)
        self.guest.flush()
        job.order += burst
        self.counts["bursts"] += 1

    def exit(self, number: int) -> None:
        """A job ends, and another takes its place. One of the others is loaded by then."""
        self.switch(self.jobs[number - 1].space)
        self.guest.end_space(self.jobs[number].space)
        self.jobs[number] = self.new_job()

    def switch(self, space: Space) -> None:
        self.counts["switches"] += 1
        self.guest.switch(space)

    # The guest.

    def warm_up(self) -> None:
        """The residents have touched all their pages, and the jobs stand at different ages."""
        super().warm_up()
        for number in range(JOBS):
            job = self.new_job()
            self.jobs.append(job)
            self.guest.switch(job.space)
            for _ in range(LIFE * (2 * number + 1) // (2 * JOBS)):
                self.demand(job)
        self.counts.clear()

    def work(self) -> None:
        while self.counts["faults"] < self.knobs.rounds:
            self.slice()

    def slice(self) -> None:
        """What runs from one switch of processes to the next."""
        if self.random.randrange(RESIDENT_OF) == 0:
            self.resident(self.random.choice(self.spaces))
            return
        self.running = (self.running + self.random.randrange(1, JOBS)) % JOBS
        job = self.jobs[self.running]
        self.switch(job.space)
        for _ in range(SLICE):
            self.demand(job)
            if job.faults % BURST_EVERY == 0:
                self.give_back(job)
            if not job.order:
                self.exit(self.running)
                return

    def resident(self, space: Space) -> None:
        guest = self.guest
        self.switch(space)
        vas = [self.any_page() for _ in range(RESIDENT_TOUCHES)]
        self.touch_all(space, vas)
        guest.unmap(space, vas[0])
        guest.invlpg(vas[0])
        guest.touch(vas[0], USER_STORE)
        self.new_page(space, vas[0])
        guest.touch(vas[0], USER_STORE)
        self.counts["faults"] += 1

    def check(self) -> None:
        self.spaces = self.spaces + [job.space for job in self.jobs]
        super().check()
