"""Collects what became of each mutation, and prints the table at the end of the session."""

from __future__ import annotations

from typing import Final

import pytest

from tests.mutations.mutation import Catch
from tests.mutations.table import text

CATCHES: Final = pytest.StashKey[list[Catch]]()


@pytest.fixture
def catches(request: pytest.FixtureRequest) -> list[Catch]:
    """What this session's mutations have come to; a test adds its own."""
    return request.config.stash.setdefault(CATCHES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(CATCHES, [])
    if found:
        terminalreporter.section("mutations")
        terminalreporter.write_line(text(found))
