"""The commands of `monitor xi`, all of them, and how a line that the user typed becomes one's output."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final

from harness.debug.commands import code, decide, find, frames, gpa, health, past, pool, probe, ranges, spti, walk
from harness.debug.commands.arguments import Misused, split
from harness.debug.commands.command import Command
from harness.debug.scene import CommandError, Scene
from harness.machine.errors import MachineError


def _help(scene: Scene, arguments: Sequence[str]) -> str:
    del scene
    words = split(arguments, most=1)
    if words.plain:
        command = command_named(words.plain[0])
        return f"{usage(command)}\n{command.help}"
    lines = ["what XI knows of the guest that stands here:"]
    for command in COMMANDS:
        typed = usage(command)
        if len(typed) > _USAGE_COLUMN:
            lines.append(f"  {typed}")
            typed = ""
        lines.append(f"  {typed:<{_USAGE_COLUMN}}  {command.summary}")
    return "\n".join((*lines, _HELP_TAIL))


_USAGE_COLUMN: Final = 32
_HELP_TAIL: Final = """
  VA: 0x..., a decimal number, $rip or another register, a symbol, each with +N or -N
  <-- marks what disagrees; `help NAME` tells how to read one command's output"""

HELP: Final = Command(
    "help",
    "[NAME]",
    "this list, or how to read one command's output",
    "Without a name: the list of all commands.",
    _help,
)

COMMANDS: Final[tuple[Command, ...]] = (
    *walk.COMMANDS,
    *ranges.COMMANDS,
    *find.COMMANDS,
    *gpa.COMMANDS,
    *probe.COMMANDS,
    *code.COMMANDS,
    *spti.COMMANDS,
    *frames.COMMANDS,
    *pool.COMMANDS,
    *decide.COMMANDS,
    *past.COMMANDS,
    *health.COMMANDS,
    HELP,
)

_BY_NAME: Final = {command.name: command for command in COMMANDS}


def usage(command: Command) -> str:
    """The command as it is typed, with its arguments."""
    return f"{command.name} {command.usage}".rstrip()


def command_named(name: str) -> Command:
    """The command of that name. Raises CommandError, naming those that are spelled alike."""
    command = _BY_NAME.get(name)
    if command is not None:
        return command
    close = get_close_matches(name, _BY_NAME, n=3) or [known for known in _BY_NAME if known.startswith(name)]
    hint = f"perhaps {' or '.join(close)}?" if close else "`help` lists them"
    raise CommandError(f"no command {name!r}: {hint}")


def run_command(scene: Scene, line: str) -> str:
    """The output of `line` (``walk 0x1000``; nothing: ``help``). Raises CommandError, and MachineError for a machine
    that is lost."""
    name, *arguments = line.split() or ["help"]
    command = command_named(name)
    try:
        return command.run(scene, arguments)
    except Misused as error:
        raise CommandError(f"{name}: {error}\nusage: {usage(command)}") from error
    except (CommandError, MachineError):
        raise
    except Exception as error:  # an engine that is broken enough fails here too, and that must not end the session
        raise CommandError(f"{name} could not be finished: {type(error).__name__}: {error}") from error
