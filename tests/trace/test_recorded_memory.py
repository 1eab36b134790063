"""What a recorded memory gives, and what it writes down of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pytest

from harness.engine import EngineConfig, PlainMemory
from harness.trace import records as r
from harness.trace.format import Header
from harness.trace.reader import open_trace
from harness.trace.recorded_memory import RecordedMemory, RecordedPlainMemory, record_memory
from harness.trace.writer import TraceWriter

FRAMES: Final = 8
HEADER: Final = Header("g", "pae", "live", 1, "xi", "", "", EngineConfig(4, 64, 8), FRAMES)


class Recorded:
    """memory: of the guest, real: behind it."""

    def __init__(self, folder: Path, kind: type[RecordedMemory]) -> None:
        self.real = PlainMemory(np.zeros(FRAMES << 12, np.uint8))
        self.writer = TraceWriter(folder, HEADER)
        self.memory = record_memory(self.real, self.writer)
        if type(self.memory) is not kind:
            self.memory = RecordedMemory(self.real, self.writer)
        assert type(self.memory) is kind

    def records(self) -> list[r.Record]:
        self.writer.flush()
        return list(open_trace(self.writer.path).records())


@pytest.fixture(params=[RecordedMemory, RecordedPlainMemory])
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Recorded:
    return Recorded(tmp_path, request.param)


def test_memory_with_ways_of_its_own_is_asked(tmp_path: Path) -> None:
    class Odd(PlainMemory):
        def read32(self, address: int) -> int:
            return 7

    memory = record_memory(Odd(np.zeros(4096, np.uint8)), TraceWriter(tmp_path, HEADER))
    assert memory.read32(8) == 7


def test_what_is_read_is_written_once(recorded: Recorded) -> None:
    recorded.real.or64(0x2008, 0x1234_5678_9ABC_DEF0)
    for _ in range(2):
        assert recorded.memory.read64(0x2008) == 0x1234_5678_9ABC_DEF0
        assert recorded.memory.read32(0x200C) == 0x1234_5678
        assert recorded.memory.read64(0x3000) == 0  # as a replay has it
    assert recorded.records() == [r.Words(2, (1,), (0x1234_5678_9ABC_DEF0,))]


def test_a_half_that_is_read_brings_the_whole_word(recorded: Recorded) -> None:
    recorded.real.or64(0x1FF8, 7 << 32 | 9)
    assert recorded.memory.read32(0x1FF8) == 9
    assert recorded.memory.read32(0x1FFC) == 7
    assert recorded.records() == [r.Words(1, (511,), (7 << 32 | 9,))]


def test_what_the_engine_sets_itself_is_not_written(recorded: Recorded) -> None:
    recorded.memory.or64(0x2008, 0x20)
    recorded.memory.or32(0x300C, 0x40)
    assert (recorded.real.read64(0x2008), recorded.real.read32(0x300C)) == (0x20, 0x40)
    assert recorded.memory.read64(0x2008) == 0x20
    assert recorded.memory.read64(0x3008) == 0x40 << 32
    assert recorded.memory.page(3)[1] == 0x40 << 32
    assert recorded.records() == []


def test_of_a_page_only_what_changed_is_written(recorded: Recorded) -> None:
    page = recorded.real.page(5)
    page[[3, 510]] = 33, 77
    assert np.array_equal(recorded.memory.page(5), page)
    page[3] = 34
    seen = recorded.memory.page(5)
    assert recorded.records() == [r.Words(5, (3, 510), (33, 77)), r.Words(5, (3,), (34,))]
    page[3] = 35  # the engine has what was written down, not what the guest makes of it meanwhile
    assert seen[3] == 34


def test_a_page_that_is_all_new_is_written_whole(recorded: Recorded) -> None:
    recorded.real.page(6)[:] = np.arange(512)
    assert recorded.memory.page(6)[511] == 511
    assert recorded.memory.read64(0x6FF8) == 511
    assert recorded.records() == [r.Page(6, np.arange(512, dtype=np.uint64).tobytes())]


def test_there_is_no_more_memory_than_there_is(recorded: Recorded) -> None:
    assert recorded.memory.frames == FRAMES
    for read in (recorded.memory.read64, recorded.memory.read32):
        with pytest.raises(IndexError):
            read(FRAMES << 12)
    with pytest.raises(IndexError):
        recorded.memory.or64(FRAMES << 12, 1)


def test_a_machine_larger_than_this_one_takes_no_room(tmp_path: Path) -> None:
    class Large(PlainMemory):
        frames = 1 << 26  # 256 GiB

    memory = RecordedMemory(Large(np.ones(4096, np.uint8)), TraceWriter(tmp_path, HEADER))
    assert memory.read64(0x8) == 0x0101_0101_0101_0101
