"""What the processor itself writes into the shadow while the guest runs on it."""

from __future__ import annotations

from typing import Final

from harness.engine import ShadowRoot, Words
from harness.x86.modes import PAE

PDPTES: Final = 4


class ShadowWatch:
    """The PDPTEs at the root that the processor has, in live mode: QEMU (7.2) sets their A bits, which are reserved by
    the book (`harness.check.exceptions.PDPTE_ACCESSED`). Every other SPTE has its A and D before the processor could
    set them.

    root: the processor's. watching: whether its format is PAE.
    """

    def __init__(self, pool: tuple[int, Words]) -> None:
        self._base, words = pool
        self._q = words.data.cast("B").cast("Q")
        self.watching = False
        self.root: ShadowRoot | None = None
        self._at = 0
        self._held: list[int] = []

    def runs_on(self, root: ShadowRoot) -> None:
        """From now on the processor walks the shadow from `root`."""
        self.root = root
        self.watching = root.mode is PAE
        if self.watching:
            self._at = root.root - (self._base << 12) >> 3
            self.look()

    def look(self) -> None:
        """A call of the engine's is over: what it has written is none of the processor's."""
        self._held = self._q[self._at : self._at + PDPTES].tolist()

    def written(self) -> tuple[int, int, list[int]] | None:
        """The PDPTEs if they are not what they were when last looked at: mfn, index of the first, values. It may
        be the engine that has written them, in a call of `idle`."""
        now = self._q[self._at : self._at + PDPTES].tolist()
        if now == self._held:
            return None
        self._held = now
        return self._base + (self._at >> 9), self._at & 511, now
