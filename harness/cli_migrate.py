"""The command `migrate`: one guest, moved from one machine to another while it runs."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from harness import cli_options
from harness.cli_outputs import STDOUT, make_folder, outputs, write_json
from harness.cores import share_cores
from harness.options import Mode, RunOptions
from harness.report import json_file
from harness.report.summary import ExitStatus, exit_status
from harness.report.terminal import heading, make_console, print_report, row
from harness.report.text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.migration.report import MigrationReport
    from harness.report.record import RunRecord


def migrate(
    guest: Annotated[str, typer.Argument(metavar="GUEST", help="A guest of the catalogue.")],
    paging: cli_options.Paging = None,
    seed: cli_options.Seed = 1,
    after: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="Begin after this checkpoint: its name, or its number from 1."),
    ] = None,
    exits: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Begin N exits of the guest after that, or after its entry.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds-limit", min=1, metavar="N", help="Rounds of copying at most.")] = 30,
    threshold: Annotated[
        int, typer.Option(min=0, metavar="N", help="So few dirty frames are copied while the guest stands.")
    ] = 32,
    rate: Annotated[
        float, typer.Option(min=0, metavar="MIB", help="MiB a second copied while the guest runs; 0: no limit.")
    ] = 256.0,
    engine: cli_options.Engine = "xi",
    time_limit: cli_options.TimeLimit = None,
    json_path: cli_options.Json = None,
    logs: cli_options.Logs = None,
) -> None:
    """Run a guest in live mode and move it to a second QEMU while it runs.

    Its memory is copied in rounds by the engine's dirty log, compared frame by frame when the guest stands, and the
    guest goes on from the copy, with the first machine's memory poisoned and its QEMU ended. Without --after and
    --exits the seed says when. Exit status as `run`.

    \b
    xi-harness migrate churn --paging long4
    xi-harness migrate switch --after 3 --threshold 4 --rate 64
    """
    from harness.migration.precopy import Limits  # noqa: PLC0415
    from harness.migration.run import MigrationPlan, run_migration  # noqa: PLC0415 - numpy, QMP and all the rest
    from harness.plan import plan  # noqa: PLC0415

    options = RunOptions(seed=seed, engine=engine, time_limit=time_limit, log_dir=logs, mode=Mode.LIVE.value)
    try:
        jobs = plan([guest], paging or [], options)
        wanted = MigrationPlan(_checkpoint(after), exits, Limits(rounds=rounds, threshold=threshold, rate=rate))
    except ValueError as error:
        raise typer.BadParameter(one_line(str(error)), param_hint="migrate") from error
    outputs(json_path, None, None)
    if logs is not None:
        make_folder(logs)
    console = make_console(sys.stderr if json_path == STDOUT else sys.stdout)
    if warning := share_cores(1, True, 1, os.sched_getaffinity(0)).warning:
        print(f"xi-harness: {warning}", file=sys.stderr)
    began = time.monotonic()
    records: list[RunRecord] = []
    reports: list[MigrationReport] = []
    for job in jobs:
        assert job.guest is not None  # a kernel was not asked for
        record, report = run_migration(job.guest, job.paging, job.options, wanted)
        records.append(record)
        reports.append(report)
        for text in (Text(f"{report.guest} {report.paging}", style="bold"), *map(Text, report.lines())):
            console.print(text, soft_wrap=True)
        console.print()
    console.print(heading())
    for record in records:
        console.print(row(record))
    print_report(console, records, time.monotonic() - began)
    if json_path is not None:
        write_json(json_path, _document(records, reports))
    status = exit_status(records)
    if status is ExitStatus.OK and not all(report.done for report in reports):
        status = ExitStatus.CHECK_FAILED
    raise typer.Exit(int(status))


def _checkpoint(text: str | None) -> str | int | None:
    return int(text) if text is not None and text.isdecimal() else text


def _document(records: Sequence[RunRecord], reports: Sequence[MigrationReport]) -> dict[str, Any]:
    """The report of `run`, and under ``migrations`` what there is to say of each run's migration, in the same order."""
    return json_file.document(records) | {"migrations": json_file.plain([report.to_json() for report in reports])}
