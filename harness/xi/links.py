"""What XI asks about "which SPTEs point there", whatever keeps the answer: the interface of the backlink policies.

A *slot* is the number of a target. `Backlinks` (policy ``all``) has a list for every slot, `TableBacklinks`
(``gpt-only``) for some, `NoBacklinks` (``none``) for none; what no list tells is searched for in the SPTEs themselves.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Slots:
    """Numbers of targets: one for each 4 KiB frame, each 2 MiB and 1 GiB of them, and each SPT.

    slots: how many there are.
    """

    def __init__(self, frames: int, sptis: int) -> None:
        """`frames`: guest frames of the domain; `sptis`: of the pool."""
        self._base_2m = frames
        self._base_1g = self._base_2m + -(-frames // 512)
        self._base_parents = self._base_1g + -(-frames // (512 * 512))
        self.slots = self._base_parents + sptis

    def slot(self, level: int, gfn: int) -> int:
        """Slot of the leaf target of `level` (1: 4 KiB, 2: 2 MiB, 3: 1 GiB) whose first frame is `gfn`."""
        if level == 1:
            return gfn
        return self._base_2m + (gfn >> 9) if level == 2 else self._base_1g + (gfn >> 18)

    def parents(self, index: int) -> int:
        """Slot of the SPTEs that lead to the SPT of SPTI `index`."""
        return self._base_parents + index

    def leaf_of(self, slot: int) -> tuple[int, int]:
        """(level, first gfn) of a slot that is not of an SPT: the reverse of `slot`."""
        if slot < self._base_2m:
            return 1, slot
        return (2, (slot - self._base_2m) << 9) if slot < self._base_1g else (3, (slot - self._base_1g) << 18)


class Links(Protocol):
    """Who points where. `word`: of an SPTE, which is in place when it is linked, and still so when it is unlinked."""

    policy: str
    slots: int
    followed: int  # nodes of lists that led to an SPTE, each time

    def slot(self, level: int, gfn: int) -> int: ...
    def parents(self, index: int) -> int: ...

    def link(self, word: int, slot: int) -> None:
        """The SPTE at `word` points to the target `slot` from now on."""

    def unlink(self, word: int) -> None:
        """The SPTE at `word` is about to go."""

    def link_many(self, words: Ints, slots: Ints) -> None:
        """`link` for each pair; slots may repeat."""

    def unlink_many(self, words: Ints) -> None:
        """`unlink` for linked SPTEs of one SPT."""

    def table_appears(self, gfn: int) -> None:
        """`gfn` is in use as a guest table from now on."""

    def table_gone(self, gfn: int) -> None:
        """`gfn` is no guest table any more."""

    def nodes(self, slot: int) -> list[int]:
        """The words of all SPTEs that point to a target, as of now."""

    def empty(self, slot: int) -> bool:
        """Whether none points to a target that is an SPT."""

    def mapping(self, gfn: int) -> list[tuple[int, int]]:
        """(word, level) of every leaf SPTE that maps `gfn`, alone or in a large page."""

    def leaves(self) -> Ints:
        """The words of all SPTEs that map a page, large or small, in no particular order."""

    def pages(self, gfns: Ints) -> Ints:
        """The words of all SPTEs that map one of the 4 KiB pages `gfns`, in no particular order."""

    def aside(self) -> Links:
        """The same for who looks on, and is no part of what XI does: its counts are apart."""

    # For who looks into an engine that may be broken.

    def listed(self, slot: int) -> list[int]:
        """`nodes`, up to the first that comes a second time or lies outside the pool. Counts nothing."""

    def unlinked(self, word: int, slot: int) -> str:
        """Why the SPTE at `word` is not on the list of the target `slot` that it points to, as far as its neighbours
        there tell; "" if it is, or need not be."""

    # Memory.

    spti_pages: int  # 4 KiB pages that an SPTI owns for its backlinks

    @property
    def fixed_bytes(self) -> int:
        """What is kept for each target, whether anything points there or not."""

    @property
    def grown_bytes(self) -> int:
        """What was allocated as it was needed, and is held now."""

    @property
    def pages_allocated(self) -> int:
        """4 KiB pages that this took when it was most."""

    @property
    def pages_held(self) -> int:
        """4 KiB pages that backlinks take now."""

    @property
    def pages_peak(self) -> int:
        """The most that they ever took."""

    @property
    def kept(self) -> str:
        """Which SPTEs have a backlink, for a reader."""
