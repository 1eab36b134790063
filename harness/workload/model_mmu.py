"""The hardware of a guest that runs on an engine's shadow tables: the walk of the shadow, and what a fault comes to.

The order of things is live mode's (`harness.intercept.live`): the processor walks the shadow; what it cannot translate
is an exit, and the engine is asked; before the guest goes on the root is asked for, and while it runs the engine has
idle moments. There is no TLB, as in live mode there is none that outlives an exit.
"""

from __future__ import annotations

from typing import Final

from harness.engine import AWAY, MMIO, RETRY, ShadowEngine, ShadowRoot
from harness.workload.workload import WorkloadError
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.bits import PAGE_SHIFT, PTE_ADDR, PTE_NX, PTE_P, PTE_PS, PTE_RW, PTE_US
from harness.x86.modes import PHYS_BITS_DEFAULT, PagingMode, reserved_bits

STUCK_AFTER: Final = 256  # times that one access may fault in a row; as in live mode
IDLE_PIECES: Final = 1
"""Pieces of idle work between two exits. One takes some 10 us, and no guest runs for less than that from one exit to
the next for long: what an engine gets done so, it gets done on a real machine too."""

_RIGHTS: Final = PTE_RW | PTE_US

# By access: the rights that every level must give, and what no level may have. CR0.WP is set in every shadow's root.
_NEEDED: Final = tuple(
    PTE_P | (PTE_RW if code & 3 == 1 else 0) | (PTE_US if code & 4 else 0) for code in range(max(ALL_ACCESSES) + 1)
)
_FORBIDDEN: Final = tuple(PTE_NX if code & 3 == 2 else 0 for code in range(max(ALL_ACCESSES) + 1))

Row = tuple[int, int, int, int]


def _rows(mode: PagingMode) -> tuple[Row, ...]:
    """For each level of the shadow from the root down: shift and mask of the index, rights that are not its to deny,
    and the bit that makes a leaf."""
    return tuple(
        (
            level.shift,
            level.entries - 1,
            0 if level.has_rights else _RIGHTS,
            PTE_P if level.number == 1 else level.may_map_large * PTE_PS,
        )
        for level in mode.levels
    )


def _reserved(mode: PagingMode) -> int:
    """Bits that are reserved at every level of a shadow of 4 KiB pages."""
    return reserved_bits(mode, 1, False, nxe=True, phys_bits=PHYS_BITS_DEFAULT)


class ModelMmu:
    """The hardware of one virtual processor on the shadow of `engine`.

    It knows neither SMEP, SMAP nor protection keys: its guests turn none of them on. retried: faults after which the
    access was made again; injected: those that the guest got.
    """

    def __init__(self, engine: ShadowEngine) -> None:
        self.engine = engine
        base, words = engine.pool
        self._q = words.data.cast("B").cast("Q")
        self._origin = base << PAGE_SHIFT
        self._size = len(self._q) << 3
        self._root: ShadowRoot | None = None
        self._table = 0
        self._mode_rows: tuple[Row, ...] = ()
        self._bad = 0
        self.retried = self.injected = 0

    def enter(self) -> None:
        """The guest goes on after an exit. To be called after every call of the engine that the guest has caused."""
        engine = self.engine
        root = engine.root
        if root is not self._root:
            self._root = root
            self._table = root.root - self._origin
            self._mode_rows = _rows(root.mode)
            self._bad = _reserved(root.mode)
        for _ in range(IDLE_PIECES):
            if not engine.idle():
                break

    def access(self, va: int, access: int) -> int:
        """The machine frame that the guest reaches at `va` (canonical), or ``~code`` (below 0) of the #PF that it gets.

        Raises WorkloadError where the engine comes to neither.
        """
        q, size = self._q, self._size
        needed, forbidden = _NEEDED[access], _FORBIDDEN[access]
        for _ in range(STUCK_AFTER):
            table, rights, seen = self._table, needed, 0
            for shift, mask, granted, leaf in self._mode_rows:
                if not 0 <= table < size:
                    raise WorkloadError(f"the shadow of {va:#x} leads to a table outside the pool")
                entry = q[(table >> 3) + (va >> shift & mask)]
                rights &= entry | granted
                if not rights & PTE_P:
                    break
                seen |= entry
                if entry & leaf:
                    if rights == needed and not seen & (forbidden | self._bad):
                        return (entry & PTE_ADDR & -1 << shift | va & (1 << shift) - 1) >> PAGE_SHIFT
                    break
                table = (entry & PTE_ADDR) - self._origin
            result = self.engine.shadow_fault(va, access)
            self.enter()
            if result != RETRY:
                return self._refused(va, access, result)
            self.retried += 1
        raise WorkloadError(f"{Access(access).text} at {va:#x} faults again and again: {self.engine.describe_walk(va)}")

    def _refused(self, va: int, access: int, result: int) -> int:
        if result >= 0:
            self.injected += 1
            return ~result
        what = {MMIO: "a device", AWAY: "a frame that was taken away"}.get(result, "not canonical")
        raise WorkloadError(f"{Access(access).text} at {va:#x}: the engine takes it for {what}")
