"""The command `compare`: XI against its peers, on the same workloads in one run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from harness.cli_outputs import STDOUT, make_folder, must_be_writable, write_json
from harness.cli_progress import telling
from harness.report import json_file
from harness.report.summary import ExitStatus
from harness.report.terminal import make_console
from harness.report.text import one_line

if TYPE_CHECKING:
    from harness.compare.measurement import Comparison
    from harness.compare.plan import Plan
    from harness.compare.run import Run

LIST: Final = "list"
Write = Callable[[Path, "Comparison"], None]
"""Writes a comparison to a file. Raises OSError."""


def compare(
    engines: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="The engines to compare, ratios to xi, or to the first without it. xi; xen302, the shadow page tables "
            "of Xen 3.0.2 (mid-2006); kvm, those of Linux; eager, which rebuilds all at each CR3 load; and any that is "
            "installed with an entry point of the group xi_harness.engines. Without this these four.",
        ),
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:KNOB=VALUE,…]",
            help="What to give them to do; may be repeated. NAME alone: in all its sizes; with knobs: that one. "
            "'list' prints the names and their knobs. trace:FILE replays a recorded run; trace:GUEST/MODE, such as "
            "trace:churn/long4, records that guest first. domains: a quiet domain beside a greedy one. Without this "
            "all there are.",
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE[,…]",
            help="Compare the engines that know it under this policy too, such as backlinks=none; may be repeated, "
            "each a column of its own. Without this and without --workload, all that XI knows, one at a time.",
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100,
            metavar="N",
            help="How often each time is taken, the engines in turns; each call's fastest counts. More on a noisy "
            "machine; counts need no second round.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small guests, one round: half a minute.")] = False,
    json_path: Annotated[
        Path | None,
        typer.Option("--json", metavar="F", help="Write figures by name, verdicts and all measurements; - is stdout."),
    ] = None,
    html_path: Annotated[
        Path | None, typer.Option("--html", metavar="F", help="Write one page with tables and plots, in one file.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each plot of the page into this folder, as NAME.svg.")
    ] = None,
) -> None:
    """Compare XI with other shadow engines: what each operation costs, how that grows, and what follows.

    Every engine is given the same work in the same run: guests with page tables of their own in plain memory, whose
    hardware walks the engine's shadow and faults as in live mode; no QEMU is needed but to record a trace. An engine
    that translates wrongly is shown as wrong and not measured.

    The first result is work, in words of tables touched (SPTEs visited and written, guest entries compared, words
    zeroed or copied), and pages allocated: exact, the same in every run. The second is time, that of Python, which
    means something only as a ratio of two engines in one run. Figures are named as in fault.time_ratio.xen302: the
    time of xen302 for its shadow faults by that of xi, on the same workload.

    Exit status: 0 all was measured, 1 an engine's answers were wrong, 2 usage, 3 nothing could be measured or a file
    not written.

    \b
    xi-harness compare                                      all of it, some four minutes
    xi-harness compare --quick --html compare.html
    xi-harness compare --engines xi,xen302 --workload faults
    xi-harness compare --workload promote:tables=64 --policy backlinks=none
    xi-harness compare --workload trace:churn/long4 --json -
    """
    from harness.compare.plan import ENGINES, Request, make_plan, workload_lines  # noqa: PLC0415 - numpy

    words = workload or []
    if LIST in words:
        for line in workload_lines():
            typer.echo(line)
        return
    for path in (json_path, html_path):
        if path is not None and not (path == STDOUT and path is json_path):
            must_be_writable(path, "report file")
    if pictures is not None:
        make_folder(pictures, "--pictures")
    from harness.trace.reader import TraceError  # noqa: PLC0415

    try:
        names = ENGINES if engines is None else [name.strip() for name in engines.split(",") if name.strip()]
        plan = make_plan(Request(names, words, policy or [], rounds, quick))
    except ValueError as error:
        raise typer.BadParameter(one_line(str(error)), param_hint="compare") from error
    except TraceError as error:
        print(f"xi-harness: {one_line(str(error))}", file=sys.stderr)
        raise typer.Exit(ExitStatus.MACHINE) from error
    running, interrupt = _run(plan)
    comparison = running.comparison(interrupted=interrupt is not None)
    files = ((json_path, _write_json), (html_path, _write_page), (pictures, _write_pictures))
    status = _report(comparison, plan, running, files)
    if interrupt is not None:
        raise interrupt
    raise typer.Exit(status)


def _run(plan: Plan) -> tuple[Run, BaseException | None]:
    """Measures, and says how far it is when it takes long. The second: why it was ended early, if it was."""
    from harness.compare.run import Run  # noqa: PLC0415

    at = "it begins"

    def watch(label: str, title: str, number: int, of: int) -> None:
        nonlocal at
        at = f"run {number:,} of {of:,}: {title} through {label}"

    running = Run(plan, shlex.join(["xi-harness", *sys.argv[1:]]), watch)
    try:
        with telling(lambda seconds: f"{seconds:.0f} s, {at}"):
            running.run()
    except Exception:
        raise
    except BaseException as interrupt:  # a signal: what was measured until then is told
        return running, interrupt
    return running, None


def _report(comparison: Comparison, plan: Plan, running: Run, files: Sequence[tuple[Path | None, Write]]) -> ExitStatus:
    """Prints and writes it. The exit status."""
    from harness.compare.terminal import print_comparison  # noqa: PLC0415

    console = make_console(sys.stderr if STDOUT in [path for path, _ in files] else sys.stdout)
    print_comparison(console, comparison)
    if comparison.interrupted:
        left = len(plan.cases) - running.cases
        console.print(f"interrupted: {left} of {len(plan.cases)} workloads were not measured")
    status = ExitStatus.OK
    if any(one.wrong for one in comparison.left):
        status = ExitStatus.CHECK_FAILED
    elif not comparison.measurements and not comparison.domains:
        status = ExitStatus.MACHINE
    for path, write in files:
        if path is not None:
            try:
                write(path, comparison)
            except OSError as error:
                print(f"xi-harness: cannot write {path}: {error.strerror or error}", file=sys.stderr)
                status = status or ExitStatus.MACHINE
    return status


def _write_json(path: Path, comparison: Comparison) -> None:
    from harness.compare.figures import document  # noqa: PLC0415

    write_json(path, json_file.plain(document(comparison)))


def _write_page(path: Path, comparison: Comparison) -> None:
    from harness.compare.page import write_page  # noqa: PLC0415 - jinja2 and matplotlib

    write_page(comparison, path)


def _write_pictures(folder: Path, comparison: Comparison) -> None:
    from harness.compare.plots import pictures  # noqa: PLC0415 - matplotlib
    from harness.report.output_file import write_atomic  # noqa: PLC0415

    for picture in pictures(comparison):
        write_atomic(folder / f"{picture.name}.svg", picture.svg)
