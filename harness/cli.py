"""The command `xi-harness`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Final, NoReturn, TextIO

import typer
from rich.text import Text

from harness import __version__, cli_options, jobs
from harness.batch import Batch
from harness.cli_compare import compare
from harness.cli_debug import debug
from harness.cli_migrate import migrate
from harness.cli_outputs import STDOUT, Writer, make_folder, must_be_writable, outputs, write_json
from harness.cli_replay import replay
from harness.cores import Shares, share_cores
from harness.machine.errors import MachineError
from harness.options import MODES, Mode, RunOptions, parse_policies
from harness.report import json_file
from harness.report.error_log import keep_traceback
from harness.report.live import observer
from harness.report.stdout import tolerant_stdout
from harness.report.summary import ExitStatus, exit_status
from harness.report.terminal import catalogue_lines, make_console, print_report
from harness.report.text import one_line, printable

RUNNER: jobs.Runner = jobs.run_job  # what a worker does with a job

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Boots tiny x86 guests in QEMU, keeps XI shadow page tables for them, and checks every translation "
    "against the real MMU, beside the guest (observe mode) or with the guest running on them (live mode). "
    "Exit status: 0 every run ended as expected, 1 a check failed, 2 usage, 3 a machine could not be run or was lost, "
    "130 interrupted.",
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"xi-harness {__version__}")
        raise typer.Exit(0)


@app.command()
def run(
    guests: Annotated[list[str] | None, typer.Argument(metavar="[GUEST]...", help="Guests of the catalogue.")] = None,
    paging: cli_options.Paging = None,
    every: Annotated[bool, typer.Option("--all", help="Every guest in every mode it is built for.")] = False,
    as_tour: Annotated[bool, typer.Option("--tour", help="Each guest once (what a bare `run` does).")] = False,
    mode: Annotated[
        Mode,
        typer.Option(
            help="observe: the guest runs on its own page tables, what it does is intercepted over the gdbstub, and "
            "shadow tables are kept beside them. live: it runs on the shadow tables, under a small monitor, and they "
            "are filled as it faults; needs a QEMU that emulates SVM, and two cores a run. both: a native and a live "
            "run of the same guest, compared."
        ),
    ] = Mode.OBSERVE,
    kernel: cli_options.Kernel = None,
    append: cli_options.Append = None,
    initrd: cli_options.Initrd = None,
    memory: cli_options.Memory = None,
    cpu: cli_options.Cpu = None,
    seed: cli_options.Seed = 1,
    engine: cli_options.Engine = "xi",
    policy: cli_options.Policy = None,
    pool: cli_options.Pool = None,
    stress: cli_options.Stress = False,
    time_limit: cli_options.TimeLimit = None,
    workers: Annotated[
        int | None,
        typer.Option("--jobs", min=1, max=256, metavar="N", help="Runs at a time (live: two cores each)."),
    ] = None,
    json_path: cli_options.Json = None,
    junit_path: Annotated[Path | None, typer.Option("--junit", metavar="F", help="Write a JUnit XML report.")] = None,
    html_path: Annotated[Path | None, typer.Option("--html", metavar="F", help="Write an HTML report.")] = None,
    logs: cli_options.Logs = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Record the run into FILE, for `xi-harness replay`: one run only; in mode both its live leg.",
        ),
    ] = None,
    no_record: Annotated[
        bool,
        typer.Option("--no-record", help="Do not record; without this a failing run's trace is kept beside its logs."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print QEMU's command lines; run nothing.")] = False,
) -> None:
    """Run guests and check them; without a GUEST, the tour of all of them.

    \b
    xi-harness run basic perm --paging pae     two guests in one paging mode
    xi-harness run --mode live                 the tour, on the shadow tables themselves
    xi-harness run churn --mode live --stress  with frames moving under the guest
    xi-harness run churn --mode live --pool 40 --policy zeroing=critical-path
    xi-harness run --all --mode both --json r.json
    """
    from harness.plan import plan  # noqa: PLC0415 - numpy and QMP, which `--help` can do without

    if record is not None and no_record:
        raise typer.BadParameter("--record and --no-record exclude each other", param_hint="--record")
    try:
        options = RunOptions(
            seed=seed,
            engine=engine,
            time_limit=time_limit,
            log_dir=logs,
            kernel=kernel,
            append=append,
            initrd=initrd,
            memory_mib=memory,
            cpu=cpu,
            mode=mode.value,
            policies=parse_policies(policy or []),
            pool_spti=pool,
            stress=stress,
            record=record,
            keep_traces=None if no_record else logs or Path(tempfile.gettempdir()),
        )
        todo = plan(guests or [], paging or [], options, every, as_tour)
    except ValueError as error:
        raise typer.BadParameter(one_line(str(error)), param_hint="run") from error
    if dry_run:
        _print_commands(todo)
        return
    if record is not None:
        must_be_writable(record, "--record")
    files = outputs(json_path, junit_path, html_path)
    if logs is not None:
        make_folder(logs)
    shares = share_cores(len(todo), options.monitored, workers, os.sched_getaffinity(0))
    if shares.warning:
        _complain(shares.warning)
    raise typer.Exit(_run_batch(todo, shares, files, sys.stderr if json_path == STDOUT else sys.stdout))


def _run_batch(todo: Sequence[jobs.Job], shares: Shares, files: dict[str, Writer], stream: TextIO) -> int:
    console = make_console(stream)
    batch = Batch(todo, shares.workers, RUNNER, shares.cores)
    began = time.monotonic()
    stopped = 0
    try:
        with observer(console, len(todo)) as watching:
            batch.run(watching)
    except Interrupted as interrupt:
        stopped = interrupt.number
    records = batch.records
    print_report(console, records, time.monotonic() - began)
    status: int = exit_status(records)
    if stopped:
        console.print(Text(f"interrupted: {len(todo) - len(records)} of {len(todo)} runs were not finished"))
        status = 128 + stopped
    for name, write in files.items():
        try:
            write(records, bool(stopped))
        except OSError as error:
            _complain(f"cannot write {name}: {error.strerror or error}")
            status = status or ExitStatus.MACHINE
    return status


def _print_commands(todo: Sequence[jobs.Job]) -> None:
    from harness.runs import command_lines  # noqa: PLC0415 - numpy and QMP

    for job in todo:
        for command in command_lines(job.guest, job.paging, job.options):
            typer.echo(shlex.join(command))


@app.command("list")
def list_guests(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """The catalogue: guests, paging modes, and the verdict that each must end with, in whichever --mode it is run."""
    from harness.catalogue import load_catalogue  # noqa: PLC0415 - `--help` need not read the catalogue
    from harness.x86.modes import PAGED_MODES  # noqa: PLC0415

    try:
        guests = list(load_catalogue().values())
    except ValueError as error:
        raise typer.BadParameter(one_line(str(error)), param_hint="catalogue") from error
    if as_json:
        rows = [
            {
                "name": guest.name,
                "description": guest.description,
                "modes": {mode: guest.expected_for(mode) for mode in guest.modes},
                "memory_mib": guest.memory_mib,
                "time_limit": guest.time_limit,
                "tags": list(guest.tags),
            }
            for guest in guests
        ]
        typer.echo(json.dumps({"schema": 1, "run_modes": MODES, "guests": rows}, indent=1))
        return
    for line in catalogue_lines(guests, [mode.name for mode in PAGED_MODES]):
        typer.echo(line)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """What is installed, what is missing, and what that means. Exit status 3 if runs are impossible."""
    from harness import doctor as examination  # noqa: PLC0415 - shares its name with this command

    findings = examination.examine()
    if as_json:
        typer.echo(json.dumps(examination.to_json(findings), indent=1))
    else:
        for finding in findings:
            typer.echo(f"{finding.status:8} {finding.name:12} {finding.found}".rstrip())
            if finding.means:
                typer.echo(f"{'':8} {'':12} {finding.means}")
    raise typer.Exit(examination.exit_status(findings))


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Figures to measure.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", metavar="F", help="Write the figures as JSON.")] = None,
    show: Annotated[bool, typer.Option("--list", help="The names of the figures.")] = False,
) -> None:
    """Measure the harness itself; figures are ratios, the raw numbers stand beside them."""
    from harness import bench as benches  # noqa: PLC0415 - numpy and QMP

    if show:
        for name, text in benches.FIGURES.items():
            typer.echo(f"{name:24} {text}")
        return
    if json_path is not None and json_path != STDOUT:
        outputs(json_path, None, None)
    try:
        result = benches.run_bench(names or None)
    except ValueError as error:
        raise typer.BadParameter(one_line(str(error)), param_hint="bench") from error
    if json_path != STDOUT:
        for name, value in result["figures"].items():
            typer.echo(f"{name:32} {value:>14,.3f}" if isinstance(value, float) else f"{name:32} {value!s:>14}")
    if json_path is not None:
        try:
            write_json(json_path, json_file.plain(result))
        except OSError as error:
            _complain(f"cannot write {json_path}: {error.strerror or error}")
            raise typer.Exit(ExitStatus.MACHINE) from error


app.command()(compare)
app.command()(debug)
app.command()(migrate)
app.command()(replay)


@app.command()
def decisions() -> None:
    """Print the XI engine's decision table."""
    from harness.xi import decision  # noqa: PLC0415 - only this command reads it

    typer.echo(decision.text())


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived. number: the signal's. Like KeyboardInterrupt, no Exception."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)  # the cleaning up that follows has its own deadlines
    raise Interrupted(number)


def _complain(message: str) -> None:
    print(f"xi-harness: {message}", file=sys.stderr)


def main() -> NoReturn:
    """The console script: runs the command and ends the process. No traceback gets past here."""
    stdout = tolerant_stdout()
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, _interrupt)
    status = _guarded()
    stdout.flush()
    if stdout.error is not None and not stdout.closed_early:
        _complain(f"cannot write to standard output: {stdout.error.strerror}")
        status = status or ExitStatus.MACHINE
    raise SystemExit(int(status))


def _guarded() -> int:
    try:
        app(prog_name="xi-harness")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Interrupted as interrupt:
        return 128 + interrupt.number
    except MachineError as error:
        _complain(printable(str(error)))
        return ExitStatus.MACHINE
    except Exception as error:
        _complain(keep_traceback(error, traceback.format_exc()))
        return ExitStatus.MACHINE
    return 0


if __name__ == "__main__":
    main()
