"""A fault that comes again and again: the engine at a loss, or a guest that likes it so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.engine import RETRY
from harness.intercept.interception import Outcome
from harness.intercept.live import STUCK_AFTER, Live
from harness.machine import monitor_abi as abi
from harness.x86.control import ControlState


def _live(result: int) -> Live:
    """A controller whose engine answers every fault with `result`."""
    vmcb = [0] * 512
    vmcb[abi.EXITINFO2 >> 3], vmcb[abi.RIP >> 3] = 0x5000, 0x1000
    anything: Any = SimpleNamespace(vmcb=vmcb, pkru=0, shadow_fault=lambda va, access: result)
    return Live(anything, anything, anything, ControlState(), anything, anything, anything)


def test_an_access_that_is_served_for_ever_and_never_done_is_stuck() -> None:
    live = _live(RETRY)
    outcomes = [live._page_fault() for _ in range(STUCK_AFTER + 1)]
    assert outcomes[-1] is Outcome.STUCK
    assert not any(outcomes[:-1])
    assert "0x5000" in live.stuck


@pytest.mark.parametrize("code", [0, 2, 7])
def test_a_guest_may_have_the_same_fault_as_often_as_it_likes(code: int) -> None:
    live = _live(code)
    assert not any(live._page_fault() for _ in range(2 * STUCK_AFTER))
    assert live.injected == 2 * STUCK_AFTER
