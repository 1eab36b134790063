"""Where frames appear in virtual memory: aliases, climbed from the backlinks, and what changed since last asked.

Each SPT is reached at some set of *bases*: (first virtual address, may write, may execute), one for each path from a
root, the rights those of the guest along the path. The sets are kept, and brought up to date lazily and top down when
parents changed; a parent that adds no new base (another process sharing the kernel's tables) costs nothing below.

Where the hardware walks the shadow itself nobody watches addresses, and the engine reports nothing: then all is worked
out from the backlinks whenever something is asked.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from harness.engine import Words
from harness.x86.bits import PTE_ADDR, PTE_NX, PTE_PS
from harness.x86.modes import MODES
from harness.xi.gpt import SW_WRITE
from harness.xi.links import Links
from harness.xi.p2m import P2m
from harness.xi.pool import Pool, Spti
from harness.xi.roles import ROOT_LEVEL, shadow_shift
from harness.xi.stats import Stats

MAY_WRITE: Final = 1
MAY_EXECUTE: Final = 2
_RIGHTS: Final = MAY_WRITE | MAY_EXECUTE
_RIGHTS_BITS: Final = 2

# A table that maps itself through all its entries is reached at 512 bases a level down: more than this
# are not followed.
MAX_BASES: Final = 2048

_NONE: Final[frozenset[int]] = frozenset()
_ROOT_BASE: Final = frozenset({_RIGHTS})


def guest_rights(spte: int) -> int:
    """What the guest allows through one SPTE. While one is overridden under SMEP its NX is ours, and nothing can be
    executed through it until that ends."""
    return (MAY_WRITE if spte & SW_WRITE else 0) | (0 if spte & PTE_NX else MAY_EXECUTE)


class Aliases:
    """Bases of every SPT, addresses of every frame, and the frames whose addresses changed.

    A base is packed as address << 2 | rights; the address is not yet sign-extended.
    """

    def __init__(
        self,
        pool: Pool,
        links: Links,
        p2m: P2m,
        guarded: npt.NDArray[np.uint16],
        stats: Stats,
        follows: bool = True,
    ) -> None:
        """`follows`: the engine calls what stands under "Told by the engine", at every change."""
        self._follows = follows
        self._pool = pool
        self._links = links.aside()
        self._p2m = p2m
        self._guarded = guarded
        self._stats = stats
        self._bases: list[frozenset[int]] = [_NONE] * len(pool)
        self._executable = bytearray(len(pool))  # some base of the SPT may execute
        self._stale: list[set[int]] = [set() for _ in range(6)]  # by level: SPTIs whose bases must be recomputed
        self._any_stale = False
        self._changed: set[int] = set()  # guarded or watched gfns whose addresses may have changed
        self._watched: dict[int, frozenset[int]] = {}
        self._gained = np.zeros(p2m.frames, np.bool_)
        self._any_gained = False

    # Told by the engine.

    def bind(self, spti: Spti) -> None:
        """A new SPT: reached from nowhere yet, unless it is a root."""
        self.parents_changed(spti.index)

    def forget(self, index: int) -> None:
        """The SPT is gone (its leaves were reported by `note_gone`)."""
        self._bases[index] = _NONE
        self._executable[index] = 0
        for stale in self._stale:
            stale.discard(index)

    def parents_changed(self, index: int) -> None:
        self._stale[self._pool.sptis[index].level].add(index)
        self._any_stale = True

    def mark(self, gfn: int) -> None:
        """The addresses at which `gfn` must be watched may have changed."""
        self._changed.add(gfn)

    def mark_guarded(self, gfns: npt.NDArray[np.int64]) -> None:
        """`mark` for those of `gfns` (all >= 0) that are guarded."""
        hit = gfns[self._guarded[gfns] != 0]
        if len(hit):
            self._changed.update(hit.tolist())

    def note_gone(self, spti: Spti, sptes: Words) -> None:
        """The SPTEs `sptes` of an SPT are about to go, all at once."""
        if spti.level == 1:
            self.mark_guarded(self._leaf_gfns(sptes))

    def gain_leaf(self, spti: Spti, gfn: int) -> None:
        """A leaf without NX was set; one below a table that nothing executes through is reported if that changes."""
        if self._executable[spti.index]:
            self._gained[gfn : gfn + (1 << 9 * (spti.level - 1))] = True
            self._any_gained = True

    def executes(self, spti: Spti) -> bool:
        """Whether some path to the SPT allows execution."""
        return bool(self._executable[spti.index])

    def gain_many(self, spti: Spti, gfns: npt.NDArray[np.int64]) -> None:
        """`gain_leaf` for 4 KiB pages."""
        if self._executable[spti.index] and len(gfns):
            self._gained[gfns] = True
            self._any_gained = True

    def rights_changed(self, spti: Spti, gfn: int, old: int, new: int) -> None:
        """A leaf SPTE keeps its page and changes its rights from `old` to `new`."""
        if (old ^ new) & (SW_WRITE | PTE_NX):
            if spti.level == 1 and self._guarded[gfn]:
                self._changed.add(gfn)
            if old & PTE_NX and not new & PTE_NX:
                self.gain_leaf(spti, gfn)

    # Asked by the interception.

    def watch_changes(self) -> dict[int, frozenset[int]]:
        """See `harness.engine.ShadowEngine.watch_changes`."""
        self._catch_up()
        if not self._follows:
            self._changed.update(self._watched, np.flatnonzero(self._guarded).tolist())
        if not self._changed:
            return {}
        out: dict[int, frozenset[int]] = {}
        for gfn in self._changed:
            now = self._addresses(gfn, MAY_WRITE) if self._guarded[gfn] else _NONE
            if now != self._watched.get(gfn, _NONE):
                out[gfn] = now
                if now:
                    self._watched[gfn] = now
                else:
                    del self._watched[gfn]
        self._changed.clear()
        return out

    def executable_changes(self) -> npt.NDArray[np.int64]:
        """See `harness.engine.ShadowEngine.executable_changes`. Where changes are not followed, all that is executable
        counts as changed."""
        self._catch_up()
        if not self._any_gained:
            return np.empty(0, np.int64)
        out = np.flatnonzero(self._gained)
        self._gained[:] = False
        self._any_gained = False
        return out

    def addresses_of(self, gfn: int, writable: bool = False, executable: bool = False) -> frozenset[int]:
        """4 KiB-aligned addresses of `gfn` in any root, with the rights asked for."""
        self._catch_up()
        if not 0 <= gfn < self._p2m.frames:
            return _NONE
        return self._addresses(gfn, (MAY_WRITE if writable else 0) | (MAY_EXECUTE if executable else 0))

    def _addresses(self, gfn: int, wanted: int) -> frozenset[int]:
        q, pool = self._pool.q, self._pool
        out: set[int] = set()
        for word, level in self._links.mapping(gfn):
            if wanted & ~guest_rights(q[word]):
                continue
            spti = pool.owner(word)
            bases = self._bases[spti.index]
            if not bases:
                continue
            assert spti.role is not None
            extend = MODES[spti.role.mode].sign_extend
            offset = ((word & 511) << shadow_shift(level)) + ((gfn & ((1 << 9 * (level - 1)) - 1)) << 12)
            out.update(extend((base >> _RIGHTS_BITS) + offset) for base in bases if base & wanted == wanted)
        return frozenset(out)

    def watched(self, gfn: int) -> frozenset[int]:
        """The addresses last reported for `gfn`."""
        return self._watched.get(gfn, _NONE)

    def bases_of(self, index: int) -> frozenset[int]:
        """The packed bases of one SPT, up to date."""
        self._catch_up()
        return self._bases[index]

    # Keeping the bases.

    def _catch_up(self) -> None:
        if not self._follows:
            for index, spti in enumerate(self._pool.sptis):
                self._bases[index] = _NONE
                self._executable[index] = 0
                if spti.role is not None:
                    self.parents_changed(index)
        if self._any_stale:
            self._refresh()

    def _refresh(self) -> None:
        for level in range(5, 0, -1):
            stale = self._stale[level]
            while stale:
                self._refresh_one(stale.pop())
        self._any_stale = False

    def _refresh_one(self, index: int) -> None:
        spti = self._pool.sptis[index]
        if spti.role is None:
            return
        new = self.compute_bases(spti)
        old = self._bases[index]
        if new == old:
            return
        self._bases[index] = new
        self._executable[index] = any(base & MAY_EXECUTE for base in new)
        gained = any(base & MAY_EXECUTE for base in new - old)
        used = spti.spt[spti.spt != 0]
        if spti.level == 1:
            self.mark_guarded(self._leaf_gfns(used))
            if gained:
                self.gain_many(spti, self._leaf_gfns(used[used < PTE_NX]))
            return
        for spte in used.tolist():
            if not spte & PTE_PS:
                self._stale[spti.level - 1].add(self._pool.child(spte).index)
            elif gained and not spte & PTE_NX:
                self.gain_leaf(spti, self._p2m.to_gfn[(spte & PTE_ADDR) >> 12])

    def compute_bases(self, spti: Spti) -> frozenset[int]:
        """The bases of `spti` from those of its parents, which must be up to date."""
        assert spti.role is not None
        if spti.level == ROOT_LEVEL[spti.role.mode]:
            return _ROOT_BASE
        q = self._pool.q
        shift = shadow_shift(spti.level + 1) + _RIGHTS_BITS
        out: set[int] = set()
        for word in self._links.nodes(self._links.parents(spti.index)):
            add = (word & 511) << shift
            mask = ~_RIGHTS | guest_rights(q[word])
            out.update([(base + add) & mask for base in self._bases[word >> 11]])
            if len(out) > MAX_BASES:
                self._stats.aliases_truncated += 1
                break
        return frozenset(out)

    def _leaf_gfns(self, sptes: Words) -> npt.NDArray[np.int64]:
        gfns: npt.NDArray[np.int64] = self._p2m.m2p[(sptes & np.uint64(PTE_ADDR)).view(np.int64) >> 12]
        return gfns[gfns >= 0]
