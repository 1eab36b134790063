"""`fork` and `churn`: address spaces that are made as copies of others, and torn down.

Every entry of the parent is written twice, read-only on both sides; stores then copy, page by page.
"""

from __future__ import annotations

from harness.workload.guest import Space
from harness.workload.knobs import Knobs
from harness.workload.layout import READ_ONLY, WRITABLE, user_tables
from harness.workload.program import USER_LOAD, USER_STORE, Program
from harness.x86.bits import PAGE_SHIFT, PF_P, PTE_RW


class Forking(Program):
    """A guest whose processes fork. pages: addresses of a process."""

    def __init__(self, knobs: Knobs) -> None:
        super().__init__(knobs)
        self.pages = [va + (slot << PAGE_SHIFT) for va in self.table_addresses for slot in range(knobs.fill)]

    def extra_spaces(self) -> int:
        return 2

    def fork(self, parent: Space) -> Space:
        """The child of `parent`, which is loaded (Linux 2.6: `copy_page_range`, and one flush at its end)."""
        guest = self.guest
        child = guest.new_space()
        for va in self.table_addresses:
            source, target = guest.table_of(parent, va), guest.table_of(child, va)
            for index in range(self.knobs.fill):
                entry = guest.entry(source, index) & ~PTE_RW
                guest.write(source, index, entry)
                guest.references[entry >> PAGE_SHIFT & guest.frames_mask] += 1
                guest.write(target, index, entry & ~(WRITABLE ^ READ_ONLY))
        guest.flush()
        self.spaces.append(child)
        return child

    def store(self, va: int) -> None:
        """A store of the process that is loaded; a page that is shared is copied, one that has no other owner is made
        writable (`do_wp_page`)."""
        guest = self.guest
        code = guest.touch(va, USER_STORE)
        if not code:
            return
        assert code & PF_P, "all pages of a process are mapped"
        space = guest.current
        old = guest.leaf(space, va) >> PAGE_SHIFT & guest.frames_mask
        gfn = old
        if guest.references[old] > 1:
            gfn = guest.take()
            guest.read(old)
            guest.clear(gfn)
        guest.map(space, va, gfn, WRITABLE)
        guest.invlpg(va)
        if gfn != old:
            guest.drop(old)
        guest.touch(va, USER_STORE)

    def exit(self, space: Space) -> None:
        """The end of a process that is not loaded."""
        self.guest.end_space(space)
        self.spaces.remove(space)


class Fork(Forking):
    """A round: the parent forks; the child reads a quarter of its pages, stores to `writes` of them, and exits; the
    parent stores to `writes` of its own. With more spaces than one, another process forks in every round."""

    def work(self) -> None:
        guest, random, writes = self.guest, self.random, min(self.knobs.writes, len(self.pages))
        parents = list(self.spaces)
        for number in range(self.knobs.rounds):
            parent = parents[number % len(parents)]
            guest.switch(parent)
            child = self.fork(parent)
            guest.switch(child)
            for va in self.pages[number % 4 :: 4]:
                guest.touch(va, USER_LOAD)
            for va in random.sample(self.pages, writes):
                self.store(va)
            guest.switch(parent)
            self.exit(child)
            for va in random.sample(self.pages, writes):
                self.store(va)


class Churn(Forking):
    """What the guest `churn` of the catalogue does (guest-kernels/churn.c), with sizes: the first of `tables` is text,
    the last the stack, the others heap, `fill` pages each; `rounds` generations.

    A generation forks, breaks copy-on-write in the child (`writes` stores) and the parent (half as many), maps and
    unmaps a burst of 8 x `writes` anonymous pages, reads every third page of both, and lets one of the two exit. (The
    catalogue's has 320 pages, 16 stores, bursts of 128, and 36 generations.)
    """

    def __init__(self, knobs: Knobs) -> None:
        super().__init__(knobs)
        self.stored = self.pages[knobs.fill :] or self.pages  # all but the text
        self.anonymous = user_tables(self.guest.mode, knobs.tables + 8)[-2]  # where no table is yet

    def frames(self) -> int:
        return super().frames() + 8 * self.knobs.writes

    def work(self) -> None:
        parent = self.spaces[0]
        self.guest.switch(parent)
        for number in range(self.knobs.rounds):
            parent = self.generation(parent, number)

    def generation(self, parent: Space, number: int) -> Space:
        guest, random, writes = self.guest, self.random, self.knobs.writes
        child = self.fork(parent)
        heir, other = (child, parent) if number % 3 else (parent, child)
        guest.switch(child)
        copied = random.choices(self.stored, k=writes)
        for va in copied:
            self.store(va)
        self.map_and_unmap(child)
        self.read_third(number)
        guest.switch(parent)
        # Half of the parent's stores go where the child has made its copies: the parent owns those frames alone.
        for va in (*copied[: writes // 4], *random.choices(self.stored, k=writes // 4)):
            self.store(va)
        self.read_third(number)
        guest.switch(heir)
        self.exit(other)
        self.read_third(number + 1)
        return heir

    def map_and_unmap(self, space: Space) -> None:
        guest = self.guest
        burst = [self.anonymous + (number << PAGE_SHIFT) for number in range(8 * self.knobs.writes)]
        for va in burst:
            self.new_page(space, va)
        self.touch_all(space, burst[::16])
        for va in burst:
            guest.unmap(space, va)
        guest.flush()
        for va in burst[::32]:
            code = guest.touch(va, USER_LOAD)
            assert code and not code & PF_P, "what is unmapped and flushed faults"

    def read_third(self, number: int) -> None:
        for va in self.pages[number % 3 :: 3]:
            self.guest.touch(va, USER_LOAD)
