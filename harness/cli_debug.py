"""The command `debug`: one guest, with gdb beside XI."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from harness import cli_options
from harness.cli_outputs import STDOUT, make_folder, outputs
from harness.cores import share_cores
from harness.machine.errors import MachineUnavailable
from harness.options import Mode, RunOptions, parse_policies
from harness.report.summary import ExitStatus, exit_status
from harness.report.terminal import heading, make_console, print_report, row
from harness.report.text import one_line, printable

WAIT_SECONDS = 600.0  # for a gdb to come


def debug(
    guest: Annotated[
        str | None, typer.Argument(metavar="[GUEST]", help="A guest of the catalogue, or an ELF file.")
    ] = None,
    paging: Annotated[str | None, typer.Option(metavar="MODE", help="nopae, pae, long4 or long5.")] = None,
    mode: Annotated[
        Mode, typer.Option(help="observe: on the guest's own tables. live: on the shadow tables.")
    ] = Mode.OBSERVE,
    stop_at: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="Where gdb gets the guest first: the number of an event (as reports number them: once it was "
            "handled), the name of a checkpoint, or `mismatch`. Without it at the guest's entry.",
        ),
    ] = None,
    gdb: Annotated[bool, typer.Option("--gdb", help="Start gdb in this terminal.")] = False,
    wait: Annotated[float, typer.Option(min=1.0, metavar="S", help="How long a gdb is waited for.")] = WAIT_SECONDS,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not check at checkpoints.")] = False,
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
    json_path: cli_options.Json = None,
    logs: cli_options.Logs = None,
) -> None:
    """Run a guest with gdb and XI side by side.

    It prints the gdb command to paste: a stock gdb, with the guest's symbols. In gdb `xi help` (or `monitor xi help`)
    lists what XI tells: walks of guest, shadow and hardware, ranges, backlinks, snapshots, decisions, events. The
    harness goes on intercepting and checking; its own stops are not shown, and `detach` lets the run go on to its
    verdict. The run's time limit does not tick while you look. Exit status as `run`; 0 after `kill`.

    \b
    xi-harness debug basic --paging long4 --gdb
    xi-harness debug churn --mode live --stop-at 1234
    xi-harness debug perm --paging pae --stop-at mismatch --seed 7
    xi-harness debug --kernel vmlinuz --append console=ttyS0
    """
    from harness.debug_job import debug_job  # noqa: PLC0415 - numpy, QMP and all the rest
    from harness.debug_run import StopAt  # noqa: PLC0415
    from harness.plan import plan  # noqa: PLC0415

    if mode is Mode.BOTH:
        raise typer.BadParameter("observe or live: mode both is two runs", param_hint="--mode")
    if guest is None and kernel is None:
        raise typer.BadParameter("name a guest (`xi-harness list`), or a --kernel", param_hint="debug")
    try:
        where = StopAt.parse(stop_at)
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
            keep_traces=logs or Path(tempfile.gettempdir()),  # the session's own past, too, comes from its trace
        )
        job = plan([guest] if guest else [], [paging] if paging else [], options)[0]
    except ValueError as error:
        raise typer.BadParameter(one_line(str(error)), param_hint="debug") from error
    files = outputs(json_path, None, None)
    if logs is not None:
        make_folder(logs)
    console = make_console(sys.stderr if json_path == STDOUT else sys.stdout)
    if warning := share_cores(1, options.monitored, 1, os.sched_getaffinity(0)).warning:
        print(f"xi-harness: {warning}", file=sys.stderr)
    began = time.monotonic()
    with _terminal(console, gdb) as (say, invite):
        record, killed = debug_job(job, where, say, invite, wait, checked=not no_check)
    if not killed:
        console.print(heading())
        console.print(row(record))
        print_report(console, [record], time.monotonic() - began)
    for write in files.values():
        write([record], killed)
    raise typer.Exit(int(ExitStatus.OK if killed else exit_status([record])))


@contextmanager
def _terminal(console: Console, own: bool) -> Iterator[tuple[Callable[[str], None], Callable[[list[str]], None]]]:
    """What is said to the user, and what invites gdb: the command to paste, or (own) gdb itself in this terminal.

    While gdb has the terminal nothing is printed but by gdb: what was to be said comes after it. A Ctrl-C is gdb's.
    """
    children: list[subprocess.Popen[bytes]] = []
    unsaid: list[str] = []

    def say(text: str) -> None:
        if children and children[0].poll() is None:
            unsaid.append(text)
        else:
            console.print(Text(printable(text)), soft_wrap=True)

    def invite(command: list[str]) -> None:
        if not own:
            say(f"paste into another terminal:  {shlex.join(command)}")
            return
        try:
            children.append(subprocess.Popen(command))
        except OSError as error:
            raise MachineUnavailable(f"gdb does not start: {error.strerror}: run `make setup`") from error

    before = signal.getsignal(signal.SIGINT)
    if own:
        # gdb shares this terminal, so its Ctrl-C comes here too. Not SIG_IGN: gdb would inherit that.
        signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield say, invite
    finally:
        for child in children:
            try:
                child.wait(0.0 if sys.exc_info()[0] else None)
            except subprocess.TimeoutExpired:
                child.terminate()
                child.wait()
        signal.signal(signal.SIGINT, before)
        for text in unsaid:
            console.print(Text(printable(text)), soft_wrap=True)
