"""The command with a runner that needs no QEMU: ``python -m tests.fake_cli RUNNER ARGUMENTS...``."""

from __future__ import annotations

import sys

from harness import cli
from tests import fake_runs

if __name__ == "__main__":
    cli.RUNNER = getattr(fake_runs, sys.argv.pop(1))
    cli.main()
