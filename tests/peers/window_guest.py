"""A guest that behaves, at random: it keeps all its tables mapped in a window and writes them there, changes what they
map, shares and swaps them, and flushes when it must. After a flush, of all or of one address, nothing may be stale.

Where `tests.xi.storm` throws everything at an engine, this one exercises what engines do all day: tables that are let
go by the fault of a store, and brought back.
"""

from __future__ import annotations

from random import Random
from typing import Final

from harness.peers.engine import PeerEngine
from harness.x86.access import ALL_ACCESSES, Access
from tests.peers.domain import PeerDomain
from tests.xi.domain import RW, US, USED, A, D, P

BLOCKS: Final = (0x40000000, 0x40800000, 0x80000000)  # each has a table of level 1 to begin with
WINDOW: Final = 0x40C00000
WINDOW_PAGES: Final = 60
PAGES: Final = (0, 1, 7, 300)  # of a block; a table of any mode has 512 entries or more
FRAMES: Final = range(600, 608)


class WindowGuest:
    """One run. engine, mode: as of `PeerDomain`; a run is decided by its seed."""

    def __init__(self, engine: type[PeerEngine], mode: str, seed: int, sptis: int = 64) -> None:
        self.random = Random(seed)
        self.domain = PeerDomain(engine, mode, sptis=sptis)
        self.roots = [self.domain.root, self.domain.new_root()]
        self.addresses = [block + page * 4096 for block in BLOCKS for page in PAGES]
        for root in self.roots:
            for number, va in enumerate(self.addresses):
                self.domain.map(va, FRAMES[number % len(FRAMES)], root=root)
        # Each table is mapped twice there, once for looking.
        self.views = [WINDOW + number * 4096 for number in range(WINDOW_PAGES, 2 * WINDOW_PAGES)]
        for number in range(2 * WINDOW_PAGES):
            for root in self.roots:
                self.domain.map(WINDOW + number * 4096, number % WINDOW_PAGES, root=root)
        self.domain.start()

    def rage(self, steps: int = 150) -> None:
        """The whole run, audited after each step."""
        kinds = (*("entry",) * 5, *("access",) * 6, "table", "invlpg", "flush")
        for _ in range(steps):
            getattr(self, f"do_{self.random.choice(kinds)}")()
            self.domain.audit()
        self.do_flush()

    def store(self, address: int, value: int) -> None:
        """Stores an entry through the window, as the guest does: what is write-protected faults first."""
        gfn = address >> 12
        assert gfn < WINDOW_PAGES, "the window is too small"
        assert self.domain.run(WINDOW + gfn * 4096, Access.STORE).frame == gfn
        assert not self.domain.engine.guest_tables().get(gfn), "a store that nobody would see"
        self.domain.poke(address, value)

    def do_entry(self) -> None:
        """One page is mapped otherwise, or some of its bits are cleared."""
        r = self.random
        address = self.domain.entry_at(r.choice(self.addresses), root=r.choice(self.roots))
        if r.random() < 0.5:
            entry = self.domain.read_guest(address, self.domain.mode.entry_bytes) & ~r.choice((A, D, A | D, P, RW))
        else:
            entry = r.choice(FRAMES) << 12 | P | r.choice((RW, 0)) | r.choice((US, 0)) | r.choice((0, A, A | D))
        self.store(address, entry)

    def do_table(self) -> None:
        """A block gets the table of another."""
        r, level = self.random, self.domain.mode.levels[-2].number
        root = r.choice(self.roots)
        source = self.domain.entry_at(r.choice(BLOCKS), level, r.choice(self.roots))
        entry = self.domain.read_guest(source, self.domain.mode.entry_bytes)
        self.store(self.domain.entry_at(r.choice(BLOCKS), level, root), entry & ~r.choice((0, 0, A)) | USED & ~(A | D))

    def do_access(self) -> None:
        """Possibly stale, as in a TLB: it must end."""
        where = self.addresses if self.random.random() < 0.6 else self.views
        self.domain.run(self.random.choice(where), self.random.choice(ALL_ACCESSES))

    def do_invlpg(self) -> None:
        va = self.random.choice(self.addresses)
        self.domain.engine.invlpg(va)
        self.check(va)

    def do_flush(self) -> None:
        self.domain.switch(self.random.choice(self.roots))
        for va in self.random.sample(self.addresses, 5):
            self.check(va)

    def check(self, va: int) -> None:
        """Every access at `va` gets what the tables say, and leaves A and D behind."""
        for access in ALL_ACCESSES:
            answer = self.domain.check(va, access)
            if answer.frame is not None:
                wanted = A | D if access.is_store else A
                entry = self.domain.read_guest(self.domain.entry_at(va), self.domain.mode.entry_bytes)
                assert entry & wanted == wanted, f"{va:#x} {access.text}: {entry:#x}"
