"""Lines that a user types: found, misspelt, helped, and survived."""

from __future__ import annotations

import pytest

from harness.debug.commands.table import COMMANDS, command_named, run_command, usage
from harness.debug.commands.text import WIDTH, columns
from harness.debug.scene import CommandError, Scene
from harness.engine import ShadowRoot
from harness.machine.errors import MachineError
from harness.xi.engine import XiEngine
from tests.debug.commands.golden import check_commands
from tests.debug.commands.scene import long4


def test_the_list_of_commands() -> None:
    check_commands("help", long4().scene(), "help", "help walk", "help help")


def test_nothing_is_a_question_for_help() -> None:
    scene = long4().scene()
    assert run_command(scene, "") == run_command(scene, "  ") == run_command(scene, "help")


def test_commands_have_names_of_their_own_and_help_that_fits() -> None:
    names = [command.name for command in COMMANDS]
    assert len(set(names)) == len(names) > 8
    for command in COMMANDS:
        assert command.summary and len(command.summary) < 90 and command.help
        text = run_command(long4().scene(), f"help {command.name}")
        assert text.startswith(usage(command))
        assert all(len(line) <= WIDTH for line in text.split("\n")), command.name
        assert f"  {usage(command)}" in run_command(long4().scene(), "help")


@pytest.mark.parametrize(
    ("word", "told"),
    [("wlak", "perhaps walk"), ("range", "perhaps ranges"), ("qqqq", "`help` lists them"), ("pr", "perhaps probe")],
)
def test_a_word_that_is_no_command_is_told_what_it_may_be(word: str, told: str) -> None:
    with pytest.raises(CommandError, match=f"no command '{word}': .*{told}"):
        command_named(word)
    with pytest.raises(CommandError, match=told):
        run_command(long4().scene(), f"help {word}")


def test_an_engine_that_fails_ends_the_command_and_not_the_session() -> None:
    class Broken(XiEngine):
        @property
        def root(self) -> ShadowRoot:
            raise KeyError("no root")

    guest = long4()
    scene = guest.scene()
    guest.domain.engine.__class__ = Broken
    with pytest.raises(CommandError, match="ranges could not be finished: KeyError: 'no root'"):
        run_command(scene, "ranges shadow")


def test_a_machine_that_is_lost_is_none_of_the_commands_business() -> None:
    class Gone:
        walks = "guest"

        def flush(self, va: int | None) -> str:
            raise MachineError("QEMU has ended")

    scene: Scene = long4().scene()
    scene.hardware = Gone()  # type: ignore[assignment]
    with pytest.raises(MachineError, match="QEMU has ended"):
        run_command(scene, "flush")


def test_columns_are_aligned_and_cut() -> None:
    lines = columns(("name", "count", ""), [("a", "1", "x" * 200), ("long name", "1000", "")], right="count")
    assert lines[0] == "  name       count"
    assert lines[1].startswith("  a              1  xxx") and lines[1].endswith("...") and len(lines[1]) == WIDTH
    assert lines[2] == "  long name   1000"
