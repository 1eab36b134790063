"""The part of the build that pyproject.toml cannot say: a wheel carries the firmware and the test guests.

In a checkout, and so in an editable installation, the harness finds them beside the package. An installed package
has them below `harness/data`, in the same layout; see `harness.catalogue`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
CARRIED = (
    "guest-kernels/guests.toml",
    "guest-kernels/lib/*.[chS]",
    "guest-kernels/lib/guest.ld",
    "guest-kernels/build/*.elf",
    "firmware/build/xi-firmware.bin",
)


class BuildWithGuests(build_py):
    """`build_py`, and then the guests. Ends the build with make's own words when gcc, binutils or make are missing."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        subprocess.run(["make", "-s", "-C", str(HERE / "guest-kernels"), f"PYTHON={sys.executable}"], check=True)
        for pattern in CARRIED:
            for source in sorted(HERE.glob(pattern)):
                target = Path(self.build_lib, "harness", "data", source.relative_to(HERE))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


setup(cmdclass={"build_py": BuildWithGuests})
