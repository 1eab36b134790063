"""A replay through another engine than was recorded: what the guest must have seen, and no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from harness.engine import AWAY, RETRY, EngineConfig, MachineMemory, ShadowEngine
from harness.peers.eager import EagerEngine
from harness.peers.kvm import KvmEngine
from harness.peers.xen302 import Xen302Engine
from harness.trace import records as r
from harness.trace import summary
from harness.trace.format import PACK, Kind, tailed, words_tail
from harness.trace.neutral import NeutralReplay
from harness.trace.reader import Trace
from harness.trace.replay import make_replay
from harness.x86.access import Access
from harness.xi.engine import XiEngine
from harness.xi.pool import minimum_sptis
from tests.check.toy_engine import ToyEngine
from tests.trace import broken_engines as broken
from tests.trace.guest import PAGES, RecordedGuest, with_records
from tests.xi.domain import USED

MODES: Final = ("nopae", "pae", "long4", "long5")
Engine = Callable[[EngineConfig, MachineMemory], ShadowEngine]


def small(config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
    """XI with a pool in which it recycles all the time."""
    return XiEngine(replace(config, pool_frames=4 * minimum_sptis(pages=2)), memory)


def eager(config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
    return XiEngine(replace(config, fill="eager"), memory)


def demand(config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
    return XiEngine(replace(config, fill="demand"), memory)


class Amnesiac(XiEngine):
    """Drops the current space's shadows at each CR3 load, and makes them anew as they are used."""

    def load_cr3(self, cr3: int) -> None:
        root, self.root_spti = self.root_spti, None
        if root is not None:
            self.destroy_tree(root)
        super().load_cr3(cr3)


def played(trace: Trace, engine: Engine) -> NeutralReplay:
    replay = NeutralReplay(trace, engine, {})
    replay.run()
    return replay


@pytest.mark.parametrize(
    "engine",
    [small, eager, demand, Amnesiac, EagerEngine, KvmEngine, Xen302Engine],
    ids=lambda engine: engine.__name__,
)
@pytest.mark.parametrize("fill", ["demand", "eager"])
@pytest.mark.parametrize("mode", MODES)
def test_another_engine_gives_what_the_architecture_prescribes(
    mode: str, fill: str, engine: Engine, tmp_path: Path
) -> None:
    replay = played(RecordedGuest(tmp_path, mode, seed=3, fill=fill).live().save(), engine)
    assert not replay.tally.kept
    assert replay.ended
    compared = replay.tally.compared
    assert {"answers", "walks", "audits", "unexplained", "dirty log"} <= compared.keys()
    assert not compared["pool"] and not compared["queues"]


