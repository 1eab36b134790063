"""The pool: SPTIs, the memory that they own, free lists, zeroing and the LRU order.

All shadow memory is reserved when the domain is made and belongs to it for life: an SPTI owns four consecutive
frames (SPT, snapshot, two pages of backlinks), so nothing is allocated on the path of a fault. Words of the pool are
addressed by their index in one flat array; that of SPTE i of SPTI k is ``k * 2048 + i``.

This is the policy ``pool=reserved``; `harness.xi.shared_pool` has the other.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from harness.engine import Bytes, Words
from harness.x86.bits import PTE_ADDR
from harness.xi.gpt import EntryRules
from harness.xi.roles import GUEST, ROOT_LEVEL, Role
from harness.xi.stats import Stats

FRAMES_PER_SPTI: Final = 4
SPTI_SHIFT: Final = 11
SNAPSHOT: Final = 512  # word offset of the snapshot in an SPTI's frames
BACKLINKS: Final = 1024  # word offset of the backlinks

POOL_FRACTION: Final = 0.05
ZEROING: Final = ("idle", "critical-path")

# Pages that the processor must reach at once to complete one instruction. MOVS takes 6: itself and two operands, each
# across a page boundary; INT takes 7: itself and the new stack across a boundary, an entry of the IDT, one of the GDT,
# and the TSS. More is taken only by what no system does in a full pool: gates with operands across boundaries, task
# switches.
PAGES_AT_ONCE: Final = 8
PAE_ROOT_ENTRIES: Final = 4
LOW_WATER: Final = 4  # free SPTIs below which idle moments recycle


def minimum_sptis(mode: str = "long5", pages: int = 1) -> int:
    """The fewest SPTIs with which a guest in `mode`, shadowed on demand, can have any `pages` pages mapped at once: the
    root, and for each page the rest of its path, of which nothing need be shared but the four L2 tables of PAE format.

    A path has as many tables as the shadow's format has levels: 5 for ``long5``, 4 for ``long4``, 3 for the others. A
    large page in pieces makes no path longer, since the table of its pieces stands where the guest's would. Nothing is
    needed beside the path: synchronising makes no table (a large page that cannot be divided for want of an SPTI is
    dropped instead, and comes back in pieces when it is used); a CR3 load makes its root while only the old one is
    exempt from recycling; of the quadrants of a ``nopae`` root only that of the address is made.

    With pages=1 every fault can be answered, and that is what a pool must have (any guest may turn LA57 on). A
    processor that walks the shadow asks for more: it tries an instruction again until all the pages that it touches
    are there together (`PAGES_AT_ONCE`), and with one SPTI less than they take, the last of them can recycle the first
    for ever. With enough it goes on after two faults a page at most: a fault makes its whole path the most recently
    used, and the least recently used is recycled.
    """
    levels = ROOT_LEVEL[mode]
    below_root = min(pages, PAE_ROOT_ENTRIES) + pages if levels == 3 else pages * (levels - 1)
    return 1 + below_root


MINIMUM_SPTIS: Final = minimum_sptis()


def idle_reserve(count: int, domains: int = 1) -> int:
    """Free SPTIs that idle moments keep ready in a pool of `count`, by recycling tables in use: none of those that the
    guests of its `domains` need to make progress."""
    return max(0, min(LOW_WATER, count - domains * minimum_sptis(pages=PAGES_AT_ONCE)))


def pool_frames_for(frames: int, fraction: float = POOL_FRACTION) -> int:
    """Frames to reserve for a domain of `frames` frames: a fraction of it, whole SPTIs, and at least so many that every
    guest makes progress."""
    return max(minimum_sptis(pages=PAGES_AT_ONCE), int(frames * fraction) // FRAMES_PER_SPTI) * FRAMES_PER_SPTI


class Spti:
    """The record of one SPT.

    index: its number; base: word index of its SPT in the pool; mfn: machine frame of its SPT. While in use: role
    (kind, gfn and level repeated for speed), shift (lowest bit of its index in an address), rules (GUEST only), first
    and count (guest entries covered), halved (1 if one guest entry has two SPTEs, else 0), guards (its GPT is
    write-protected while in sync). synced: in sync; fresh: never synchronised since it was bound.
    spt: the 512 SPTEs; snapshot: its own page for one, and narrow_snapshot the same as 4-byte entries. Where its
    snapshot is, the guest table's page as of the last synchronisation, is for `harness.xi.snapshots` to say: entries,
    the part of it that this SPT covers, in the guest's entry size (None when the table itself is the snapshot); for
    scalar access: snapshots, something of entries of that size, in which those begin at first_entry.
    """

    __slots__ = (
        "base",
        "count",
        "entries",
        "first",
        "first_entry",
        "fresh",
        "gfn",
        "guards",
        "halved",
        "index",
        "kind",
        "level",
        "mfn",
        "narrow_snapshot",
        "role",
        "rules",
        "shift",
        "snapshot",
        "snapshots",
        "spt",
        "synced",
    )

    def __init__(self, index: int, mfn: int, words: Words, q: memoryview) -> None:
        self.index = index
        self.base = index << SPTI_SHIFT
        self.mfn = mfn
        self.spt: Words = words[self.base : self.base + SNAPSHOT]
        self.snapshot: Words = words[self.base + SNAPSHOT : self.base + BACKLINKS]
        self.narrow_snapshot = self.snapshot.view(np.uint32)
        self.entries: Any = self.snapshot
        self.snapshots: Any = q
        self.first_entry = 0
        self.halved = 0
        self.shift = 0
        self.role: Role | None = None
        self.rules: EntryRules | None = None
        self.kind = GUEST
        self.gfn = 0
        self.level = 0
        self.first = 0
        self.count = 0
        self.guards = False
        self.synced = False
        self.fresh = True

    def guest_index(self, index: int) -> int:
        """The guest entry (its number in its page) that SPTE `index` stands for."""
        return self.first + (index >> self.halved)

    def snapshot_entry(self, index: int) -> int:
        """The guest entry behind SPTE `index`, as of the last synchronisation."""
        entry: int = self.snapshots[self.first_entry + (index >> self.halved)]
        return entry

    def set_snapshot_entry(self, index: int, entry: int) -> None:
        self.snapshots[self.first_entry + (index >> self.halved)] = entry


class PoolFrames:
    """Frames set aside for SPTIs, and which SPTIs are free.

    frames: how many, of 4 KiB, from machine frame base_mfn on. memory: theirs, uint8; words: the same as uint64, flat;
    signed: as int64; q and d: as memoryviews of 8- and 4-byte words, for scalar access. clean, unclean: numbers of the
    free SPTIs, zeroed and not. reserve: how many of them idle moments keep ready. no_victim: the last search for an
    SPTI that may be recycled found none, and nothing has changed since.
    """

    def __init__(self, frames: int, base_mfn: int, memory: Bytes | None = None) -> None:
        """memory: uint8, 4096 bytes a frame, cleared here; allocated when None.

        Raises ValueError when there is no room for a path, or `memory` has the wrong size.
        """
        count = frames // FRAMES_PER_SPTI
        if count < MINIMUM_SPTIS:
            raise ValueError(
                f"a pool of {frames} frames holds {count} SPTIs; the longest path needs {MINIMUM_SPTIS}: "
                f"reserve at least {MINIMUM_SPTIS * FRAMES_PER_SPTI} frames"
            )
        if memory is None:
            memory = np.zeros(frames * 4096, np.uint8)
        if memory.dtype != np.uint8 or memory.size != frames * 4096:
            raise ValueError(f"pool memory must be uint8 of {frames * 4096} bytes, not {memory.dtype} of {memory.size}")
        memory[:] = 0
        self.base_mfn = base_mfn
        self.frames = frames
        self.memory = memory
        self.words: Words = memory.view(np.uint64)
        self.signed = memory.view(np.int64)
        view = memory.data.cast("B")
        self.q = view.cast("Q")
        self.d = view.cast("I")
        self.clean: deque[int] = deque(range(count))
        self.unclean: deque[int] = deque()
        self.reserve = idle_reserve(count)
        self.no_victim = False


class Tenant(Protocol):
    """A domain, as those see it with whom it shares a pool."""

    counters: Stats
    pool_memory: Pool
    root_spti: Spti | None

    def pick_orphan(self) -> int | None:
        """An SPTI of its own that nothing leads to, and that may go."""

    def spares(self, index: int) -> bool:
        """Whether its SPTI `index` may not go, whoever needs one."""

    def in_use(self, index: int, memo: dict[int, bool]) -> bool:
        """Whether its SPTI `index` should not go unless an access cannot be served otherwise. `memo` spans calls."""

    def evict(self, index: int, asker: Tenant) -> None:
        """Tears down its SPT `index`, since `asker` needs an SPTI."""

    def evict_a_piece(self, index: int, asker: Tenant) -> None:
        """The same, or the next short piece of it."""


class Pool:
    """A domain's shadow memory, and its SPTIs in it: each is free, or on its `lru`.

    words, signed, q, d, clean, unclean: see `PoolFrames`. sptis: a record of each. lru: SPTI numbers in use, least
    recently used first. levels: for each SPTI the level of its SPT, 0 while the domain does not use it. order: the
    SPTIs of all domains, least recently used first, and whose each is (None: this domain's). neighbours: other domains
    that use the same frames. zeroed_words: how much of an SPTI may have been used, and is cleared for the next.
    """

    policy = "reserved"

    def __init__(self, space: PoolFrames, zeroing: str, zeroed_words: int = BACKLINKS) -> None:
        """Raises ValueError when `zeroing` is not a known policy."""
        if zeroing not in ZEROING:
            raise ValueError(f"zeroing={zeroing!r}: the policies are {', '.join(ZEROING)}")
        self.space = space
        self.base_mfn, self.frames = space.base_mfn, space.frames
        self.words, self.signed, self.q, self.d = space.words, space.signed, space.q, space.d
        self.clean, self.unclean = space.clean, space.unclean
        count = self.frames // FRAMES_PER_SPTI
        self.sptis = [Spti(k, self.base_mfn + k * FRAMES_PER_SPTI, self.words, self.q) for k in range(count)]
        self.lru: OrderedDict[int, None] = OrderedDict()
        self.order: Mapping[int, Tenant | None] = self.lru
        self.levels = bytearray(count)
        self.idle_zeroing = zeroing == "idle"
        self.zeroed_words = zeroed_words
        if not self.idle_zeroing:  # nothing counts as zero ahead of need
            self.unclean.extend(self.clean)
            self.clean.clear()

    def join(self, domain: Tenant) -> None:
        """`domain` is ready to use the pool."""

    def __len__(self) -> int:
        return len(self.sptis)

    @property
    def held(self) -> int:
        """How many SPTIs the domain has, whether it uses them or not."""
        return len(self.sptis)

    @property
    def held_peak(self) -> int:
        """The most that it ever had."""
        return len(self.sptis)

    @property
    def neighbours(self) -> Sequence[Tenant]:
        return ()

    @property
    def elsewhere(self) -> list[int]:
        """The SPTIs that other domains use."""
        return []

    @property
    def free(self) -> int:
        """How many SPTIs are free."""
        return len(self.clean) + len(self.unclean)

    def zero(self, spti: Spti) -> None:
        """Clears the SPT, and the snapshot if it may have been used; backlinks are zero already, each was unlinked."""
        self.words[spti.base : spti.base + self.zeroed_words] = 0

    def idle_zero(self, count: int) -> int:
        """Zeroes up to `count` free SPTIs, as the idle loop would. How many were; 0 under ``critical-path``."""
        done = 0
        while done < count and self.unclean and self.idle_zeroing:
            spti = self.sptis[self.unclean.popleft()]
            self.zero(spti)
            self.clean.append(spti.index)
            done += 1
        return done

    def take(self) -> tuple[Spti, bool] | None:
        """A free SPTI, zero, now the most recently used; and whether it had to be zeroed here. None if none is free."""
        if self.clean:
            spti = self.sptis[self.clean.popleft()]
            inline = False
        elif self.unclean:
            spti = self.sptis[self.unclean.popleft()]
            self.zero(spti)
            inline = True
        else:
            return None
        self.lru[spti.index] = None
        return spti, inline

    def give_back(self, spti: Spti) -> None:
        """Puts an SPTI whose SPTEs are all unlinked on the free list."""
        del self.lru[spti.index]
        self.levels[spti.index] = 0
        spti.role = None
        spti.rules = None
        spti.synced = False
        spti.guards = False
        self.unclean.append(spti.index)

    def touch(self, index: int) -> None:
        self.lru.move_to_end(index)

    def child(self, spte: int) -> Spti:
        """The SPTI whose SPT a non-leaf SPTE points to."""
        return self.sptis[(((spte & PTE_ADDR) >> 12) - self.base_mfn) >> 2]

    def owner(self, word: int) -> Spti:
        """The SPTI that holds the SPTE at pool word `word`."""
        return self.sptis[word >> SPTI_SHIFT]
