"""`xi-harness compare` from outside: what it says, writes and ends with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pexpect
import pytest
from typer.testing import CliRunner, Result

from harness import cli, cli_progress
from harness.compare import plan, runner
from harness.engine import EngineConfig, MachineMemory, ShadowEngine
from harness.xi.engine import XiEngine
from tests.compare.fakes import Plain

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--workload", "fork:spaces=1,tables=1,fill=16,rounds=1", "--rounds", "1")
LONG = ("--workload", "dirty:rounds=100000", "--rounds", "1")
Compare = Callable[..., Result]


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Compare:
    monkeypatch.setenv("COLUMNS", "160")
    invoking = CliRunner()

    def run(*arguments: object) -> Result:
        result = invoking.invoke(cli.app, ["compare", *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def install(monkeypatch: pytest.MonkeyPatch, **engines: Any) -> None:
    """As if `engines` were plugged in by entry points, beside xi."""
    known = {"xi": XiEngine, **engines}
    for module in (plan, runner):
        monkeypatch.setattr(module, "engine_class", known.__getitem__)
    monkeypatch.setattr(plan, "find_engine", known.__getitem__)


class Wrong(XiEngine):
    """It maps nothing, and says that it has."""

    def shadow_fault(self, va: int, access: int) -> int:
        return -1


def silent(config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
    """A function that makes engines: nobody sees in it that they tell of their work."""
    return XiEngine(config, memory)


def test_a_comparison_of_all_four(compare: Compare, tmp_path: Path) -> None:
    result = compare(*SMALL, "--json", tmp_path / "c.json")
    assert result.exit_code == 0
    assert result.stdout.startswith("xi, xen302, kvm, eager, 4 measurements in ")
    for title in ("Operations (", "All that was asked of each engine", "headline: “a page fault is 4 times faster"):
        assert title in result.stdout
    document = json.loads((tmp_path / "c.json").read_text())
    assert {"fault.time_ratio.xen302", "fault.work_ratio.kvm", "make_shadow.calls.xi"} <= document["figures"].keys()
    assert document["verdicts"][0]["topic"] == "headline" and not document["interrupted"]
    assert document["command"].startswith("xi-harness")


def test_json_on_stdout_is_nothing_but_json(compare: Compare) -> None:
    result = compare(*SMALL, "--engines", "xi,kvm", "--json", "-")
    document = json.loads(result.stdout)
    assert [one["label"] for one in document["measurements"]] == ["xi", "kvm"]
    assert "Operations (" in result.stderr


def test_the_page_and_its_pictures(compare: Compare, tmp_path: Path) -> None:
    result = compare(*SMALL, "--engines", "xi,kvm", "--html", tmp_path / "c.html", "--pictures", tmp_path / "pictures")
    assert result.exit_code == 0
    page = (tmp_path / "c.html").read_text()
    assert page.startswith("<!doctype html>") and "<svg" in page and "headline" in page
    drawn = list((tmp_path / "pictures").iterdir())
    assert drawn and all(path.suffix == ".svg" and path.read_text().startswith("<svg") for path in drawn)


def test_policies_are_columns(compare: Compare) -> None:
    result = compare(*SMALL, "--engines", "xi", "--policy", "snapshots=dynamic", "--policy", "backlinks=none")
    assert result.exit_code == 0
    heading = next(line for line in result.stdout.splitlines() if "defaults" in line and line.startswith("operation"))
    assert heading.split() == ["operation", "on", "defaults", "snapshots=dynamic", "backlinks=none"]
    assert "xi backlinks=none: “" in result.stdout


def test_an_engine_that_is_plugged_in_and_tells_nothing(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, silent=silent)
    result = compare(*SMALL, "--engines", "xi,silent")
    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if " silent " in line)
    _, _, label, calls, words, most, pages, p50, *_ = row.split()
    assert (label, words, most, pages) == ("silent", "-", "-", "-")
    assert int(calls.replace(",", "")) > 0 and float(p50) > 0
    assert "(it tells nothing of its work)" in result.stdout


def test_a_wrong_engine_is_not_measured_and_status_1(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, wrong=Wrong)
    result = compare(*SMALL, "--engines", "xi,wrong")
    assert result.exit_code == 1
    assert "WRONG: wrong on fork:spaces=1,tables=1,fill=16,rounds=1: " in result.stdout
    assert "faults again and again" in result.stdout
    assert result.stdout.startswith("xi, 1 measurements in ")


def test_an_engine_that_is_no_engine_is_told_with_what_it_lacks(
    compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, plain=Plain)
    result = compare(*SMALL, "--engines", "plain")
    assert result.exit_code == 1
    assert "WRONG: plain on " in result.stdout and "AttributeError" in result.stdout


def test_the_list_of_workloads(compare: Compare) -> None:
    result = compare("--workload", "list")
    assert result.exit_code == 0
    assert result.stdout.startswith("faults ")
    assert "trace:GUEST/MODE" in result.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--engines", "xi,xen"), "unknown engine 'xen' (installed: "),
        (("--policy", "colour=red"), "unknown policy 'colour' (known: snapshots=reserved|dynamic; "),
        (("--workload", "fautls"), "unknown workload 'fautls' (known: faults, mappings, "),
        (("--workload", "faults:spases=2"), "unknown knob 'spases' (the knobs are spaces, tables, "),
        (("--html", "/nowhere/c.html"), "no such folder"),
        (("--json", "/nowhere/c.json"), "no such folder"),
        (("--pictures", "/proc/pictures"), "/proc/pictures: "),
        (("--rounds", "0"), "'--rounds'"),
    ],
)
def test_a_wrong_command_line_is_status_2_and_says_why(
    compare: Compare, words: tuple[str, ...], complaint: str
) -> None:
    result = compare(*words)
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_a_file_that_is_no_trace_is_status_3(compare: Compare, tmp_path: Path) -> None:
    (tmp_path / "some.file").write_bytes(b"nothing")
    result = compare("--workload", f"trace:{tmp_path / 'some.file'}")
    assert result.exit_code == 3
    assert result.stderr.startswith("xi-harness: ") and result.stderr.count("\n") == 1


def test_help_shows_commands_to_paste(compare: Compare) -> None:
    shown = compare("--help").stdout
    commands = [line.strip() for line in shown.splitlines() if line.strip().startswith("xi-harness compare")]
    assert len(commands) >= 5
    for command in commands:
        words = command.split("  ")[0].split()[2:]
        asked = dict(pairwise(words))
        engines = asked.get("--engines", ",".join(plan.ENGINES)).split(",")
        workloads = [asked["--workload"]] if "--workload" in asked else []
        policies = [asked["--policy"]] if "--policy" in asked else []
        assert plan.make_plan(plan.Request(engines, workloads, policies, quick="--quick" in words)).cases


def test_a_long_comparison_says_how_far_it_is(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_progress, "SILENT", 0.0)
    monkeypatch.setattr(cli_progress, "EVERY_LINE", 0.0)
    monkeypatch.setattr(cli_progress, "LOOK_EVERY", 0.001)
    lines = compare(*SMALL, "--engines", "xi").stderr.splitlines()
    assert [line for line in lines if re.fullmatch(r"\d+ s, run [123] of 3: fork:\S+ through xi", line)]


def _command(*words: object) -> list[str]:
    return [sys.executable, "-m", "harness", "compare", *map(str, words)]


def _talkative(*words: object) -> list[str]:
    """The command, saying all the time how far it is."""
    code = (
        "from harness import cli, cli_progress as told; told.SILENT = told.EVERY = told.EVERY_LINE = 0.0;"
        "told.LOOK_EVERY = 0.01; cli.main()"
    )
    return [sys.executable, "-c", code, "compare", *map(str, words)]


def _xi(*words: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*words), cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120, check=False, **more
    )


def test_a_full_disk_under_stdout_is_one_line_and_status_3() -> None:
    with open("/dev/full", "w") as full:
        done = _xi(*SMALL, "--engines", "xi", stdout=full)
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    assert last == "xi-harness: cannot write to standard output: No space left on device"
    assert "Traceback" not in done.stderr


def test_reports_on_a_full_disk_keep_what_the_terminal_shows() -> None:
    words = ("--engines", "xi", "--json", "/dev/full", "--html", "/dev/full")
    done = _xi(*SMALL, *words, stdout=subprocess.PIPE)
    assert done.returncode == 3
    assert "Operations (" in done.stdout
    assert done.stderr.count("xi-harness: cannot write /dev/full: No space left on device\n") == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_what_was_measured_is_told(number: signal.Signals, status: int, tmp_path: Path) -> None:
    report = tmp_path / "c.json"
    command = _talkative(*SMALL, *LONG, "--engines", "xi", "--json", report)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "dirty:rounds=100000 through xi" in line:
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert "interrupted: 1 of 2 workloads were not measured" in out
    document = json.loads(report.read_text())
    assert document["interrupted"] is True
    assert [one["workload"] for one in document["measurements"]] == [SMALL[1]]


def test_ctrl_c_on_a_terminal_gives_the_terminal_back() -> None:
    command = _talkative(*LONG, "--engines", "xi")
    child = pexpect.spawn(command[0], command[1:], cwd=str(ROOT), timeout=60, encoding="utf-8", dimensions=(24, 120))
    child.expect(r"\r\d+ s, run 1 of 3: dirty:rounds=100000 through xi")
    child.sendintr()
    child.expect(r"\r\x1b\[K")
    child.expect("interrupted: 1 of 1 workloads were not measured")
    child.expect(pexpect.EOF)
    shown = (child.before or "") + str(child.after)
    child.close()
    assert child.exitstatus == 130
    assert "Traceback" not in shown
