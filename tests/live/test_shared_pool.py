"""A guest on the shadow tables, in a pool that it shares with a domain that takes all it can get: the hardware agrees
about every address, and the guest cannot tell but by the time it takes.

The neighbour is a model: an engine on memory of its own, with nobody to run on its tables. It asks while the guest
stands still at an exit, as `harness.xi.shared_pool` demands.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from harness.catalogue import load_catalogue
from harness.engine import EngineConfig
from harness.live.session import LiveSession
from harness.options import Mode, RunOptions
from harness.xi.engine import XiEngine
from harness.xi.pool import PAGES_AT_ONCE, minimum_sptis
from harness.xi.shared_pool import SharedPool
from tests.xi.greedy import Greedy

pytestmark = pytest.mark.two_cores

ASKED: Final = 2  # tables, at each fault of the guest
SPTIS: Final = minimum_sptis(pages=PAGES_AT_ONCE) + PAGES_AT_ONCE * ASKED  # whatever is asked in the meantime


class Besieged(XiEngine):
    """XI for the guest, in a new pool that it shares with a greedy domain from the start."""

    def __init__(self, config: EngineConfig, memory: Any) -> None:
        pool = SharedPool(config.pool_frames, config.pool_base_mfn, config.pool_memory)
        super().__init__(config, memory, shared_pool=pool)
        self.greedy = Greedy(pool)

    def shadow_fault(self, va: int, access: int) -> int:
        self.greedy.ask(ASKED)
        return super().shadow_fault(va, access)


@pytest.mark.parametrize(("guest", "paging"), [("switch", "nopae"), ("alias", "long4")])
def test_a_guest_does_not_notice_who_takes_its_tables(guest: str, paging: str) -> None:
    options = RunOptions(
        mode=Mode.LIVE.value, probe_budget=160, pool_spti=SPTIS, policies=(("pool", "shared"),), stress=True
    )
    with LiveSession(load_catalogue()[guest], paging, options, make_engine=Besieged) as session:
        while session.run_to_checkpoint() is not None:
            assert not session.check().mismatches
        record = session.conclude()
        engine = session.engine
        assert isinstance(engine, Besieged)
        assert (record.verdict, record.reason) == ("pass", "")
        assert (record.mismatches, record.audit_failures, record.interception_misses) == (0, 0, 0)
        assert record.checks["probe"] > 800
        engine.greedy.check(8)
        engine.greedy.domain.audit()
        counters = engine.counters
        assert counters.taken_by_others > 100
        assert engine.greedy.domain.engine.counters.taken_from_others == counters.taken_by_others
