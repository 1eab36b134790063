"""`xen302` under everything at once, its tables out of sync more often than not, audited after each step."""

from __future__ import annotations

import pytest

from harness.peers.xen302 import Xen302Engine
from harness.x86.modes import PAGED_MODES
from tests.peers.calm_storm import Punctual, calm


@pytest.mark.parametrize("fill", ["demand", "eager"])
@pytest.mark.parametrize("mode", [mode.name for mode in PAGED_MODES])
@pytest.mark.parametrize("engine", [Punctual, Xen302Engine], ids=["in-time", "late"])
def test_the_shadow_answers_as_the_guests_tables(engine: type[Xen302Engine], mode: str, fill: str) -> None:
    taken = 0
    for seed, pool in ((1, 4), (5, 60)):
        storm = calm(engine, mode, pool, seed, fill, late=engine is not Punctual)
        storm.rage(30)
        taken += storm.engine.stats()["snapshots_taken"]
    assert taken
