"""Sessions with real guests: checkpoints by name, lost machines, deadlines, images that are none."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from harness.catalogue import Guest, load_catalogue
from harness.engines import engine_class
from harness.machine.errors import BadImage
from harness.options import Progress, RunOptions
from harness.runs import run_guest
from harness.session import Session

FEW = RunOptions(probe_budget=60)


def test_a_session_runs_to_a_checkpoint_by_its_name() -> None:
    with Session(load_catalogue()["basic"], "long4", FEW) as session:
        stop = session.run_to_checkpoint("remapped in reverse")
        assert stop is not None
        assert stop.name == "remapped in reverse"
        assert stop.state.mode.name == "long4"
        assert session.check().mismatches == []
        assert session.run_to_checkpoint("no such checkpoint") is None
        assert session.conclude().verdict == "pass"


def test_progress_is_told_and_the_record_counts() -> None:
    told: list[Progress] = []
    record = run_guest(load_catalogue()["basic"], "pae", FEW, told.append)
    assert record.verdict == "pass"
    assert record.checkpoints == len({progress.checkpoint for progress in told})
    assert record.events["cr3_load"] > 0
    assert record.checks["probe"] > 0
    assert record.stats["cr3_loads"] == record.events["cr3_load"]


def test_the_same_seed_asks_the_same_questions() -> None:
    first, second = (run_guest(load_catalogue()["basic"], "nopae", FEW) for _ in range(2))
    assert (first.checks, first.events) == (second.checks, second.events)


def test_a_qemu_that_dies_in_mid_run_is_an_error_not_a_failed_check() -> None:
    guest = load_catalogue()["basic"]

    def kill(progress: Progress) -> None:
        if progress.phase == "running":
            os.kill(qemu_below(os.getpid()), signal.SIGKILL)

    record = run_guest(guest, "long4", FEW, kill)
    assert record.verdict == "error"
    assert "-9" in record.reason


def qemu_below(parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        if "qemu" in Path(f"/proc/{child}/comm").read_text():
            return int(child)
    raise AssertionError("no QEMU is running")


def test_a_guest_that_outlives_its_deadline_is_a_timeout() -> None:
    record = run_guest(load_catalogue()["hostile_loop"], "long4", RunOptions(probe_budget=60, time_limit=1.0))
    assert record.verdict == "timeout"
    assert record.seconds < 5


@pytest.mark.parametrize("content", [b"", b"not an ELF", b"\x7fELF" + bytes(60)])
def test_an_image_that_is_none_is_refused_before_anything_is_launched(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    path.write_bytes(content)
    guest = Guest("mine", "", ("long4",), image=path)
    with pytest.raises(BadImage, match=r"guest\.elf"):
        Session(guest, "long4")
    record = run_guest(guest, "long4", FEW)
    assert record.verdict == "error"
    assert "guest.elf" in record.reason


def test_an_unknown_engine_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown engine 'xy' \(installed: .*xi\)"):
        engine_class("xy")


def test_logs_are_kept_where_asked(tmp_path: Path) -> None:
    record = run_guest(load_catalogue()["basic"], "long5", RunOptions(probe_budget=60, log_dir=tmp_path))
    folder = Path(record.log_dir)
    assert folder == tmp_path / "basic.long5"
    assert "TAP version" in (folder / "console.txt").read_text()
    assert "-accel" in (folder / "qemu-command.txt").read_text()
