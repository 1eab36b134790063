"""The breakpoints and watchpoints of somebody beside the harness: a debugger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from harness.machine.gdbstub import point_packet


class PointKind(IntEnum):
    """The number is that of the remote protocol's Z packets."""

    SOFTWARE = 0
    HARDWARE = 1
    WRITE = 2
    READ = 3
    ACCESS = 4


@dataclass(frozen=True, slots=True)
class Point:
    """A breakpoint (SOFTWARE, HARDWARE: the same to QEMU) or watchpoint at virtual `address`. length in bytes."""

    kind: PointKind
    address: int
    length: int

    @property
    def breaks(self) -> bool:
        """Whether it is one on execution."""
        return self.kind <= PointKind.HARDWARE

    def packet(self, insert: bool = True) -> bytes:
        """The Z or z packet for QEMU's stub."""
        return point_packet(self.kind, self.address, self.length, insert)


class PointSet:
    """The points that are set now, in the order in which they were. One may be set more than once."""

    def __init__(self) -> None:
        self._points: list[Point] = []

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[Point]:
        return iter(tuple(self._points))

    def add(self, point: Point) -> None:
        self._points.append(point)

    def discard(self, point: Point) -> bool:
        """Takes one `point` away; whether there was one."""
        if point not in self._points:
            return False
        self._points.remove(point)
        return True

    def breaks_at(self, address: int) -> Point | None:
        """The breakpoint at `address`."""
        return next((p for p in self._points if p.breaks and p.address == address), None)

    def watches(self) -> list[Point]:
        return [p for p in self._points if not p.breaks]

    def watch_from(self, address: int) -> Point | None:
        """The watchpoint that begins at `address`: a stop of QEMU names one so."""
        return next((p for p in self._points if not p.breaks and p.address == address), None)

    def watching(self, page: int, size: int) -> list[Point]:
        """The watchpoints that lie, wholly or in part, in the `size` bytes at `page`."""
        return [p for p in self.watches() if p.address < page + size and page < p.address + p.length]
