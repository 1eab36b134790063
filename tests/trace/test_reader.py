"""What a trace's file may be, and what a user is told of one that is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.check.memory import Ints
from harness.engine import EngineConfig
from harness.trace import records as r
from harness.trace.format import CHUNK, LENGTH, MAGIC, NAME, PACK, Header, Kind, tailed
from harness.trace.reader import Trace, TraceError, open_trace
from tests.trace.guest import RecordedGuest, with_records
from tests.trace.kinds import KINDS


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return RecordedGuest(tmp_path).live().save()


def starts(path: Path) -> list[int]:
    """Where each chunk of the trace begins, and the file's end."""
    data = path.read_bytes()
    at = len(MAGIC) + LENGTH.size + LENGTH.unpack_from(data, len(MAGIC))[0]
    found = [at]
    while at < len(data):
        at += CHUNK.size + CHUNK.unpack_from(data, at)[0]
        found.append(at)
    return found


@pytest.mark.parametrize("p2m", [None, np.array([4, -1, 2, 1 << 25])])
def test_a_header_comes_back(p2m: Ints | None) -> None:
    config = EngineConfig(4, 64, 128, p2m=p2m, fill="demand", phys_bits=48, options={"zeroing": "idle"})
    header = Header("g", "pae", "observe", 2**32 - 1, "xi", "xi-harness run g", "xi-harness 1", config, 1 << 26)
    again = Header.decode(header.encode())
    names = set(Header.__slots__) - {"config"}
    assert {name: getattr(again, name) for name in names} == {name: getattr(header, name) for name in names}
    assert replace(again.config, p2m=None) == replace(config, p2m=None)
    assert (again.config.p2m is None) == (p2m is None)
    assert p2m is None or np.array_equal(p2m, np.asarray(again.config.p2m))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no trace of xi-harness"),
        (b"\x7fELF" + bytes(60), "no trace of xi-harness"),
        (NAME, "no version"),
        (NAME + b"\x63" + bytes(99), "version 99, and this xi-harness reads version 1: record it again"),
        (MAGIC, "header is damaged"),
        (MAGIC + b"\xff\xff\xff\xff", "header is damaged"),
        (MAGIC + LENGTH.pack(2) + b"{}", "header is damaged"),
        (MAGIC + LENGTH.pack(2) + b"[]", "header is damaged"),
        (MAGIC + LENGTH.pack(200) + b"{}", "header is damaged"),
    ],
)
def test_what_is_no_trace_is_told_in_one_line(content: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=complaint) as caught:
        open_trace(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        open_trace(tmp_path / "absent")
    with pytest.raises(TraceError, match="Is a directory"):
        open_trace(tmp_path)


def test_a_trace_that_is_cut_off_can_be_read_up_to_its_last_whole_chunk(trace: Trace) -> None:
    everything = list(trace.records())
    assert trace.complete
    data, chunks = trace.path.read_bytes(), starts(trace.path)
    assert len(chunks) > 2
    for end in (chunks[-2], chunks[-2] + 5, chunks[-1] - 1):
        trace.path.write_bytes(data[:end])
        cut = open_trace(trace.path)
        assert not cut.complete
        assert list(cut.records()) == everything[:-1]
    trace.path.write_bytes(data[: chunks[0]])
    assert list(open_trace(trace.path).records()) == []


def test_damage_is_found_where_it_is(trace: Trace) -> None:
    data, chunks = bytearray(trace.path.read_bytes()), starts(trace.path)
    for at in (chunks[0] + CHUNK.size + 40, chunks[0] + 5):
        broken = data.copy()
        broken[at] ^= 4
        trace.path.write_bytes(broken)
        with pytest.raises(TraceError, match=f"damaged at byte {chunks[0]:#x}"):
            list(open_trace(trace.path).records())


@pytest.mark.parametrize(
    "record",
    [
        b"\xc8",  # no such kind
        PACK[Kind.CONTROL](Kind.CONTROL, 1, 2, 3, 4, 5)[:-1],
        PACK[Kind.EVENT](Kind.EVENT, 0, 0, 0, 0),  # names a text that there is none of
        PACK[Kind.RAISED](Kind.RAISED, 10) + b"short",
        tailed(Kind.WORDS, 1, tail=bytes(11)),
        tailed(Kind.STRING, tail=b"\xff"),
    ],
)
def test_records_that_make_no_sense_are_damage(record: bytes, trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="damaged at byte"):
        list(with_records(trace, tmp_path / "t", record).records())


def test_each_kind_comes_back_as_what_it_is(trace: Trace, tmp_path: Path) -> None:
    assert {record[0] for record, _ in KINDS} == set(Kind)
    strings = [record for record, expected in KINDS if expected is None]
    for record, expected in KINDS:
        if expected is not None:
            assert list(with_records(trace, tmp_path / "t", *strings, record).records()) == list(expected)


def test_an_end_alone_is_a_complete_trace(trace: Trace, tmp_path: Path) -> None:
    end = tailed(Kind.END, 3, tail=b"timeout\0still running")
    assert with_records(trace, tmp_path / "t", end).end == r.End("timeout", "still running", 3)
    assert with_records(trace, tmp_path / "t").end is None
