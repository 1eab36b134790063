"""The command from outside: exit statuses, report files, streams that go away, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pexpect
import pytest
from typer.testing import CliRunner

from harness import cli

ROOT = Path(__file__).resolve().parent.parent


def _command(runner: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.fake_cli", runner, *map(str, arguments)]


def _xi(runner: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(runner, *arguments),
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("runner", "status"), [("passes", 0), ("finds_a_mismatch", 1), ("has_no_qemu", 3), ("is_buggy", 3)]
)
def test_the_exit_status_says_how_it_went(runner: str, status: int, tmp_path: Path) -> None:
    done = _xi(runner, "run", "basic", "--paging", "pae", TMPDIR=str(tmp_path))
    assert done.returncode == status
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "nobody"], "unknown guest 'nobody'"),
        (["run", "basic", "--paging", "pea"], "unknown paging mode 'pea'"),
        (["run", "basic", "--json", "/absent/report.json"], "/absent/report.json"),
        (["run", "basic", "--junit", "/"], "/: is a directory"),
        (["run", "basic", "--time-limit", "nan"], "positive number"),
        (["run", "basic", "--jobs", "0"], "--jobs"),
        (["run", "--sede", "3"], "--sede"),
        (["run", "basic", "--mode", "love"], "'love' is not one of 'observe', 'live', 'both'"),
        (["run", "basic", "--policy", "zeroing=never"], "zeroing=idle|critical-path"),
        (["run", "basic", "--policy", "sneezing=idle"], "known: snapshots=reserved|dynamic"),
        (["run", "basic", "--policy", "zeroing"], "NAME=VALUE"),
        (["run", "basic", "--pool", "3"], "--pool"),
        (["run", "basic", "--stress"], "--stress goes with --mode live"),
        (["run", "--kernel", "bzImage", "--mode", "live"], "boot path does not fit the monitor"),
        (["run", "--record", "t"], "--record keeps the trace of one run"),
        (["run", "basic", "--paging", "pae", "--record", "t", "--no-record"], "exclude each other"),
        (["run", "basic", "--paging", "pae", "--record", "/absent/t"], "/absent/t"),
        (["rnu"], "rnu"),
    ],
)
def test_a_wrong_command_line_is_status_2_and_says_why(arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(("arguments", "folder"), [((), "tmp"), (("--logs", "logs"), "logs"), (("--no-record",), None)])
def test_failing_runs_keep_their_traces_beside_their_logs(
    arguments: tuple[str, ...], folder: str | None, tmp_path: Path
) -> None:
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    words = [word if word.startswith("--") else str(tmp_path / word) for word in arguments]
    report = tmp_path / "r.json"
    done = _xi("tells_its_options", "run", "basic", "--paging", "pae", *words, "--json", report, TMPDIR=str(tmp))
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(report.read_text())["runs"]
    assert run["reason"] == str(tmp_path / folder if folder else None)


def test_the_reports_tell_what_the_terminal_tells(tmp_path: Path) -> None:
    reports = [tmp_path / "r.json", tmp_path / "r.xml", tmp_path / "r.html"]
    done = _xi("passes", "run", "basic", "--json", reports[0], "--junit", reports[1], "--html", reports[2])
    assert done.returncode == 0
    runs = json.loads(reports[0].read_text())["runs"]
    assert [run["paging"] for run in runs] == ["nopae", "pae", "long4", "long5"]
    assert [case.get("name") for case in ElementTree.parse(reports[1]).iter("testcase")] == [
        run["paging"] for run in runs
    ]
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [["basic", run["paging"]] for run in runs]
    assert lines[-3].startswith("4 runs (4 pass), 4 as expected")


@pytest.mark.parametrize("mode", ["live", "both"])
def test_the_reports_tell_of_live_mode(mode: str, tmp_path: Path) -> None:
    reports = [tmp_path / "r.json", tmp_path / "r.xml", tmp_path / "r.html"]
    words = ["--mode", mode, "--stress", "--json", reports[0], "--junit", reports[1], "--html", reports[2]]
    done = _xi("runs_live", "run", "basic", "--paging", "pae", *words)
    assert done.returncode == 0
    (run,) = json.loads(reports[0].read_text())["runs"]
    assert run["mode"] == mode
    assert run["live"]["exits"] == {"exception_pf": 300, "cpuid": 2}
    (case,) = ElementTree.parse(reports[1]).iter("testcase")
    assert case.get("classname") == f"basic.{mode}"
    properties = {each.get("name"): each.get("value") for each in case.iter("property")}
    assert (properties["mode"], properties["live.exits"], properties["events.cpuid"]) == (mode, "302", "2")
    assert "exception_pf 300, cpuid 2" in reports[2].read_text()
    lines = done.stdout.splitlines()
    assert lines[1].split()[:4] == ["basic", "pae", mode, "pass"]
    (at,) = [number for number, line in enumerate(lines) if line.startswith("live mode")]
    assert lines[at + 1].split()[:4] == ["basic", "pae", "302", "40,000"]


def test_more_live_runs_than_the_cores_can_carry_are_warned_of_once() -> None:
    many = len(os.sched_getaffinity(0))
    done = _xi("passes", "run", "--all", "--mode", "live", "--jobs", many)
    assert done.returncode == 0
    assert done.stderr.startswith("xi-harness: ")
    assert done.stderr.count("\n") == 1
    assert ("one core" if many == 1 else f"--jobs {many}: a live run keeps 2 cores busy") in done.stderr
    assert _xi("passes", "run", "basic", "--jobs", many).stderr == ""


def test_help_shows_commands_to_paste(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_run_batch", lambda todo, *rest: 0 if todo else 2)
    shown = CliRunner().invoke(cli.app, ["run", "--help"], env={"COLUMNS": "120"}).stdout
    commands = [line.strip().split("  ")[0] for line in shown.splitlines() if line.strip().startswith("xi-harness run")]
    assert len(commands) >= 5
    for command in commands:
        done = CliRunner().invoke(cli.app, command.split()[1:])
        assert done.exit_code == 0, (command, done.output)


def test_json_on_stdout_is_nothing_but_json() -> None:
    done = _xi("passes", "run", "basic", "--paging", "pae", "--json", "-")
    assert json.loads(done.stdout)["runs"][0]["verdict"] == "pass"
    assert "1 run (1 pass)" in done.stderr


def test_an_ascii_terminal_and_no_colour_are_respected() -> None:
    done = _xi("finds_a_mismatch", "run", "basic", PYTHONIOENCODING="ascii", NO_COLOR="1", LC_ALL="C")
    assert done.returncode == 1
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout


def test_a_reader_that_goes_away_costs_nothing_but_the_text(tmp_path: Path) -> None:
    command = " ".join(_command("passes", "run", "--all", "--json", tmp_path / "r.json"))
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "r.json").read_text())["interrupted"] is False


def test_a_full_disk_under_stdout_is_one_line_and_status_3() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            _command("passes", "run", "basic"),
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr == "xi-harness: cannot write to standard output: No space left on device\n"


def test_a_report_on_a_full_disk_keeps_the_terminal_report() -> None:
    done = _xi("passes", "run", "basic", "--json", "/dev/full")
    assert done.returncode == 3
    assert "4 runs (4 pass)" in done.stdout
    assert done.stderr == "xi-harness: cannot write /dev/full: No space left on device\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly(number: signal.Signals, status: int, tmp_path: Path) -> None:
    logs, report = tmp_path / "logs", tmp_path / "r.json"
    command = _command("hangs_after_the_first", "run", "basic", "--logs", logs, "--jobs", "2", "--json", report)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while len(list(logs.glob("*"))) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert err == ""
    assert "interrupted: 3 of 4 runs were not finished" in out
    content = json.loads(report.read_text())
    assert content["interrupted"] is True
    assert [run["paging"] for run in content["runs"]] == ["nopae"]
    for mark in logs.iterdir():
        assert mark.read_text() == "reaped"
        with pytest.raises(ProcessLookupError):
            os.kill(int(mark.name), 0)


def test_ctrl_c_on_a_terminal_gives_the_terminal_back(tmp_path: Path) -> None:
    command = _command("hangs_after_the_first", "run", "basic", "--logs", tmp_path / "logs", "--jobs", "2")
    child = pexpect.spawn(command[0], command[1:], cwd=str(ROOT), timeout=60, encoding="utf-8", dimensions=(24, 120))
    child.expect("1 of 4 runs done")
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "logs").glob("*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    child.sendintr()
    child.expect("interrupted: 3 of 4 runs were not finished")
    child.expect(pexpect.EOF)
    shown = (child.before or "") + str(child.after)
    child.close()
    assert child.exitstatus == 130
    assert "Traceback" not in shown


def test_list_shows_guests_and_modes() -> None:
    rows = json.loads(_xi("passes", "list", "--json").stdout)["guests"]
    assert "basic" in [row["name"] for row in rows]
    lines = _xi("passes", "list").stdout.splitlines()
    assert lines[0].split() == ["guest", "nopae", "pae", "long4", "long5", "description"]
    assert len(lines) == len(rows) + 1


def test_a_dry_run_of_both_prints_a_machine_for_each_leg() -> None:
    native, live = _xi("is_buggy", "run", "basic", "--paging", "pae", "--mode", "both", "--dry-run").stdout.splitlines()
    assert " -m 32M " in native
    assert " -m 32M " not in live, "the monitor, the pool and the frames to spare need room too"
    assert _xi("is_buggy", "run", "basic", "--paging", "pae", "--mode", "live", "--dry-run").stdout == live + "\n"


def test_a_dry_run_prints_the_command_and_runs_nothing() -> None:
    done = _xi("is_buggy", "run", "basic", "--paging", "pae", "--dry-run")
    assert done.returncode == 0
    assert "qemu-system-x86_64" in done.stdout
    assert "-bios" in done.stdout


def test_doctor_speaks_json() -> None:
    done = _xi("passes", "doctor", "--json")
    content = json.loads(done.stdout)
    assert done.returncode == (0 if content["ok"] else 3)
    assert {finding["status"] for finding in content["findings"]} <= {"ok", "missing", "absent"}
