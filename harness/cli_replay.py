"""The command `replay`: a recorded run, through an engine and without a machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.text import Text

from harness.cli_outputs import STDOUT, outputs, write_json
from harness.cli_progress import ProgressLine
from harness.options import parse_policies
from harness.report import json_file
from harness.report.summary import ExitStatus
from harness.report.terminal import make_console
from harness.report.text import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console

    from harness.trace.exact import Replay
    from harness.trace.reader import Trace
    from harness.trace.running import Running


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A trace: `run --record FILE`, or a failing run's.")],
    engine: Annotated[
        str | None, typer.Option(metavar="NAME", help="The engine to replay through; the recorded one without it.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Another policy than the recorded one; may be repeated."),
    ] = None,
    stop_at: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Stop once event number N was handled, with all that came of it."),
    ] = None,
    command: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'WORDS'",
            help="A command of `monitor xi`, such as 'walk 0x400000' or 'help', to run where the replay stands at "
            "last; may be repeated.",
        ),
    ] = None,
    events: Annotated[bool, typer.Option("--events", help="Print each event as it is handled.")] = False,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="F", help="Write the result as JSON; - is stdout.")
    ] = None,
) -> None:
    """Replay a recorded run through a shadow engine, without QEMU.

    Every call is made again in its order, and what the recording holds is checked: what each fault came to, the
    engine's invariants, its shadow against the guest's own tables, every word of its pool. Through another engine, or
    with other policies, only what the architecture prescribes is compared. Exit status: 0 all agrees, 1 something
    differs, 2 usage, 3 the file cannot be read or is damaged.

    \b
    xi-harness run churn --paging long4 --record churn.xitrace
    xi-harness replay churn.xitrace
    xi-harness replay churn.xitrace --stop-at 1234 --command 'walk $rip' --command 'events 5'
    xi-harness replay churn.xitrace --policy zeroing=critical-path
    """
    from harness.trace import summary  # noqa: PLC0415 - numpy
    from harness.trace.reader import TraceError, open_trace  # noqa: PLC0415

    outputs(json_path, None, None)
    stream = sys.stderr if json_path == STDOUT else sys.stdout
    try:
        trace = open_trace(file)
        name = engine or trace.header.engine
        playing = _prepare(trace, engine, policy or [], stop_at)
    except TraceError as error:
        raise _unreadable(error) from error
    console = make_console(stream)
    _print(console, [*summary.heading(playing, name), ""])
    if events:
        _tell_events(playing, stream)
    damage = _run(playing, stop_at)
    _print(console, summary.summary(playing))
    if stop_at is not None and playing.event < stop_at and not playing.broken and not damage:
        raise _no_such_event(stop_at, playing.event + 1)
    told = _commands(playing, command or [], console)
    passed = summary.passed(playing)
    if not passed:
        _print(console, ["", *summary.failure(playing, name, _again(file, engine, policy or []))])
    if json_path is not None:
        answers = [(line, output) for line, output, _ in told]
        _write(json_path, summary.document(playing, name, answers))
    if damage is not None:
        raise _unreadable(damage)
    if not passed:
        raise typer.Exit(ExitStatus.CHECK_FAILED)
    if any(failed for _, _, failed in told):
        raise typer.Exit(ExitStatus.USAGE)


def _prepare(trace: Trace, engine: str | None, policies: list[str], stop_at: int | None) -> Replay:
    """The replay; usage error for an engine, a policy or an event that there is none of."""
    from harness.engines import check_policies  # noqa: PLC0415
    from harness.trace.replay import make_replay  # noqa: PLC0415 - numpy

    header = trace.header
    if trace.end is not None and stop_at is not None and stop_at >= trace.end.events:
        raise _no_such_event(stop_at, trace.end.events)
    try:
        chosen = dict(parse_policies(policies))
        if engine in (None, header.engine):
            chosen = header.config.options | chosen
        check_policies(engine or header.engine, tuple(chosen.items()))
        return make_replay(trace, engine, chosen)
    except ValueError as error:
        raise typer.BadParameter(one_line(str(error)), param_hint="replay") from error


def _no_such_event(wanted: int, count: int) -> typer.BadParameter:
    known = f"the trace has {count}, numbered from 0" if count else "the trace has none"
    return typer.BadParameter(f"there is no event {wanted}: {known}", param_hint="--stop-at")


def _tell_events(playing: Replay, stream: TextIO) -> None:
    from harness.intercept.events import Event, EventLog  # noqa: PLC0415

    class Told(EventLog):
        def add(self, kind: str, rip: int, value: int, text: str = "") -> None:
            event = Event(self.total, kind, rip, value, text)
            super().add(kind, rip, value, text)
            print(printable(str(event), frozenset()), file=stream)

    playing.events = Told()


def _run(playing: Replay, stop_at: int | None) -> Exception | None:
    """Replays, and says how far it is when it takes long. What is wrong with the trace, if it is damaged."""
    from harness.trace.reader import TraceError  # noqa: PLC0415

    progress = ProgressLine()
    total = None if playing.trace.end is None else playing.trace.end.events
    if total is not None and stop_at is not None:
        total = stop_at + 1

    def watch(replay: Running) -> None:
        done = replay.events.total
        share = f" of {total:,} ({100 * done // total} %)" if total else ""
        progress.tell(lambda seconds: f"replayed {done:,}{share} events in {seconds:.0f} s")

    playing.watch = watch
    try:
        playing.run(stop_at)
    except TraceError as error:
        return error
    finally:
        progress.clear()
    return None


def _commands(playing: Replay, lines: list[str], console: Console) -> list[tuple[str, str, bool]]:
    """Runs the commands where the replay stands. (command, its output or complaint, whether it failed) of each."""
    if not lines:
        return []
    from harness.debug.commands.table import run_command  # noqa: PLC0415
    from harness.debug.scene import CommandError  # noqa: PLC0415
    from harness.trace.stopped import scene_of  # noqa: PLC0415

    scene = scene_of(playing, _symbols(playing.trace))
    told = []
    for line in lines:
        try:
            output, failed = run_command(scene, line), False
        except CommandError as error:
            output, failed = str(error), True
        _print(console, ["", f"xi {printable(line)}", *printable(output).splitlines()])
        told.append((line, output, failed))
    return told


def _symbols(trace: Trace) -> dict[str, int]:
    """The symbols of the recorded guest, if it is one of the catalogue and built here."""
    from harness.catalogue import image_path, load_catalogue  # noqa: PLC0415
    from harness.machine.errors import BadImage  # noqa: PLC0415
    from harness.machine.image import load_image  # noqa: PLC0415

    try:
        guest = load_catalogue()[trace.header.guest]
        return dict(load_image(image_path(guest, trace.header.paging)).symbols)
    except (KeyError, ValueError, OSError, BadImage):
        return {}


def _again(file: Path, engine: str | None, policies: list[str]) -> str:
    words = ["xi-harness", "replay", str(file)] + (["--engine", engine] if engine else [])
    for each in policies:
        words += ["--policy", each]
    return shlex.join(words)


def _print(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        write_json(path, json_file.plain(content))
    except OSError as error:
        print(f"xi-harness: cannot write {path}: {error.strerror or error}", file=sys.stderr)
        raise typer.Exit(ExitStatus.MACHINE) from error


def _unreadable(error: Exception) -> typer.Exit:
    print(f"xi-harness: {printable(str(error))}", file=sys.stderr)
    return typer.Exit(ExitStatus.MACHINE)
