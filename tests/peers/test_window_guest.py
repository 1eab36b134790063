"""Every peer under a guest that behaves: all it does is let tables go and take them back."""

from __future__ import annotations

import pytest

from harness.peers.engine import PeerEngine
from harness.x86.modes import PAGED_MODES
from tests.peers.domain import PEERS
from tests.peers.window_guest import WindowGuest


@pytest.mark.parametrize("mode", [mode.name for mode in PAGED_MODES])
@pytest.mark.parametrize("engine", PEERS.values(), ids=PEERS)
def test_the_shadow_answers_as_the_guests_tables(engine: type[PeerEngine], mode: str) -> None:
    for seed, sptis in ((0, 64), (1, 4)):
        WindowGuest(engine, mode, seed, sptis).rage(60)
