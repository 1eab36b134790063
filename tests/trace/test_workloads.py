"""A guest of the catalogue, recorded to be a workload."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.trace import records as r
from harness.trace.reader import open_trace
from harness.workload.recording import record
from harness.workload.traces import TraceWorkload
from tests.workload.engines import ENGINES


def recorded(folder: Path, mode: str) -> Path:
    path = record("switch", "nopae", folder, mode)
    trace = open_trace(path)
    assert (trace.header.mode, trace.header.config.fill) == (mode, {"live": "demand", "observe": "eager"}[mode])
    assert trace.end is not None
    assert trace.end.verdict == "pass"
    kinds = {type(one) for one in trace.records()}
    assert r.LoadCr3 in kinds
    assert not kinds & {r.Checked, r.Faults}  # no check, and none of its probes
    return path


def test_a_run_in_observe_mode_is_given_to_every_engine(tmp_path: Path) -> None:
    path = recorded(tmp_path, "observe")
    for make in ENGINES.values():
        TraceWorkload(path).run(make)


@pytest.mark.two_cores
def test_a_run_in_live_mode_is_given_to_every_engine(tmp_path: Path) -> None:
    path = recorded(tmp_path, "live")
    for make in ENGINES.values():
        TraceWorkload(path).run(make)


@pytest.mark.parametrize(
    ("guest", "paging", "word"), [("nobody", "pae", "unknown guest"), ("switch", "vax", "in 'vax'")]
)
def test_what_there_is_not_is_refused_in_one_line(tmp_path: Path, guest: str, paging: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as error:
        record(guest, paging, tmp_path)
    assert "\n" not in str(error.value)
