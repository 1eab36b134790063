"""A neighbour in a shared pool that always wants another shadow table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from harness.engine import RETRY
from harness.x86.access import Access
from harness.xi.shared_pool import SharedPool
from tests.xi.domain import Domain

FRAMES: Final = 1024
PAGE: Final = 300  # the gfn that it maps everywhere


class Greedy:
    """A domain that uses one page after the other, each with a page table of its own, round and round.

    tables: how many page tables it has; with more than the pool has SPTIs every one that it asks for is missing. Its
    memory lies from machine frame 1024 on, where no pool is that it is tested with.
    """

    def __init__(self, pool: SharedPool, tables: int = 400, options: Mapping[str, str] | None = None) -> None:
        p2m = np.arange(FRAMES, 2 * FRAMES, dtype=np.int64)
        options = {"pool": "shared"} | dict(options or {})
        self.domain = Domain("long4", "demand", FRAMES, p2m=p2m, options=options, shared_pool=pool)
        self._pages = [number << 21 for number in range(tables)]
        for va in self._pages:
            self.domain.map(va, PAGE)
        self.domain.start()
        self.asked = 0

    def ask(self, count: int) -> None:
        """Uses the next `count` of its pages."""
        for _ in range(count):
            va = self._pages[self.asked % len(self._pages)]
            self.asked += 1
            assert self.domain.engine.shadow_fault(va, Access.LOAD) == RETRY

    def check(self, count: int) -> None:
        """Every access to the next `count` of its pages gets what its tables say."""
        for _ in range(count):
            for access in Access:
                self.domain.check(self._pages[self.asked % len(self._pages)], access)
            self.asked += 1
