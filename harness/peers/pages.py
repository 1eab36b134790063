"""The pool of shadow pages: one 4 KiB frame each, found by role, free until it is asked for.

Words of the pool are addressed by their index in one flat array; SPTE i of page k is ``k * 512 + i``.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

import numpy as np

from harness.engine import Bytes, Words
from harness.x86.bits import ENTRIES, PTE_ADDR
from harness.xi.gpt import EntryRules, entry_rules, guest_part
from harness.xi.roles import GUEST, Role, shadow_shift

PAGE_WORDS_SHIFT: Final = 9
MINIMUM_PAGES: Final = 8  # the longest path is 5; the others are room for the next to be made before one is given up


class ShadowPage:
    """One shadow page table.

    index: its number in the pool; base: of its first word; mfn: its machine frame; spt: its 512 SPTEs. While in use:
    role (kind, gfn and level repeated), shift (lowest bit of its index in an address), rules (GUEST only), first and
    count: the entries of the guest's table that it covers; halved: 1 if one of those has two SPTEs, else 0.
    """

    __slots__ = (
        "base",
        "count",
        "first",
        "gfn",
        "halved",
        "index",
        "kind",
        "level",
        "mfn",
        "role",
        "rules",
        "shift",
        "spt",
    )

    def __init__(self, index: int, mfn: int, words: Words) -> None:
        self.index = index
        self.base = index << PAGE_WORDS_SHIFT
        self.mfn = mfn
        self.spt: Words = words[self.base : self.base + ENTRIES]
        self.role: Role | None = None
        self.rules: EntryRules | None = None
        self.kind = GUEST
        self.gfn = 0
        self.level = 0
        self.shift = 0
        self.first = 0
        self.count = 0
        self.halved = 0

    def bind(self, role: Role, phys_bits: int) -> None:
        """From now on the page shadows what `role` says."""
        self.role = role
        self.kind = role.kind
        self.gfn = role.gfn
        self.level = role.level
        self.shift = shadow_shift(role.level)
        self.rules = None
        self.first = self.count = self.halved = 0
        if role.kind is GUEST:
            self.rules = entry_rules(role.mode, role.level, role.variant, phys_bits)
            part = guest_part(role.mode, role.level, role.quadrant)
            self.first, self.count = part.first, part.count
            self.halved = int(self.rules.doubled)

    @property
    def used(self) -> list[int]:
        """Numbers of the SPTEs that are not empty."""
        out: list[int] = self.spt.nonzero()[0].tolist()
        return out


class PagePool:
    """Every page is either in `free` or in `in_use`, which has them in the order in which they were made.

    words: the whole pool, flat uint64; q: the same as a memoryview. by_role: the pages in use.
    """

    def __init__(self, frames: int, base_mfn: int, memory: Bytes | None) -> None:
        """Raises ValueError when the pool is too small for a path, or `memory` has the wrong size."""
        if frames < MINIMUM_PAGES:
            raise ValueError(f"a pool of {frames} frames; the longest path needs room for {MINIMUM_PAGES}")
        if memory is None:
            memory = np.zeros(frames << 12, np.uint8)
        if memory.dtype != np.uint8 or memory.size != frames << 12:
            raise ValueError(f"pool memory must be uint8 of {frames << 12} bytes, not {memory.dtype} of {memory.size}")
        memory[:] = 0
        self.base_mfn = base_mfn
        self.words: Words = memory.view(np.uint64)
        self.q = memory.data.cast("B").cast("Q")
        self.pages = [ShadowPage(k, base_mfn + k, self.words) for k in range(frames)]
        self.free: deque[int] = deque(range(frames))
        self.in_use: OrderedDict[int, ShadowPage] = OrderedDict()
        self.by_role: dict[Role, ShadowPage] = {}
        self.most_held = 0

    def __len__(self) -> int:
        return len(self.pages)

    def take(self, role: Role, phys_bits: int) -> ShadowPage | None:
        """A page for `role`, zeroed here and now; None when none is free."""
        if not self.free:
            return None
        page = self.pages[self.free.popleft()]
        page.spt[:] = 0
        page.bind(role, phys_bits)
        self.in_use[page.index] = page
        self.by_role[role] = page
        self.most_held = max(self.most_held, len(self.in_use))
        return page

    def give_back(self, page: ShadowPage) -> None:
        """The page is free again."""
        assert page.role is not None
        del self.in_use[page.index]
        del self.by_role[page.role]
        page.role = None
        page.rules = None
        self.free.append(page.index)

    def clear(self) -> None:
        """Every page is free again."""
        for page in list(self.in_use.values()):
            self.give_back(page)

    def child(self, spte: int) -> ShadowPage:
        """The page that a non-leaf SPTE leads to."""
        return self.pages[((spte & PTE_ADDR) >> 12) - self.base_mfn]

    def owner(self, word: int) -> ShadowPage:
        """The page that holds the SPTE at `word`."""
        return self.pages[word >> PAGE_WORDS_SHIFT]