@pytest.mark.parametrize("engine", [KvmEngine, Xen302Engine])
def test_a_table_that_has_moved_is_unknown_until_the_recorded_engine_reads_it(engine: Engine, tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    guest.access(PAGES[0], Access.LOAD)
    guest.domain.move(guest.domain.entry_at(PAGES[0]) >> 12)
    guest.domain.engine.audit()
    guest.flush()
    guest.access(PAGES[0], Access.STORE)
    guest.checkpoint()
    replay = played(guest.save(), engine)
    assert replay.tally.compared["audits"] > 1
    assert not replay.tally.kept


def test_an_engine_of_another_kind(tmp_path: Path) -> None:
    trace = RecordedGuest(tmp_path, life=False, scramble=False).live().save()
    replay = played(trace, ToyEngine)
    assert not replay.tally.kept
    assert replay.ended
    assert replay.tally.compared["walks"]


def test_other_policies_make_another_engine(tmp_path: Path) -> None:
    trace = RecordedGuest(tmp_path).live().save()
    replay = make_replay(trace, policies={"zeroing": "critical-path"})
    replay.run()
    assert isinstance(replay, NeutralReplay) and not replay.exact
    assert summary.passed(replay)
    assert make_replay(trace, "xi", {}).exact


CAUGHT: Final = {
    broken.OtherCode: "answers",
    broken.WrongFrame: "walks",
    broken.LosesTheLog: "dirty log",
    broken.CriesOut: "unexplained",
    broken.FailsItsAudit: "audits",
    broken.Gives: "answers",
}


@pytest.mark.parametrize("engine", CAUGHT, ids=lambda engine: engine.__name__)
def test_an_engine_that_is_broken_is_caught(engine: type[XiEngine], tmp_path: Path) -> None:
    replay = played(RecordedGuest(tmp_path).live().save(), engine)
    assert not summary.passed(replay)
    assert replay.tally.differ[CAUGHT[engine]]


def test_an_engine_that_forgets_invlpg_is_caught(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    guest.access(PAGES[0], Access.LOAD)
    guest.store(PAGES[0], 0, 0)
    guest.invlpg(PAGES[0])
    guest.access(PAGES[0], Access.LOAD)
    trace = guest.save()
    assert summary.passed(played(trace, demand))
    (one,) = played(trace, broken.NoInvlpg).tally.kept
    assert (one.check, one.va) == ("answers", PAGES[0])
    fault = "#PF 0x0 [not-present read supervisor]"
    assert dict(one.answers) == {"recorded": fault, "replayed": "resolved", "guest walk": fault}


def test_a_fault_is_delivered_only_where_the_hardware_would_fault(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    guest.access(PAGES[0], Access.LOAD)
    guest.domain.engine.shadow_fault(PAGES[0], Access.LOAD)  # as if the recorded engine's shadow had lost it again
    trace = guest.save()
    faults: list[tuple[int, int]] = []

    class Counting(XiEngine):
        def shadow_fault(self, va: int, access: int) -> int:
            faults.append((va, access))
            return super().shadow_fault(va, access)

    assert summary.passed(played(trace, Counting))
    assert faults == [(PAGES[0], Access.LOAD)]
    make_replay(trace, make_engine=Counting).run()
    assert len(faults) == 3  # as recorded: both


def test_a_table_that_this_engine_protects_is_told_to_be_written(tmp_path: Path) -> None:
    """The recorded engine did not know the table any more when the guest stored to it: nobody was told."""
    guest = RecordedGuest(tmp_path, engine=Amnesiac)
    guest.access(PAGES[0], Access.LOAD)
    guest.flush()
    guest.store(PAGES[0], guest.others[0], USED)
    guest.access(PAGES[0], Access.LOAD)
    trace = guest.save()
    assert not any(isinstance(record, r.TableWritten) for record in trace.records())
    told: list[int] = []

    class Told(XiEngine):
        def table_written(self, gfn: int) -> None:
            told.append(gfn)
            super().table_written(gfn)

    assert summary.passed(played(trace, Told))
    table = guest.domain.entry_at(PAGES[0]) >> 12
    assert told == [table]


def a_late_change(tmp_path: Path) -> Trace:
    """A page is unmapped and flushed; the recorded engine has forgotten it, and looks again when it is used."""
    guest = RecordedGuest(tmp_path, engine=Amnesiac)
    guest.access(PAGES[0], Access.LOAD)
    guest.store(PAGES[0], 0, 0)
    guest.flush()
    guest.access(PAGES[0], Access.LOAD)
    return guest.save()


def test_an_answer_by_a_change_that_came_late_is_no_difference(tmp_path: Path) -> None:
    trace = a_late_change(tmp_path)
    replay = played(trace, demand)
    assert summary.passed(replay)
    assert replay.late == 1
    assert any(line.startswith("late") for line in summary.summary(replay))
    assert played(trace, Amnesiac).late == 0


def test_one_that_stays_behind_all_the_same_is_a_difference(tmp_path: Path) -> None:
    """Told of the change, and of a flush behind it."""
    guest = RecordedGuest(tmp_path, engine=Amnesiac)
    guest.access(PAGES[0], Access.LOAD)
    guest.store(PAGES[0], 0, 0)
    guest.flush()
    guest.access(PAGES[0], Access.LOAD)
    guest.invlpg(PAGES[0])
    guest.access(PAGES[0], Access.LOAD)
    trace = guest.save()

    class NeverSynchronised(broken.NoInvlpg):
        def resync_all(self) -> None:
            pass

    assert summary.passed(played(trace, broken.NoInvlpg))
    replay = played(trace, NeverSynchronised)
    assert replay.late == 1
    assert [one.check for one in replay.tally.kept] == ["answers"]


def test_a_call_that_raised_may_go_through_elsewhere(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    root = guest.domain.state.root_gpa >> 12
    with pytest.raises(ValueError, match="root table"):
        guest.domain.engine.xi_invld_mfn(root, -1)
    guest.checkpoint()
    trace = guest.save()
    for engine in (demand, broken.GivesAway):
        replay = played(trace, engine)
        assert summary.passed(replay)
        assert replay.memory.mfn(root) >= 0


def test_a_frame_that_was_taken_away_may_be_missed_or_not(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    guest.access(PAGES[0], Access.LOAD)
    gfn = guest.domain.expect(PAGES[0], Access.LOAD).frame
    assert gfn is not None
    guest.domain.take(gfn)
    assert guest.domain.engine.shadow_fault(PAGES[0], Access.LOAD) == AWAY
    guest.domain.give(gfn)
    assert guest.domain.engine.shadow_fault(PAGES[0], Access.LOAD) == RETRY
    trace = guest.save()
    assert summary.passed(played(trace, demand))

    class KeepsIt(XiEngine):
        """Goes on mapping what was taken away."""

        def xi_invld_mfn(self, gfn: int, mfn: int) -> None:
            if mfn >= 0:
                super().xi_invld_mfn(gfn, mfn)

    (one, *_) = played(trace, KeepsIt).tally.kept
    assert (one.check, one.va) == ("answers", PAGES[0])
    assert dict(one.answers)["recorded"] == f"needs gfn {gfn:#x}, which was taken away"


def test_a_shadow_that_faults_for_ever_is_told(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    guest.access(PAGES[0], Access.LOAD)
    trace = guest.save()

    class FillsNothing(XiEngine):
        def shadow_fault(self, va: int, access: int) -> int:
            return RETRY

    (one,) = played(trace, FillsNothing).tally.kept
    assert dict(one.answers)["replayed"] == "faults again after every fill"


def test_what_the_processor_wrote_into_the_other_s_shadow_is_left_out(tmp_path: Path) -> None:
    trace = RecordedGuest(tmp_path, "pae").save()
    base = trace.header.config.pool_base_mfn
    words = tailed(Kind.SHADOW_WORDS, base, tail=words_tail((0,), (0xFFFF,)))
    made = with_records(trace, tmp_path / "made", words, PACK[Kind.RESYNC_ALL](Kind.RESYNC_ALL))
    assert not played(made, demand).engine.pool[1][0, 0] & 0xF000
