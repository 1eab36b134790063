"""The debugger's points in the stub: which are sent, in which order, and what a stop says of them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from harness.intercept.points import Point, PointKind
from harness.intercept.stub_points import StubPoints, pages_of
from harness.machine.errors import MachineError
from harness.machine.gdbstub import GdbStub, StopReply

BREAK = Point(PointKind.SOFTWARE, 0x401000, 1)
ENTRY = Point(PointKind.WRITE, 0x201020, 8)
FIRST = Point(PointKind.ACCESS, 0x201000, 8)


class Stub:
    """Takes every packet but those of `refused`."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.refused: set[bytes] = set()

    def checked(self, *payloads: bytes) -> None:
        for payload in payloads:
            if payload in self.refused:
                raise MachineError(f"E22 to {payload!r}")
            self.sent.append(payload)


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def points(stub: Stub) -> StubPoints:
    points = StubPoints(cast(GdbStub, cast(Any, stub)))
    for point in (BREAK, ENTRY, FIRST):
        points.set(point)
    stub.sent.clear()
    return points


def test_a_point_is_set_and_cleared_once(stub: Stub, points: StubPoints) -> None:
    points.clear(ENTRY)
    points.clear(ENTRY)
    assert stub.sent == [b"z2,201020,8"]


def test_a_refused_point_is_not_kept(stub: Stub, points: StubPoints) -> None:
    stub.refused.add(b"Z3,0,0")
    with pytest.raises(MachineError):
        points.set(Point(PointKind.READ, 0, 0))
    points.clear(Point(PointKind.READ, 0, 0))
    assert stub.sent == []


def test_lifted_points_are_nowhere_until_they_are_back(stub: Stub, points: StubPoints) -> None:
    points.lift()
    assert stub.sent == [b"z0,401000,1", b"z2,201020,8", b"z4,201000,8"]
    assert not points.active
    assert points.breaks_at(0x401000) is None
    assert points.hit_by(StopReply(5, 0x201020)) is None
    assert points.in_front([0x201000]) == []
    assert points.back() == [b"Z0,401000,1", b"Z2,201020,8", b"Z4,201000,8"]
    assert points.breaks_at(0x401000) == BREAK


def test_watchpoints_in_a_page_are_put_in_front_once(points: StubPoints) -> None:
    packets = points.in_front([0x200000, 0x201000, 0x201000, 0x400000])
    assert packets == [b"z2,201020,8", b"Z2,201020,8", b"z4,201000,8", b"Z4,201000,8"], "the one behind the other"


@pytest.mark.parametrize(
    ("stop", "hit"),
    [
        (StopReply(5, 0x201020), ENTRY),
        (StopReply(5, 0x201000, kind=4), FIRST),
        (StopReply(5, 0x201000), ENTRY),  # the harness's page: what is watched for stores in it may be meant
        (StopReply(5, 0x202000), None),
        (StopReply(5, 0x201020, kind=3), None),
        (StopReply(5), None),
    ],
)
def test_a_stop_is_for_a_watchpoint(points: StubPoints, stop: StopReply, hit: Point | None) -> None:
    assert points.hit_by(stop) == hit


def test_the_harness_s_own_stops_are_nobody_s_without_points(stub: Stub) -> None:
    points = StubPoints(cast(GdbStub, cast(Any, stub)))
    assert not points.active
    assert points.hit_by(StopReply(5, 0x201000)) is None


def test_a_watchpoint_across_pages_lies_in_each() -> None:
    assert list(pages_of(Point(PointKind.WRITE, 0x1FFC, 8))) == [0x1000, 0x2000]
    assert list(pages_of(Point(PointKind.WRITE, 0x1FF8, 8))) == [0x1000]
