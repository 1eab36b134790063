"""Runs of real guests: what is recorded replays, what fails is kept and said, and nothing else is left."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from harness.catalogue import load_catalogue
from harness.options import Progress, RunOptions
from harness.report.failure import failure_block
from harness.runs import make_session, run_guest
from harness.session import Session
from harness.trace.reader import open_trace
from harness.trace.replay import make_replay
from harness.trace.summary import passed
from harness.xi.engine import XiEngine
from harness.xi.pool import Spti
from tests.test_session import qemu_below

BASIC = load_catalogue()["basic"]
FEW = RunOptions(probe_budget=60)
live = pytest.mark.two_cores


class WrongFrame(XiEngine):
    """Maps the frame behind the one that the guest's entry names."""

    def fill_page(self, spti: Spti, index: int, entry: int, gfn: int) -> None:
        super().fill_page(spti, index, entry, gfn + 1 if self.p2m.backed(gfn + 1) else gfn - 1)


@pytest.mark.parametrize(
    ("guest", "paging", "chosen"),
    [
        ("basic", "long5", {}),
        ("churn", "pae", {}),
        pytest.param("alias", "long4", {"mode": "live"}, marks=live),
        pytest.param("switch", "pae", {"mode": "live", "stress": True, "pool_spti": 40}, marks=live),
        pytest.param("ad", "nopae", {"mode": "live", "policies": {"zeroing": "critical-path"}}, marks=live),
        pytest.param("basic", "pae", {"mode": "both"}, marks=live),
    ],
)
def test_a_recorded_run_comes_out_again(guest: str, paging: str, chosen: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "run.xitrace"
    options = RunOptions(probe_budget=60, record=path, **chosen)
    record = run_guest(load_catalogue()[guest], paging, options)
    assert record.verdict == "pass", record.reason
    assert (record.trace, record.trace_lost) == (str(path), "")
    assert os.listdir(tmp_path) == ["run.xitrace"]

    trace = open_trace(path)
    assert trace.header.mode == ("observe" if options.mode == "observe" else "live")
    assert trace.header.command == options.command(guest, paging)
    assert trace.end is not None
    assert trace.end.verdict == "pass"
    # Faults are no events of the guest's in observe mode, and stores to tables none of the log's in live mode.
    told = sum(count for kind, count in record.events.items() if kind not in ("page_fault", "table_write"))
    assert trace.end.events >= told
    replay = make_replay(trace)
    replay.run()
    assert passed(replay), replay.tally.to_json()
    assert replay.events.total == trace.end.events


def test_a_run_that_ends_as_it_must_leaves_nothing(tmp_path: Path) -> None:
    record = run_guest(BASIC, "long4", RunOptions(probe_budget=60, keep_traces=tmp_path))
    assert record.verdict == "pass"
    assert (record.trace, record.trace_lost) == ("", "")
    assert len(record.repro) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", ["observe", pytest.param("live", marks=live)])
def test_a_failing_run_keeps_its_trace_and_says_how_to_go_on(mode: str, tmp_path: Path) -> None:
    options = RunOptions(probe_budget=60, keep_traces=tmp_path, mode=mode, seed=3)
    session = make_session(BASIC, "long4", options)
    session._make_engine = WrongFrame
    with session:
        while session.run_to_checkpoint() is not None:
            session.check()
        record = session.conclude()
    session.settle()
    assert record.verdict != "pass"

    (name,) = os.listdir(tmp_path)
    assert name.startswith(f"basic-long4-{mode}-seed3-")
    assert record.trace == str(tmp_path / name)
    again, replay, debug = record.repro
    assert again == options.command("basic", "long4")
    assert replay == f"xi-harness replay {tmp_path / name}"
    words = shlex.split(debug)
    assert words[:4] == ["xi-harness", "debug", "basic", "--paging"]
    assert words[-2] == "--stop-at"
    assert session.trouble == int(words[-1]) < session.interception.log.total
    block = failure_block(record)
    assert f"trace kept in {record.trace}" in block
    assert all(command in block for command in record.repro)

    as_it_was = make_replay(open_trace(tmp_path / name), make_engine=WrongFrame)
    as_it_was.run()
    assert as_it_was.broken == ""
    assert as_it_was.tally.differ["answers"] == 0
    mended = make_replay(open_trace(tmp_path / name))
    mended.run()
    assert not passed(mended)


def test_nothing_is_recorded_unless_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    record = run_guest(load_catalogue()["hostile_loop"], "long4", RunOptions(probe_budget=60, time_limit=1.0))
    assert (record.verdict, record.trace) == ("timeout", "")
    assert record.repro == ["xi-harness run hostile_loop --paging long4 --seed 1 --time-limit 1"]
    record.expected = "pass"
    with Session(BASIC, "long4", FEW) as session:
        assert session.recorder is None
        assert isinstance(session.engine, XiEngine)
        session.conclude()
    session.settle(failed=True)
    assert session.record.repro[1:] == ["xi-harness debug basic --paging long4 --seed 1"]  # it had no event yet


@pytest.mark.parametrize(("mode", "verdict"), [("observe", "error"), pytest.param("both", "fail", marks=live)])
def test_the_trace_of_a_run_whose_machine_is_lost_is_kept(mode: str, verdict: str, tmp_path: Path) -> None:
    def kill(progress: Progress) -> None:
        if progress.phase in ("running", "live"):
            os.kill(qemu_below(os.getpid()), signal.SIGKILL)

    record = run_guest(BASIC, "long4", RunOptions(probe_budget=60, keep_traces=tmp_path, mode=mode), kill)
    assert record.verdict == verdict
    trace = open_trace(Path(record.trace))
    assert trace.end is not None
    assert trace.end.verdict == verdict
    assert record.repro[1] == f"xi-harness replay {record.trace}"
    assert record.repro[2].startswith("xi-harness debug basic --paging long4 ")
    assert ("--mode live" in record.repro[2]) == (mode == "both")


def test_after_an_error_of_our_own_the_traceback_names_the_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(session: Session) -> None:
        raise KeyError("a bug of ours")

    monkeypatch.setattr(Session, "check", check)
    with pytest.raises(KeyError) as caught:
        run_guest(BASIC, "long4", RunOptions(keep_traces=tmp_path))
    (name,) = os.listdir(tmp_path)
    assert caught.value.__notes__ == [f"the run's trace is kept in {tmp_path / name}"]


def test_a_trace_that_is_lost_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    record = run_guest(BASIC, "long4", RunOptions(probe_budget=60, record=tmp_path / "file" / "trace"))
    assert record.verdict == "pass"
    assert record.trace == ""
    assert record.trace_lost
    assert f"its trace was lost: {record.trace_lost}" in failure_block(record)
