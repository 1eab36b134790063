"""The clock on a guest in live mode, and the exits that mean nothing between the guest's own."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from harness.bench import wall
from harness.bench.exit_clock import SETTLED, TURN, Exit, ExitClock
from harness.bench.no_op import NoOp
from harness.catalogue import load_catalogue
from harness.live.session import LiveSession
from harness.machine.errors import MachineError
from harness.machine.vcpu import Vcpu
from harness.options import RunOptions

pytestmark = pytest.mark.two_cores

LIVE = RunOptions(mode="live")
CHECKPOINTS = 9  # of `basic`


def timed_run(no_ops: bool = False, split: bool = False) -> tuple[LiveSession, list[Exit]]:
    with LiveSession(load_catalogue()["basic"], "long4", LIVE) as session:
        clock = ExitClock(session, no_ops, split)
        while session.run_to_checkpoint() is not None:
            clock.stop()
        session.conclude()
        return session, clock.exits


def test_every_exit_but_the_last_of_a_stretch_is_timed() -> None:
    session, exits = timed_run(split=True)
    assert session.record.verdict == "pass"
    assert len(exits) == session.live.exits.total() - CHECKPOINTS
    kinds = Counter(exit.kind for exit in exits)
    counted = session.live.exits_by_name()
    assert kinds["invlpg"] == counted["invlpg"]
    assert kinds["cr3_load"] == counted["write_cr3"]
    stats = session.engine.stats()
    assert kinds["gpt_write"] == stats["table_writes"]
    refused = session.live.injected
    assert kinds["fault_fill"] + kinds["gpt_write"] == counted["exception_pf"] - refused


def test_the_parts_lie_within_the_exit() -> None:
    _, exits = timed_run(split=True)
    assert all(exit.away > 0 and 0 <= exit.engine + exit.decode <= exit.handled for exit in exits)
    assert all(exit.engine > 0 and not exit.decode for exit in exits if exit.kind in ("fault_fill", "gpt_write"))
    assert all(exit.engine > 0 and exit.decode > 0 for exit in exits if exit.kind in ("invlpg", "cr3_load"))
    assert not any(exit.no_op for exit in exits)


def test_no_ops_between_exits_do_nothing_to_the_guest() -> None:
    plain, _ = timed_run()
    session, exits = timed_run(no_ops=True)
    assert session.record.verdict == "pass"
    assert session.live.exits == plain.live.exits
    made = [exit for exit in exits if exit.no_op]
    assert len(exits) // 2 < len(made) < len(exits), "there are none before the guest is in long mode"
    assert all(0 < exit.no_op < 1 for exit in made)


def test_the_sides_are_exchanged_and_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.bench.exit_clock.TURN", 2 * SETTLED)
    before = os.sched_getaffinity(0)
    session, exits = timed_run(no_ops=True)
    assert session.record.verdict == "pass"
    assert os.sched_getaffinity(0) == before
    assert [exit.turn for exit in exits] == [number // (2 * SETTLED) for number in range(len(exits))]
    assert exits[-1].turn > 2
    assert not any(exit.no_op for number, exit in enumerate(exits) if number % (2 * SETTLED) < SETTLED)
    assert SETTLED < TURN


def test_a_no_op_that_leaves_otherwise_is_no_floor() -> None:
    with LiveSession(load_catalogue()["basic"], "long4", LIVE) as session:
        assert session.run_to_checkpoint() is not None
        no_op = NoOp(session)
        assert 0 < no_op.run() < 1
        no_op._vmcb[0x578 >> 3] = 0x5000  # RIP, where its tables map nothing
        with pytest.raises(MachineError, match="no-op exit came with exit code 0x4e"):
            no_op.run()
        vcpu: Vcpu = session.vcpu
        assert session.finish().verdict == "pass", f"the guest is as it was, at {vcpu.exits} hand-overs"


def test_a_no_op_is_for_long4_only() -> None:
    with LiveSession(load_catalogue()["basic"], "pae", LIVE) as session, pytest.raises(ValueError, match="not for pae"):
        NoOp(session)


def test_a_guest_does_the_same_work_in_all_three_modes() -> None:
    guest = load_catalogue()["basic"]
    taken = {name: leg(guest, "long4") for name, leg in wall.LEGS.items()}
    assert {one.checkpoints for one in taken.values()} == {CHECKPOINTS}
    assert all(0 < one.busy < 1.5 * one.wall + 0.1 and one.wall < 20 for one in taken.values())


def test_the_catalogue_is_compared_guest_by_guest() -> None:
    figures, raw = wall.wall_ratios(["hostile_rsvd", "hostile_triple"])
    assert sorted(raw["live.runs"]) == [f"hostile_rsvd {paging}" for paging in ("long4", "long5", "nopae", "pae")]
    live = sum(run["live"]["wall"] for run in raw["live.runs"].values())
    native = sum(run["native"]["wall"] for run in raw["live.runs"].values())
    assert figures["live.wall_ratio_native"] == pytest.approx(live / native, rel=0.05)
    assert figures["live.cpu_ratio_observe"] > 0


def test_a_guest_that_does_not_do_the_same_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    legs = {name: lambda guest, paging, n=n: wall.Taken(1.0, 1.0, n) for n, name in enumerate(wall.LEGS)}
    monkeypatch.setattr(wall, "LEGS", legs)
    with pytest.raises(MachineError, match="basic nopae is not the same work in all modes"):
        wall.wall_ratios(["basic"])


def test_a_guest_that_fails_is_not_measured() -> None:
    with pytest.raises(MachineError, match="hostile_triple long4 live: crash"):
        wall.live_leg(load_catalogue()["hostile_triple"], "long4")
