"""The benchmarks: costs as ratios to a floor that is measured in the same run.

A figure is worth something only beside what the machine could do at that moment, so every bench measures its own floor
(a raw gdbstub stop, a bare QEMU boot, a hand-over that does nothing) between its measurements and reports both.
"""

from __future__ import annotations

from typing import Any, Final

from harness.bench import boot, debug, live, migration, observe, probe, replay
from harness.bench.figures import Bench, Figures, Raw

BENCHES: Final = {
    bench.name: bench
    for bench in (
        Bench("observe", "cost of an intercepted event against raw gdbstub stops", observe.measure),
        Bench("boot", "a tiny guest's whole run against a bare QEMU", boot.measure),
        Bench("probe", "probes a second, end to end", probe.measure),
        Bench(
            "live",
            "cost of an exit against one that does nothing; the catalogue against observe and native",
            live.measure,
        ),
        Bench("migration", "rounds, frames, and the time that the guest stands", migration.measure),
        Bench("debug", "a run with a gdb attached that does nothing, against one without", debug.measure),
        Bench("replay", "events a second of a replay against those of the run that it replays", replay.measure),
    )
}


FIGURES: Final = {bench.name: bench.description for bench in BENCHES.values()}


def run_bench(names: list[str] | None = None) -> dict[str, Any]:
    """Measures the named benches (all when none) and gives the JSON document: figures, and the raw numbers.

    Raises ValueError that lists the known names on an unknown one.
    """
    for name in names or ():
        if name not in BENCHES:
            raise ValueError(f"unknown bench {name!r} (known: {', '.join(BENCHES)})")
    figures: Figures = {}
    raw: Raw = {}
    for name in names or list(BENCHES):
        measured, numbers = BENCHES[name].measure()
        figures |= measured
        raw |= numbers
    return {"schema": 1, "figures": figures, "raw": raw}
