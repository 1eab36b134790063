"""A quiet domain beside others: what it is made to pay, with a pool of its own and without."""

from __future__ import annotations

from typing import Final

import pytest

from harness.engine import EngineConfig, MachineMemory, ShadowEngine
from harness.workload.domains import GREEDY, NEIGHBOURS, NONE, POOLS, RESERVED, SHARED, Domains, Neighbour
from harness.workload.workload import ASIDE, DONE, MEASURED, WARM_UP, WorkloadError
from harness.xi.shared_pool import SharedPool
from tests.workload.engines import NoInvlpg, Noted

ROUNDS: Final = 4


@pytest.fixture(scope="module")
def ran() -> dict[tuple[str, str], tuple[Neighbour, Neighbour]]:
    return {(pool, each): Domains(rounds=ROUNDS).run(pool, each) for pool in POOLS for each in NEIGHBOURS}


def test_a_pool_of_its_own_keeps_the_quiet_domain_quiet(
    ran: dict[tuple[str, str], tuple[Neighbour, Neighbour]],
) -> None:
    alone = ran[RESERVED, NONE][0]
    for each in NEIGHBOURS:
        assert ran[RESERVED, each][0] == alone
        assert ran[RESERVED, each][0].lost == 0


def test_a_greedy_neighbour_takes_the_tables_of_a_shared_pool(
    ran: dict[tuple[str, str], tuple[Neighbour, Neighbour]],
) -> None:
    quiet = ran[SHARED, GREEDY][0]
    assert quiet.lost > ROUNDS
    assert quiet.faults > 10 * ran[RESERVED, GREEDY][0].faults


def test_a_shared_pool_serves_a_neighbour_that_needs_more_than_half(
    ran: dict[tuple[str, str], tuple[Neighbour, Neighbour]],
) -> None:
    assert ran[SHARED, "busy"][1].faults < ran[RESERVED, "busy"][1].faults / 4
    assert ran[SHARED, "busy"][0].faults == ran[RESERVED, "busy"][0].faults


def test_only_the_quiet_domain_is_measured() -> None:
    marks: list[str] = []
    Domains(rounds=3).run(SHARED, GREEDY, mark=marks.append)
    assert marks == [WARM_UP, *[ASIDE, MEASURED] * 3, DONE]


def test_domains_are_set_up_as_their_pools_say() -> None:
    seen: list[tuple[str, int, SharedPool | None]] = []

    def make(config: EngineConfig, memory: MachineMemory, shared: SharedPool | None) -> ShadowEngine:
        seen.append((config.options["pool"], config.pool_frames, shared))
        return Noted(config, memory, shared)

    for pool in POOLS:
        Domains(tables=100, rounds=1).run(pool, NONE, make, make)
    assert seen[0] == seen[1] == (RESERVED, 200, None)
    assert seen[2] == seen[3]
    assert (seen[2][0], seen[2][1]) == (SHARED, 400)
    assert seen[2][2] is not None


def test_a_wrong_engine_ends_it() -> None:
    with pytest.raises(WorkloadError):
        Domains(rounds=1).run(SHARED, NONE, NoInvlpg)


@pytest.mark.parametrize(("pool", "neighbour"), [("own", NONE), (SHARED, "loud")])
def test_what_there_is_not_is_refused(pool: str, neighbour: str) -> None:
    with pytest.raises(ValueError, match="one of"):
        Domains().run(pool, neighbour)
