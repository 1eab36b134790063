"""The native leg: checkpoints, faults, probes and ends of guests that nothing intercepts."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from harness.catalogue import load_catalogue
from harness.machine.errors import MachineError
from harness.machine.mailbox import PROBE, TAG_OFFSET, Status, load_tag
from harness.options import RunOptions
from harness.twin.native import NativeLeg
from harness.twin.witness import SHUTDOWN, TIMEOUT


def leg_of(name: str, paging: str, time_limit: float | None = None) -> NativeLeg:
    return NativeLeg(load_catalogue()[name], paging, RunOptions(time_limit=time_limit))


def test_it_goes_from_checkpoint_to_checkpoint_to_the_end() -> None:
    with leg_of("basic", "pae") as leg:
        stops = []
        while (stop := leg.run_to_checkpoint()) is not None:
            stops.append(stop)
        assert [stop.index for stop in stops] == list(range(1, len(stops) + 1))
        assert stops[-1].final
        assert stops[-1].name == "final"
        assert {stop.state.mode.name for stop in stops} == {"pae"}
        assert leg.ending == "exit status 33"
        assert "not ok" not in leg.console
        assert leg.run_to_checkpoint() is None
        faults = leg.take_faults()
        assert len(faults) > 10
        assert set(faults["cr3"].tolist()) <= {stop.state.cr3 for stop in stops}


def test_a_stale_checkpoint_says_so() -> None:
    with leg_of("stale", "nopae") as leg:
        leg.run_to_checkpoint()
        stop = leg.run_to_checkpoint()
        assert stop is not None
        assert stop.stale


def test_probes_go_through_the_guests_own_server() -> None:
    with leg_of("basic", "long4") as leg:
        stop = leg.run_to_checkpoint()
        assert stop is not None
        leg.take_faults()
        probes = np.zeros(2, PROBE)
        probes["va"] = 0x1F0_0000 + TAG_OFFSET + 8, 0x7FFF_0000_0000
        done = leg.run_probes(probes)
        assert done["status"].tolist() == [Status.DONE, Status.FAULT]
        assert done["value"][0] == load_tag(0x1F00)
        assert (done["code"][1], done["cr2"][1]) == (0, 0x7FFF_0000_0000)
        assert leg.take_faults()[["cr2", "code"]].tolist() == [(0x7FFF_0000_0000, 0)]
        following = leg.run_to_checkpoint()
        assert following is not None
        assert following.index == stop.index + 1


@pytest.mark.parametrize(("name", "ending"), [("hostile_triple", SHUTDOWN), ("hostile_loop", TIMEOUT)])
def test_guests_that_do_not_end_well(name: str, ending: str) -> None:
    with leg_of(name, "long4", 0.6) as leg:
        while leg.run_to_checkpoint() is not None:
            pass
        assert leg.ending == ending


def test_a_qemu_that_is_killed_is_an_error() -> None:
    with leg_of("hostile_loop", "nopae", 5.0) as leg:
        assert leg.run_to_checkpoint() is not None
        os.kill(leg.machine.process.pid, signal.SIGKILL)
        with pytest.raises(MachineError, match="-9"):
            leg.run_to_checkpoint()
