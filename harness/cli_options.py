"""Options that several commands have, said once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from harness.options import LARGEST_POOL, LEAST_POOL

Paging = Annotated[
    list[str] | None, typer.Option("--paging", metavar="MODE", help="nopae, pae, long4 or long5; may be repeated.")
]
Kernel = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Any kernel that QEMU can load, instead of a guest; observe.")
]
Append = Annotated[str | None, typer.Option(metavar="S", help="The kernel's command line.")]
Initrd = Annotated[Path | None, typer.Option(metavar="PATH", help="The kernel's initial RAM disk.")]
Memory = Annotated[int | None, typer.Option(min=2, max=65536, metavar="MIB", help="RAM of the machine.")]
Cpu = Annotated[str | None, typer.Option(metavar="MODEL", help="QEMU's -cpu.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Seed of everything chosen at random.")]
Engine = Annotated[str, typer.Option(metavar="NAME", help="The shadow engine to check.")]
Policy = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="How the engine decides something, such as zeroing=critical-path; may be repeated. A wrong one lists "
        "what the engine knows.",
    ),
]
Pool = Annotated[
    int | None,
    typer.Option(
        min=LEAST_POOL,
        max=LARGEST_POOL,
        metavar="N",
        help="Shadow tables that the pool has room for, 16 KiB each; without it 5 % of the guest's RAM. A "
        "small one makes the engine recycle; below 33 an instruction that touches many pages may never get done. "
        "Live mode only.",
    ),
]
Stress = Annotated[
    bool,
    typer.Option(
        "--stress",
        help="While the guest runs, by seed: move frames, take frames away, log dirty pages. Live mode only.",
    ),
]


def _positive(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter("a positive number of seconds")
    return value


TimeLimit = Annotated[float | None, typer.Option(metavar="S", callback=_positive, help="Seconds one machine may run.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="F", help="Write a JSON report; - is stdout.")]
Logs = Annotated[Path | None, typer.Option(metavar="DIR", help="Keep each run's console and QEMU output.")]
