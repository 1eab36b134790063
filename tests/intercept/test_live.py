"""The loop of live mode, exit after exit."""

from __future__ import annotations

import gc
import time

import pytest

from harness.catalogue import load_catalogue
from harness.intercept.interception import Outcome
from harness.intercept.live import EXITCODE, LOOK_EVERY, RIP
from harness.live.session import LiveSession
from harness.machine.deadline import Deadline
from harness.machine.monitor_abi import ExitCode
from harness.options import RunOptions

pytestmark = pytest.mark.two_cores


def session() -> LiveSession:
    return LiveSession(load_catalogue()["basic"], "long4", RunOptions(mode="live"))


def test_nothing_is_collected_while_the_guest_runs() -> None:
    seen: list[bool] = []

    def look() -> Outcome | None:
        seen.append(gc.isenabled())
        return None

    with session() as one:
        one.live.between.append(look)
        assert one.live.run(Deadline(10)).outcome is Outcome.STOP
        assert gc.isenabled()
        gc.disable()
        try:
            assert one.live.run(Deadline(10)).outcome is Outcome.STOP
            assert not gc.isenabled(), "who turned it off wants it off"
        finally:
            gc.enable()
    assert len(seen) > 20 and not any(seen)


def test_so_many_events_and_no_more() -> None:
    with session() as one:
        live = one.live
        assert live.run(Deadline(10), 5).outcome is Outcome.EVENTS
        assert live.log.total == 5
        assert live.run(Deadline(10), 3).outcome is Outcome.EVENTS
        assert live.log.total == 8
        assert one.finish().verdict == "pass"


def test_a_guest_that_exits_for_ever_meets_its_deadline() -> None:
    """The clock is not looked at after each exit; it is after some."""
    with session() as one:
        live, vmcb = one.live, one.vcpu.vmcb
        begun = live.exits.copy()
        at = 0

        def again() -> Outcome | None:
            """Once it has come to an INVLPG, the guest comes to no other instruction."""
            nonlocal at
            if vmcb[EXITCODE] == ExitCode.INVLPG:
                at = at or one.live.log.last(1)[0].rip
                vmcb[RIP] = at
            return None

        live.between.append(again)
        while not at:
            live.run(Deadline(5), 1)
        began = time.monotonic()
        ran = live.run(Deadline(0.2))
        assert ran.outcome is Outcome.DEADLINE
        assert ran.registers["rip"] == at
        assert 0.2 <= time.monotonic() - began < 3
        assert (live.exits - begun)[ExitCode.INVLPG] > LOOK_EVERY
