"""Every peer under everything at once, in every paging mode, with room and without, audited after each step."""

from __future__ import annotations

import pytest

from harness.peers.engine import PeerEngine
from harness.x86.modes import MODES
from tests.peers.domain import PEERS, storm


@pytest.mark.parametrize("fill", ["demand", "eager"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("engine", PEERS.values(), ids=PEERS)
def test_the_shadow_answers_as_the_guests_tables(engine: type[PeerEngine], mode: str, fill: str) -> None:
    for seed, pool in ((1, 5), (2, 12), (3, 60)):
        storm(engine, mode, pool, seed, fill).rage(60)
