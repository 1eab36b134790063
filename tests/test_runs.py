"""Each mode goes to what runs it, and whatever happens there ends in a record. No machine is launched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import harness.twin.compare as twin
from harness import runs
from harness.catalogue import Guest, load_catalogue
from harness.live.session import LiveSession
from harness.machine.errors import DeadlineExceeded, MachineLost, MachineUnavailable
from harness.options import RunOptions
from harness.report.record import RunRecord
from harness.session import Session
from harness.twin.live_leg import LiveLeg

BASIC = load_catalogue()["basic"]
BOTH = RunOptions(mode="both", stress=True, seed=3)


@pytest.mark.parametrize(("mode", "kind"), [("observe", Session), ("live", LiveSession)])
def test_each_mode_has_its_session(mode: str, kind: type[Session]) -> None:
    session = runs.make_session(BASIC, "pae", RunOptions(mode=mode))
    assert type(session) is kind
    assert session.record.mode == mode


def test_both_is_no_session() -> None:
    with pytest.raises(ValueError, match="no one session"):
        runs.make_session(BASIC, "pae", BOTH)


def test_both_is_handed_on_as_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def run_twin(*arguments: Any) -> RunRecord:
        *told, live_leg = arguments
        given.extend(told)
        assert isinstance(live_leg(*told[:3]), LiveLeg)
        return RunRecord("basic", "pae", mode="both", verdict="pass")

    def watch(progress: object) -> None:
        pass

    monkeypatch.setattr(twin, "run_twin", run_twin)
    assert runs.run_guest(BASIC, "pae", BOTH, watch).verdict == "pass"
    assert given == [BASIC, "pae", BOTH, watch]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(MachineLost("QEMU ended", ["qemu"], 1, ""), "error"), (DeadlineExceeded("the live leg: no answer"), "timeout")],
)
def test_a_leg_that_is_lost_is_no_failed_check(error: Exception, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_twin(*arguments: Any) -> RunRecord:
        raise error

    monkeypatch.setattr(twin, "run_twin", run_twin)
    record = runs.run_guest(BASIC, "pae", BOTH)
    assert (record.verdict, record.mode, record.seed) == (verdict, "both", 3)
    assert str(error).splitlines()[0] in record.reason
    assert record.repro == ["xi-harness run basic --paging pae --mode both --seed 3 --stress"]


def test_no_qemu_is_for_the_batch_to_hear_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_twin(*arguments: Any) -> RunRecord:
        raise MachineUnavailable("no QEMU")

    monkeypatch.setattr(twin, "run_twin", run_twin)
    with pytest.raises(MachineUnavailable):
        runs.run_guest(BASIC, "pae", BOTH)


@pytest.mark.parametrize("mode", ["observe", "live"])
def test_a_guest_that_is_none_is_an_error_in_its_mode(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    path.write_bytes(b"not an ELF")
    record = runs.run_guest(Guest("mine", "", ("pae",), image=path), "pae", RunOptions(mode=mode))
    assert (record.verdict, record.mode) == ("error", mode)
    assert "guest.elf" in record.reason


def test_the_machine_of_a_live_run_has_room_for_more_than_the_guest() -> None:
    def mebibytes(options: RunOptions) -> list[int]:
        return [int(line[line.index("-m") + 1][:-1]) for line in runs.command_lines(BASIC, "pae", options)]

    assert mebibytes(RunOptions()) == [32]
    native, live = mebibytes(RunOptions(mode="both"))
    assert (native, [live]) == (32, mebibytes(RunOptions(mode="live")))
    (large,) = mebibytes(RunOptions(mode="live", pool_spti=2048))
    assert large >= live + 30, "32 MiB of pool instead of 1.6"
