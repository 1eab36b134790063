"""`xi-harness replay` from outside: what it says, and the status it ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest
from typer.testing import CliRunner, Result

from harness import cli, cli_progress, engines
from harness.trace.format import PACK, Kind
from harness.trace.reader import Trace
from harness.x86.access import Access
from harness.xi.engine import XiEngine
from tests.trace import broken_engines as broken
from tests.trace.guest import PAGES, RecordedGuest, with_records

ROOT = Path(__file__).resolve().parent.parent
Replay = Callable[..., Result]


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return RecordedGuest(tmp_path).live().save()


@pytest.fixture
def replay() -> Replay:
    runner = CliRunner()

    def run(*arguments: object) -> Result:
        result = runner.invoke(cli.app, ["replay", *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return run


def break_engine(monkeypatch: pytest.MonkeyPatch, engine: type[XiEngine]) -> None:
    monkeypatch.setattr("harness.trace.replay.engine_class", lambda name: engine)


def test_a_replay_that_agrees(trace: Trace, replay: Replay) -> None:
    result = replay(trace.path)
    assert result.exit_code == 0
    first, second, *_ = result.stdout.splitlines()
    assert first.startswith("scripted long4, live, seed 1; recorded by xi-harness ")
    assert first.endswith("with engine xi")
    assert second == "replayed through xi, as recorded"
    for check in ("answers", "walks", "audits", "pool", "unexplained", "dirty log"):
        (line,) = [line for line in result.stdout.splitlines() if line.startswith(check)]
        compared, differ = line[12:].split()[:2]
        assert int(compared.replace(",", "")) > 0 and differ == "0"
    assert "events/s" in result.stdout
    assert "end of the trace: the recorded run's verdict was pass" in result.stdout
    assert result.stderr == ""


def test_a_replay_that_differs_says_where_and_how_to_look(
    trace: Trace, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_engine(monkeypatch, broken.WrongFrame)
    result = replay(trace.path)
    assert result.exit_code == 1
    assert "scripted long4, live (replayed through xi): fail: " in result.stdout
    assert "DIFFERS  walks: " in result.stdout
    assert f"xi-harness replay {trace.path} --stop-at " in result.stdout
    assert result.stdout.rstrip().endswith(f"reproduce:\n  xi-harness replay {trace.path}")


def test_commands_run_where_the_replay_stands(trace: Trace, replay: Replay) -> None:
    words = ("events 2", f"walk {PAGES[0]:#x}", "diff 2 5", "walk $rip", "audit")
    result = replay(trace.path, "--stop-at", 5, *(part for line in words for part in ("--command", line)))
    assert result.exit_code == 0, result.stderr
    assert "stopped once event #5 " in result.stdout
    outputs = result.stdout.split("\nxi ")[1:]
    assert [output.splitlines()[0] for output in outputs] == list(words)
    assert "6 events so far" in outputs[0]
    assert "this is a replay" in outputs[1]
    assert "from event 2 to event 5" in outputs[2]


def test_a_command_that_fails_is_status_2(trace: Trace, replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    result = replay(trace.path, "--command", "wlak 0", "--command", "events 1")
    assert result.exit_code == 2
    assert "no command 'wlak': perhaps walk" in result.stdout
    assert "events so far" in result.stdout
    break_engine(monkeypatch, broken.FailsItsAudit)
    assert replay(trace.path, "--command", "wlak 0").exit_code == 1


def test_events_are_printed(trace: Trace, replay: Replay) -> None:
    result = replay(trace.path, "--events", "--stop-at", 3)
    lines = [line for line in result.stdout.splitlines() if line.startswith("#")]
    assert [line.split()[0] for line in lines] == ["#0", "#1", "#2", "#3"]
    assert "control of the script" in lines[0]


def test_json(trace: Trace, replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = replay(trace.path, "--json", "-", "--command", "events 1")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["passed"] and document["ended"] and document["exact"]
    assert document["checks"]["answers"]["compared"] > 0
    assert document["trace"]["complete"] and document["trace"]["verdict"] == "pass"
    assert document["events"]["page_fault"] > 0 and document["calls"]["shadow_fault"] > 0
    assert document["commands"][0]["command"] == "events 1"
    assert "check " in result.stderr  # the table goes there
    break_engine(monkeypatch, broken.OtherCode)
    assert replay(trace.path, "--json", tmp_path / "r.json").exit_code == 1
    document = json.loads((tmp_path / "r.json").read_text())
    assert not document["passed"]
    assert document["checks"]["answers"]["differ"] > 0
    assert document["differences"][0]["guest_walk"]


def test_another_policy(trace: Trace, replay: Replay) -> None:
    result = replay(trace.path, "--policy", "zeroing=critical-path")
    assert result.exit_code == 0
    assert "replayed through xi (zeroing=critical-path), by what the guest did" in result.stdout
    assert "pool" not in {line.split()[0] for line in result.stdout.splitlines() if line}
    same = replay(trace.path, "--engine", "xi")
    assert "replayed through xi, as recorded" in same.stdout


def test_a_recorded_policy_is_kept(tmp_path: Path, replay: Replay) -> None:
    guest = RecordedGuest(tmp_path, options={"zeroing": "critical-path"})
    guest.access(PAGES[0], Access.LOAD)
    guest.checkpoint()
    result = replay(guest.save().path)
    assert result.exit_code == 0
    assert "with engine xi (zeroing=critical-path)" in result.stdout
    assert "replayed through xi (zeroing=critical-path), as recorded" in result.stdout


def test_an_engine_that_raises(trace: Trace, replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    break_engine(monkeypatch, broken.Gives)
    result = replay(trace.path)
    assert result.exit_code == 1
    assert "the engine raised IndexError: no entry for 0x" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--engine", "nobody"], "unknown engine 'nobody' (installed: "),
        (["--policy", "zeroing=never"], "unknown value 'never' of policy zeroing"),
        (["--policy", "zeroing"], "NAME=VALUE"),
        (["--stop-at", "100000"], "there is no event 100000: the trace has "),
        (["--stop-at", "-1"], "--stop-at"),
        (["--json", "/absent/r.json"], "/absent/r.json"),
    ],
)
def test_usage(arguments: list[str], complaint: str, trace: Trace, replay: Replay) -> None:
    result = replay(trace.path, *arguments)
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_an_engine_that_does_not_take_the_recorded_configuration(
    trace: Trace, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Picky(XiEngine):
        def __init__(self, *arguments: Any) -> None:
            raise ValueError("a pool of 256 frames is not enough for me")

    monkeypatch.setattr(engines, "engine_class", lambda name: Picky)
    break_engine(monkeypatch, Picky)
    result = replay(trace.path)
    assert result.exit_code == 2
    assert "is not enough for me" in result.stderr


def one_line(result: Result) -> str:
    """The complaint of a replay that could not be: one line, and nothing on stdout."""
    assert result.exit_code == 3
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return str(line)


def test_files_that_are_no_traces(trace: Trace, replay: Replay, tmp_path: Path) -> None:
    data = trace.path.read_bytes()
    bad = tmp_path / "bad"
    bad.write_text("hello\n")
    assert "no trace of xi-harness (`xi-harness run GUEST --record FILE` writes one)" in one_line(replay(bad))
    bad.write_bytes(b"")
    assert "no trace of xi-harness" in one_line(replay(bad))
    bad.write_bytes(data[:7] + b"\0" + data[8:])
    assert "a trace of version 0, and this xi-harness reads version 1: record it again" in one_line(replay(bad))
    bad.write_bytes(data[:60])
    assert "its header is damaged" in one_line(replay(bad))
    assert "No such file" in one_line(replay(tmp_path / "absent"))
    assert "Is a directory" in one_line(replay(tmp_path))


def test_a_trace_that_is_damaged_further_on(trace: Trace, replay: Replay, tmp_path: Path) -> None:
    data = bytearray(trace.path.read_bytes())
    data[-200] ^= 0x55
    bad = tmp_path / "bad"
    bad.write_bytes(data)
    result = replay(bad, "--json", tmp_path / "r.json")
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"xi-harness: {bad}: damaged at byte ")
    assert "from there on the trace is damaged" in result.stdout
    assert json.loads((tmp_path / "r.json").read_text())["damaged"]


def test_a_trace_that_is_cut_off(trace: Trace, replay: Replay, tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path, seed=2)
    for va in PAGES:
        guest.access(va, Access.STORE)
    guest.recorder.flush()
    cut = tmp_path / "cut.xitrace"
    cut.write_bytes(guest.recorder.path.read_bytes())
    result = replay(cut)
    assert result.exit_code == 0
    assert f"the trace is incomplete: it breaks off after event {len(PAGES)}" in result.stdout
    result = replay(cut, "--stop-at", 50)
    assert result.exit_code == 2
    assert f"there is no event 50: the trace has {len(PAGES) + 1}, numbered from 0" in " ".join(result.stderr.split())


def test_what_the_file_says_is_printed_and_not_obeyed(trace: Trace, replay: Replay, tmp_path: Path) -> None:
    text = b"\x1b[2Jevil"
    string = PACK[Kind.STRING](Kind.STRING, len(text)) + text
    event = PACK[Kind.EVENT](Kind.EVENT, 0, 0, 7, 0)
    hostile = with_records(trace, tmp_path / "hostile", string, event)
    result = replay(hostile.path, "--events", "--command", "events")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert result.stdout.count("\\x1b[2Jevil") >= 3


def test_a_long_replay_says_how_far_it_is(trace: Trace, monkeypatch: pytest.MonkeyPatch, replay: Replay) -> None:
    monkeypatch.setattr(cli_progress, "SILENT", 0.0)
    monkeypatch.setattr("harness.trace.running.LOOK_EVERY", 100)
    monkeypatch.setattr(cli_progress, "EVERY_LINE", 0.0)
    total = trace.end.events if trace.end else 0
    lines = replay(trace.path).stderr.splitlines()
    assert lines
    for line in lines:
        assert line.startswith("replayed ") and f" of {total} (" in line


def test_on_a_terminal_the_word_is_taken_back(trace: Trace) -> None:
    code = (
        "import sys; from harness import cli, cli_progress; cli_progress.SILENT = 0.0; cli_progress.EVERY = 0.0;"
        "import harness.trace.running as running; running.LOOK_EVERY = 100; cli.main()"
    )
    child = pexpect.spawn(
        sys.executable, ["-c", code, "replay", str(trace.path)], cwd=str(ROOT), encoding="utf-8", timeout=60
    )
    child.expect(r"\rreplayed \d+ of \d+ \(\d+ %\) events in 0 s")
    child.expect(r"\r\x1b\[K")
    child.expect("end of the trace")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_the_command_itself(trace: Trace) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", "replay", str(trace.path)],
        cwd=ROOT,
        env={**os.environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert "replayed through xi, as recorded" in done.stdout
