"""The ASI: XI's state for one domain, its SPTEs and what is known of their synchronisation.

Operations are layered on this class (`life`, `large`, `protect`, `resync`, `guest_walk`, `faults`, `remap`), each one
small method, so that a variant of the engine overrides one and nothing else.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from harness.engine import EngineConfig, MachineMemory, Words
from harness.x86.bits import ENTRIES, PTE_ADDR, PTE_NX, PTE_PS
from harness.x86.control import ControlState
from harness.xi.gpt import UNBACKED_TABLE_ENTRY
from harness.xi.known_paths import KnownPath
from harness.xi.links import Ints, Links
from harness.xi.p2m import P2m
from harness.xi.policies import BACKLINKS, POOLS, SNAPSHOTS, ZEROED_WORDS, chosen
from harness.xi.pool import SPTI_SHIFT, Spti
from harness.xi.roles import Role
from harness.xi.shared_pool import SharedPool
from harness.xi.snapshots import Snapshots
from harness.xi.stats import Stats
from harness.xi.watch import Aliases

FILLS: Final = ("eager", "demand")
PAE_ROOT_LIMIT: Final = 1 << 20  # frames below 4 GiB: CR3 has 32 bits in PAE format

_UNBACKED_PAGE: Final[Words] = np.full(ENTRIES, UNBACKED_TABLE_ENTRY, np.uint64)
_UNBACKED_PAGE.flags.writeable = False


class Asi:
    """Pool, roles, backlinks, p2m, guards and statistics of one domain.

    by_role: SPTI number by role. gpts: the GUEST SPTIs of each gfn. guarded: uint16, for each gfn, how many in-sync
    SPTIs keep it write-protected; the same summed over each 2 MiB and 1 GiB. dirty: for each SPTI, whether it or
    anything below it waits for synchronisation (then so do all its parents, and `dirty_below` of each of them names
    it, with the word of an SPTE that led there). exposed: tables linked while they, or something below, waited for
    synchronisation: what is stale in them was never the translation of their new address, so whoever linked them
    synchronises them before they are used. orphans: SPTIs whose last parent has gone. pins: SPTIs on the path being
    built. overridden: words of SPTEs opened for a CR0.WP=0 store. watching: changes of aliases are followed as they
    happen, for whoever watches virtual addresses; under demand fill the hardware walks the shadow itself, nobody does,
    and aliases are worked out when they are asked for. known_paths: by address >> KNOWN_SHIFT, where faults went since
    the root, the control registers and the p2m are as they are. fault_resync_all: a fault on a missing translation
    synchronises everything reachable, not its own path only.
    """

    name = "xi"

    def __init__(self, config: EngineConfig, memory: MachineMemory, shared_pool: SharedPool | None = None) -> None:
        """shared_pool: the pool that the domain shares with others, under the policy ``pool=shared``; without it one
        that nobody else has joined. Raises ValueError when `config` cannot work; the message says what would."""
        options = chosen(config.options)
        if config.fill not in FILLS:
            raise ValueError(f"fill={config.fill!r}: one of {', '.join(FILLS)}")
        if config.frames < 1:
            raise ValueError(f"a domain of {config.frames} frames")
        if config.pool_base_mfn + config.pool_frames > PAE_ROOT_LIMIT:
            raise ValueError(
                f"the pool ends at frame {config.pool_base_mfn + config.pool_frames:#x}: a root in PAE format must lie "
                f"below 4 GiB, so pool_base_mfn may be at most {PAE_ROOT_LIMIT - config.pool_frames:#x}"
            )
        self.config = config
        self.memory = memory
        zeroed_words = ZEROED_WORDS[options["snapshots"]]
        self.pool_memory = POOLS[options["pool"]](config, shared_pool, options["zeroing"], zeroed_words)
        self.q = self.pool_memory.q
        self.sptis = self.pool_memory.sptis
        self.p2m = P2m(
            config.frames,
            config.p2m,
            memory.frames,
            range(config.pool_base_mfn, config.pool_base_mfn + config.pool_frames),
        )
        self.counters = Stats()
        self.eager = config.fill == "eager"
        self.fault_resync_all = options["fault-resync"] == "all"
        self.links: Links = BACKLINKS[options["backlinks"]](self.pool_memory, self.p2m, self.counters)
        self.snapshots: Snapshots = SNAPSHOTS[options["snapshots"]](self.pool_memory, self)
        self.watching = self.eager
        self.by_role: dict[Role, int] = {}
        self.gpts: dict[int, list[int]] = {}
        self.guarded_array = np.zeros(config.frames, np.uint16)
        self.guarded = self.guarded_array.data.cast("B").cast("H")
        self.guarded_2m = [0] * (-(-config.frames // 512))
        self.guarded_1g = [0] * (-(-config.frames // (512 * 512)))
        self.logging = False
        self.logged_array = np.zeros(config.frames, np.uint8)
        self.logged = self.logged_array.data
        self.dirty = bytearray(len(self.pool_memory))
        self.dirty_below: list[dict[int, int]] = [{} for _ in self.sptis]
        self.exposed: set[int] = set()
        self.orphans: dict[int, None] = {}
        self.pins: list[int] = []
        self.overridden: set[int] = set()
        self.known_paths: dict[int, KnownPath] = {}
        self.state = ControlState()
        self.root_spti: Spti | None = None
        self.pdptes = (0, 0, 0, 0)
        self.away_gfn = -1
        self.aliases = Aliases(self.pool_memory, self.links, self.p2m, self.guarded_array, self.counters, self.watching)

    # Guest memory.

    def guest_page(self, spti: Spti) -> Words:
        """The guest table that `spti` shadows, as the guest has it now (512 words)."""
        if not self.p2m.backed(spti.gfn):
            return _UNBACKED_PAGE
        return self.memory.page(self.p2m.to_mfn[spti.gfn])

    # SPTEs: set, linked, dropped. No other code writes a nonzero word over a zero one, or the reverse.

    def set_leaf(self, spti: Spti, word: int, gfn: int, spte: int) -> None:
        """An empty SPTE becomes a leaf for `gfn` (the page's first frame)."""
        self.q[word] = spte
        self.counters.sptes_written += 1
        self.links.link(word, gfn if spti.level == 1 else self.links.slot(spti.level, gfn))
        if self.watching:
            if spti.level == 1 and self.guarded[gfn]:
                self.aliases.mark(gfn)
            if not spte & PTE_NX:
                self.aliases.gain_leaf(spti, gfn)

    def set_child(self, spti: Spti, word: int, child: Spti, flags: int) -> None:
        """An empty SPTE becomes one that leads to `child`."""
        self.q[word] = child.mfn << 12 | flags
        self.counters.sptes_written += 1
        self.links.link(word, self.links.parents(child.index))
        self.orphans.pop(child.index, None)
        if self.watching:
            self.aliases.parents_changed(child.index)
        if self.dirty[child.index]:
            self.dirty_below[spti.index][child.index] = word
            self.mark_dirty(spti.index)
            self.exposed.add(child.index)

    def drop(self, spti: Spti, word: int) -> None:
        """Unlinks an SPTE and clears it; a table below may become an orphan."""
        spte = self.q[word]
        self.links.unlink(word)
        self.q[word] = 0
        self.counters.sptes_written += 1
        if self.overridden:
            self.overridden.discard(word)
        if spti.level > 1 and not spte & PTE_PS:
            self.parent_gone(self.pool_memory.child(spte).index)
        elif self.watching and spti.level == 1:
            gfn = self.leaf_gfn(spte)
            if self.guarded[gfn]:
                self.aliases.mark(gfn)

    def parent_gone(self, child: int) -> None:
        """An SPTE that led to SPTI `child` has gone."""
        if self.watching:
            self.aliases.parents_changed(child)
        if self.links.empty(self.links.parents(child)):
            self.orphans[child] = None

    def leaf_gfn(self, spte: int) -> int:
        """First gfn of the page that a leaf SPTE maps."""
        return self.p2m.to_gfn[(spte & PTE_ADDR) >> 12]

    def writable(self, gfn: int) -> bool:
        """Whether an SPTE may let the guest write `gfn` now: not a guarded table, and logged if that is asked."""
        return not self.guarded[gfn] and (not self.logging or bool(self.logged[gfn]))

    # Synchronisation state.

    def mark_dirty(self, index: int) -> None:
        """Notes on the way up that something at or below SPTI `index` waits for synchronisation."""
        dirty = self.dirty
        if dirty[index]:
            return
        dirty[index] = 1
        climbing = [index]
        while climbing:
            below = climbing.pop()
            for word in self.links.nodes(self.links.parents(below)):
                parent = word >> SPTI_SHIFT
                self.dirty_below[parent][below] = word
                if not dirty[parent]:
                    dirty[parent] = 1
                    climbing.append(parent)

    def set_out_of_sync(self, spti: Spti) -> None:
        """`spti` may differ from its guest table from now on, and no longer protects it."""
        if not spti.synced:
            return
        if self.snapshots.leave(spti):
            self.realign(spti)
        spti.synced = False
        self.mark_dirty(spti.index)
        if spti.guards:
            self.release_gfn(spti.gfn)

    def realign(self, spti: Spti) -> None:
        """Brings the SPTEs of `spti` in line with the snapshot that was just taken of its table, or drops them."""
        raise NotImplementedError

    def made(self, spti: Spti) -> None:
        """`spti` leads somewhere, or is the root: one that must be in sync from the start is synchronised now."""
        raise NotImplementedError

    def release_gfn(self, gfn: int) -> None:
        """One SPTI fewer protects `gfn`; after the last one its SPTEs are writable again where the guest's are."""
        self.guarded[gfn] -= 1
        self.guarded_2m[gfn >> 9] -= 1
        self.guarded_1g[gfn >> 18] -= 1
        if self.guarded[gfn]:
            return
        self.counters.released += 1
        if self.watching:
            self.aliases.mark(gfn)
        self.unprotect_gfn(gfn)

    def unprotect_gfn(self, gfn: int) -> None:
        """Gives RW back to the SPTEs of `gfn` whose D bit says that the guest's entry allows it."""
        raise NotImplementedError

    def words_of(self, spti: Spti, used: Ints) -> Ints:
        """Pool words of the SPTEs numbered `used`."""
        return used + spti.base
