"""A quiet domain beside others, with pools of their own and with one for both: see `harness.workload.domains`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from harness.compare.clock import Outside
from harness.compare.measurement import FAULT, Domain
from harness.compare.runner import Calls
from harness.workload.domains import NEIGHBOURS, POOLS, Domains
from harness.workload.workload import DONE, MEASURED
from harness.xi.engine import XiEngine

if TYPE_CHECKING:
    from harness.engine import EngineConfig, MachineMemory, ShadowEngine
    from harness.workload.domains import Neighbour
    from harness.xi.shared_pool import SharedPool

RUNS = len(POOLS) * len(NEIGHBOURS)  # of one round


def measure_domains(rounds: int, workload: Domains, tell: Callable[[str, str], None]) -> list[Domain]:
    """Each kind of pool with each neighbour, the times of each call the fastest of so many rounds.

    Raises WorkloadError where the engine is wrong.
    """
    return [_domain(rounds, workload, pool, neighbour, tell) for pool in POOLS for neighbour in NEIGHBOURS]


def _domain(rounds: int, workload: Domains, pool: str, neighbour: str, tell: Callable[[str, str], None]) -> Domain:
    noted: list[Outside] = []
    for _ in range(rounds):
        tell(f"xi pool={pool}", f"{workload.name} beside {neighbour}")
        outside, (quiet, other) = _run(workload, pool, neighbour)
        noted.append(outside)
    calls = Calls(noted)
    return Domain(
        pool=pool,
        neighbour=neighbour,
        faults=calls.of([FAULT]),
        whole=calls.whole(),
        counters={
            "pages": quiet.pages,
            "faults": quiet.faults,
            "lost": quiet.lost,
            "neighbour_pages": other.pages,
            "neighbour_faults": other.faults,
            "neighbour_lost": other.lost,
        },
    )


def _run(workload: Domains, pool: str, neighbour: str) -> tuple[Outside, tuple[Neighbour, Neighbour]]:
    outside = Outside(True)
    make = cast("Callable[..., ShadowEngine]", outside.make(cast("Any", XiEngine)))
    made: list[ShadowEngine] = []

    def make_quiet(config: EngineConfig, memory: MachineMemory, shared: SharedPool | None) -> ShadowEngine:
        made.append(make(config, memory, shared))
        return made[-1]

    def mark(part: str) -> None:
        if part == MEASURED:
            outside.begin(made[0])
        else:
            outside.end(made[0], part == DONE)

    return outside, workload.run(pool, neighbour, make_quiet, mark=mark)
