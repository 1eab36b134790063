"""The debugger's points in QEMU's stub, beside the harness's own breakpoints and watchpoints.

Seen with QEMU 7.2: points count, so one at an address that the harness uses too is a second one. A stop at a watchpoint
names the first one of QEMU's list that the access matches, and the one inserted last is the first: the debugger's are
kept in front of the harness's pages. An instruction that makes several accesses names the first access that matched.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.intercept.points import Point, PointKind, PointSet
from harness.machine.gdbstub import GdbStub, StopReply
from harness.x86.bits import PAGE_SIZE


class StubPoints:
    """Which points of the debugger's are set, and what a stop says of them."""

    def __init__(self, gdb: GdbStub) -> None:
        self._gdb = gdb
        self._points = PointSet()
        self.lifted = False

    @property
    def active(self) -> bool:
        """Whether QEMU has any of them now."""
        return bool(len(self._points)) and not self.lifted

    def set(self, point: Point) -> None:
        """The guest stands. Raises MachineError if QEMU refuses it."""
        self._gdb.checked(point.packet())
        self._points.add(point)

    def clear(self, point: Point) -> None:
        if self._points.discard(point):
            self._gdb.checked(point.packet(insert=False))

    def lift(self) -> None:
        """Takes all of them out of QEMU, until `back`."""
        self._gdb.checked(*(point.packet(insert=False) for point in self._points))
        self.lifted = True

    def back(self) -> list[bytes]:
        """The packets that set them again after `lift`."""
        self.lifted = False
        return [point.packet() for point in self._points]

    def in_front(self, pages: Iterable[int]) -> list[bytes]:
        """The packets that put them in front again, after the harness inserted watchpoints over `pages`."""
        if not self.active:
            return []
        points = dict.fromkeys(point for page in pages for point in self._points.watching(page, PAGE_SIZE))
        return [point.packet(insert) for point in points for insert in (False, True)]

    def breaks_at(self, address: int) -> Point | None:
        """The breakpoint at `address`, unless lifted."""
        return self._points.breaks_at(address) if self.active else None

    def hit_by(self, stop: StopReply) -> Point | None:
        """The watchpoint that `stop` is for. One for stores may be meant where the harness's own page was named: the
        bytes that it watches lie in that page, and whoever set it sees whether they have changed."""
        if stop.watch is None or not self.active:
            return None
        near = self._points.watching(stop.watch, PAGE_SIZE)
        named = (point for point in near if point.address == stop.watch and point.kind == stop.kind)
        page = stop.kind == PointKind.WRITE and not stop.watch & PAGE_SIZE - 1
        return next(named, None) or next((p for p in near if page and p.kind == PointKind.WRITE), None)


def pages_of(point: Point) -> range:
    """The virtual pages that a watchpoint lies in, even in part."""
    return range(point.address & -PAGE_SIZE, point.address + point.length, PAGE_SIZE)
