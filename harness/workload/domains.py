"""A quiet domain beside a greedy one: what sharing one pool of shadow tables does to it, and what it gives the other.

The quiet domain goes round a working set that fits well into its half of the tables. Between two of its rounds the
neighbour goes through the address spaces of its processes. With ``pool=reserved`` each domain has its half for itself;
with ``pool=shared`` the same number of tables is common to both (`harness.xi.shared_pool`). XI alone has the choice, so
this is no comparison of engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from harness.engine import EngineConfig, MachineMemory, ShadowEngine
from harness.workload.knobs import Knobs
from harness.workload.program import Program
from harness.workload.refill import Refill
from harness.workload.verify import check_audit
from harness.workload.workload import ASIDE, DONE, MEASURED, WARM_UP, MakeEngine, Mark, pool_frames, unmarked
from harness.x86.bits import PAGE_SHIFT
from harness.xi.engine import XiEngine
from harness.xi.shared_pool import SharedPool

MakeDomain = Callable[[EngineConfig, MachineMemory, SharedPool | None], ShadowEngine]

RESERVED: Final = "reserved"
SHARED: Final = "shared"
POOLS: Final = (RESERVED, SHARED)
NONE: Final = "none"
GREEDY: Final = "greedy"
NEIGHBOURS: Final[Mapping[str, Knobs]] = {
    NONE: Knobs(spaces=1, tables=4, fill=8),  # it is there and does nothing
    "busy": Knobs(spaces=8, tables=4, fill=8),  # wants more than its half, and both together have enough
    GREEDY: Knobs(spaces=24, tables=4, fill=8),  # wants more than there is in all
}
QUIET: Final = Knobs(spaces=1, tables=4, fill=32)


class Round(Refill):
    """A domain that goes in rounds: it stores to all pages of all its processes, and faults one in again for each."""

    def round(self) -> None:
        guest = self.guest
        for space in self.spaces:
            guest.switch(space)
            for va in self.table_addresses:
                self.touch_all(space, [va + (slot << PAGE_SHIFT) for slot in range(self.knobs.fill)])
            va = self.random.choice(self.table_addresses)
            self.refill(guest.table_of(space, va), va, self.random.randrange(self.knobs.fill), 1)


class Neighbour(NamedTuple):
    """What became of one domain. pages: that it touches in so many rounds. In these: faults, on the shadow, but for
    those that its own kernel got; lost: tables that another domain took from it."""

    pages: int
    faults: int
    lost: int


@dataclass(frozen=True)
class Domains:
    """Two domains with `tables` shadow tables in all, for so many rounds."""

    tables: int = 128
    rounds: int = 20

    name = "domains"
    description = "a quiet domain beside others, with a pool each or with one for both"

    def run(
        self,
        pool: str,
        neighbour: str,
        make_quiet: MakeDomain = XiEngine,
        make_neighbour: MakeDomain = XiEngine,
        mark: Mark = unmarked,
    ) -> tuple[Neighbour, Neighbour]:
        """The quiet domain and its neighbour. pool: one of POOLS; neighbour: one of NEIGHBOURS. Measured is the quiet
        one alone: what the other does is marked ASIDE.

        Raises ValueError for a pool or neighbour that there is not, WorkloadError as every workload.
        """
        if pool not in POOLS or neighbour not in NEIGHBOURS:
            raise ValueError(f"pool={pool}, neighbour={neighbour}: one of {', '.join(POOLS)}; {', '.join(NEIGHBOURS)}")
        quiet, other = programs = Round(QUIET), Round(NEIGHBOURS[neighbour])
        base = max(program.guest.memory.frames for program in programs)
        frames = pool_frames(XiEngine, self.tables)
        shared = SharedPool(frames, base) if pool == SHARED else None
        config = frames if shared is not None else frames // 2, base, pool
        for program, make in zip(programs, (make_quiet, make_neighbour), strict=True):
            program.guest.boot(_in_pool(make, config, shared), self.tables)
        mark(WARM_UP)
        for program in (other, quiet):
            program.warm_up()
        before = [_told(program) for program in programs]
        for _ in range(self.rounds):
            mark(ASIDE)
            if neighbour != NONE:
                other.round()
            mark(MEASURED)
            quiet.round()
        mark(DONE)
        told = []
        for program, (faults, lost) in zip(programs, before, strict=True):
            now = _told(program)
            told.append(Neighbour(self.rounds * program.knobs.pages, now[0] - faults, now[1] - lost))
        for program in programs:
            program.check()
        for program in programs:  # what one check has taken from the other
            check_audit(program.guest.engine)
        return told[0], told[1]


def _in_pool(make: MakeDomain, config: tuple[int, int, str], shared: SharedPool | None) -> MakeEngine:
    frames, base, pool = config

    def made(plain: EngineConfig, memory: MachineMemory) -> ShadowEngine:
        options = plain.options | {"pool": pool}
        return make(replace(plain, pool_frames=frames, pool_base_mfn=base, options=options), memory, shared)

    return made


def _told(program: Program) -> tuple[int, int]:
    """Faults on the shadow of a domain, and the tables that it has lost to another."""
    assert program.guest.mmu is not None
    return program.guest.mmu.retried, int(program.guest.engine.stats()["taken_by_others"])
