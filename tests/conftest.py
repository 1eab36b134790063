"""What all tests share: how hypothesis behaves, and which of them need no machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

# Tests that start no QEMU may run side by side, while machines want the processors for themselves.
HERE: Final = Path(__file__).parent
FOLDERS: Final = ("check", "debug/commands", "peers", "report", "x86", "xi")
FILES: Final = (
    *("test_batch.py", "test_cli.py", "test_cli_replay.py", "test_options.py", "test_plan.py"),
    *(f"debug/test_{name}.py" for name in ("proxy", "proxy_with_gdb", "rsp")),
)
MACHINELESS: Final = tuple(HERE / name for name in (*FOLDERS, *FILES))
WITH_MACHINE: Final = frozenset({HERE / "x86" / "test_control_writes_native.py"})

# In CI the same examples every time: a change is judged by what it changed. Elsewhere new ones are sought each time.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that need no machine."""
    for item in items:
        if item.path not in WITH_MACHINE and any(item.path.is_relative_to(path) for path in MACHINELESS):
            item.add_marker("machineless")
