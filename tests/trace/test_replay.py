"""A replay through the recorded engine: as recorded, and what it notices when the engine is another than it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from harness.engine import EngineConfig, MachineMemory, ShadowEngine
from harness.trace import records as r
from harness.trace import summary
from harness.trace.exact import Replay
from harness.trace.format import PACK, Kind, tailed, words_tail
from harness.trace.reader import Trace, TraceError, open_trace
from harness.trace.replay import make_replay
from harness.trace.tally import KEPT
from harness.x86.access import Access
from harness.xi.engine import XiEngine
from tests.trace import broken_engines as broken
from tests.trace.guest import PAGES, RecordedGuest, with_records
from tests.xi.domain import USED

MODES: Final = ("unpaged", "nopae", "pae", "long4", "long5")
FILLS: Final = ("demand", "eager")
Engine = Callable[[EngineConfig, MachineMemory], ShadowEngine]


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return RecordedGuest(tmp_path).live().save()


def played(trace: Trace, engine: Engine | None = None) -> Replay:
    replay = make_replay(trace, make_engine=engine)
    replay.run()
    return replay


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("mode", MODES)
def test_everything_comes_out_as_it_was_recorded(mode: str, fill: str, tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path, mode, fill=fill, life=mode != "unpaged")
    if mode == "unpaged":
        for va in (0x5000, 0x7000, 0x200000):
            guest.access(va, Access.STORE)
        guest.checkpoint()
    else:
        guest.live()
    pool = guest.domain.engine.pool[1].copy()
    events = guest.recorder.log
    replay = played(guest.save())
    assert replay.exact
    assert not replay.tally.kept
    assert replay.ended
    assert summary.passed(replay)
    assert replay.events.counts == events.counts
    assert replay.events.last() == events.last()
    assert replay.state == guest.domain.state
    np.testing.assert_array_equal(replay.engine.pool[1], pool)
    wanted = {"audits", "pool", "unexplained"}
    if mode != "unpaged":
        wanted |= {"answers", "walks", "dirty log"} | ({"queues"} if fill == "eager" else set())
    assert wanted <= {name for name, count in replay.tally.compared.items() if count}


def test_a_replay_stops_and_goes_on(trace: Trace) -> None:
    whole, parts = played(trace), make_replay(trace)
    for stop in (0, 7, 7, 40):
        parts.run(stop)
        assert parts.event == stop
        assert parts.settled
        assert not parts.ended
    parts.run()
    assert parts.ended
    assert parts.number == whole.number
    assert parts.tally.compared == whole.tally.compared
    np.testing.assert_array_equal(parts.engine.pool[1], whole.engine.pool[1])


def test_all_that_came_of_an_event_is_handled_with_it(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    guest.access(PAGES[0], Access.STORE)
    guest.access(PAGES[5], Access.STORE)
    replay = make_replay(guest.save())
    replay.run(1)
    assert replay.events.total == 2
    assert replay.calls[r.Fault] >= 1
    faults = replay.calls[r.Fault]
    replay.run(2)
    assert replay.calls[r.Fault] > faults


CAUGHT: Final = {
    broken.NoInvlpg: {"pool"},  # its walks: see below
    broken.OtherCode: {"answers"},
    broken.WrongFrame: {"walks", "pool", "audits"},
    broken.LosesTheLog: {"dirty log"},
    broken.CriesOut: {"unexplained"},
    broken.FailsItsAudit: {"audits"},
    broken.Gives: {"answers"},
    broken.GivesAway: {"answers"},
}


@pytest.mark.parametrize("engine", CAUGHT, ids=lambda engine: engine.__name__)
def test_an_engine_that_is_broken_is_caught(engine: type[XiEngine], trace: Trace) -> None:
    replay = played(trace, engine)
    assert replay.exact
    assert not summary.passed(replay)
    assert CAUGHT[engine] <= replay.tally.differ.keys()


def test_queues_that_are_not_filled_are_caught(tmp_path: Path) -> None:
    trace = RecordedGuest(tmp_path, fill="eager").live().save()
    assert set(played(trace, broken.SeesNoCode).tally.differ) == {"queues"}


@pytest.mark.parametrize("engine", [broken.WrongFrame, broken.FailsItsAudit], ids=lambda engine: engine.__name__)
def test_an_engine_that_was_broken_when_it_was_recorded_is_caught(engine: type[XiEngine], tmp_path: Path) -> None:
    """Its answers and its pool are what they were: only what does not come from the engine can tell."""
    guest = RecordedGuest(tmp_path, engine=engine)
    guest.access(PAGES[0], Access.LOAD)
    guest.checkpoint()
    replay = played(guest.save(), engine)
    assert replay.tally.compared["pool"] and not replay.tally.differ["pool"] and not replay.tally.differ["answers"]
    assert replay.tally.differ["walks" if engine is broken.WrongFrame else "audits"]


def test_a_difference_tells_what_is_needed_to_look_into_it(trace: Trace) -> None:
    replay = played(trace, broken.WrongFrame)
    first = next(one for one in replay.tally.kept if one.check == "walks")
    block = "\n".join(first.lines("xi-harness replay F"))
    assert f"after event {first.event} " in block
    assert "guest walk" in block and "shadow walk" in block and "^^^^" in block
    assert f"xi-harness replay F --stop-at {first.event} --command 'walk {first.va:#x}'" in block
    said = dict(first.answers)
    assert "machine frame" in said["guest walk"] and "machine frame" in said["shadow"]
    text = "\n".join(summary.failure(replay, "xi", "xi-harness replay F"))
    assert f"fail: {replay.tally.wrong} differences" in text
    assert f"... and {replay.tally.wrong - summary.SHOWN} more differences" in text
    assert "last events:" in text
    for check in ("walks", "audits"):
        assert sum(one.check == check for one in replay.tally.kept) == KEPT < replay.tally.differ[check]
    shown = replay.tally.first(3)
    assert {one.check for one in shown} == {"walks", "audits", "pool"}
    assert [one.record for one in shown] == sorted(one.record for one in shown)


def test_an_engine_that_raises_ends_the_replay(trace: Trace) -> None:
    replay = played(trace, broken.Gives)
    assert not replay.ended
    assert replay.broken.startswith("the engine raised IndexError: no entry for 0x")
    assert "broken_engines.py" in replay.broken
    (one,) = replay.tally.kept
    assert one.event == replay.event
    assert dict(one.answers)["recorded"] == "did not raise"
    assert any(replay.broken in line for line in summary.summary(replay))
    number = replay.number
    replay.run()
    assert replay.number == number


def test_what_raised_when_it_was_recorded_raises_again(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    root = guest.domain.state.root_gpa >> 12
    with pytest.raises(ValueError, match="root table"):
        guest.domain.engine.xi_invld_mfn(root, -1)
    guest.access(PAGES[0], Access.LOAD)
    guest.checkpoint()
    trace = guest.save()
    assert any(isinstance(record, r.Raised) for record in trace.records())
    replay = played(trace)
    assert summary.passed(replay)
    assert replay.memory.mfn(root) >= 0
    (difference, *_) = played(trace, broken.GivesAway).tally.kept
    assert difference.what == "a call did not raise"


def test_an_entry_that_was_not_flushed_may_be_as_it_was(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    guest.access(PAGES[0], Access.LOAD)
    guest.access(PAGES[1], Access.LOAD)
    guest.store(PAGES[0], guest.others[0], USED)
    guest.checkpoint(stale=True)
    guest.store(PAGES[1], guest.others[1], USED)
    guest.invlpg(PAGES[1])
    guest.checkpoint(stale=True)
    trace = guest.save()
    assert summary.passed(played(trace))
    forgetful = played(trace, broken.NoInvlpg)
    assert {one.va for one in forgetful.tally.kept if one.check == "walks"} == {PAGES[1]}


def test_an_incomplete_trace_is_replayed_as_far_as_it_goes(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path).live()
    guest.recorder.flush()
    path = tmp_path / "cut.xitrace"
    path.write_bytes(guest.recorder.path.read_bytes()[:-100])
    whole = open_trace(guest.recorder.path)
    assert not whole.complete
    replay = played(whole)
    assert replay.ended
    assert summary.passed(replay)
    assert f"the trace is incomplete: it breaks off after event {replay.event}" in summary.summary(replay)
    assert played(open_trace(path)).number < replay.number


@pytest.mark.parametrize(
    "record",
    [
        tailed(Kind.WORDS, 1 << 40, tail=words_tail((3,), (5,))),
        tailed(Kind.WORDS, -1, tail=words_tail((3,), (5,))),
        tailed(Kind.WORDS, 1, tail=words_tail((512,), (5,))),
        tailed(Kind.PAGE, 1 << 40, tail=bytes(4096)),
        tailed(Kind.PAGE, 1, tail=bytes(100)),
        tailed(Kind.SHADOW_WORDS, 1, tail=words_tail((3,), (5,))),
    ],
)
@pytest.mark.parametrize("policies", [{}, {"zeroing": "critical-path"}])
def test_memory_that_the_machine_does_not_have_is_damage(
    record: bytes, policies: dict[str, str], trace: Trace, tmp_path: Path
) -> None:
    replay = make_replay(with_records(trace, tmp_path / "bad", record), policies=policies)
    if policies and record[0] == Kind.SHADOW_WORDS:  # which another engine leaves out
        replay.run()
        assert summary.passed(replay)
        return
    with pytest.raises(TraceError, match="record 0 does not fit the header: the file is damaged"):
        replay.run()
    assert replay.damaged
    assert any("from there on the trace is damaged" in line for line in summary.summary(replay))


def test_a_machine_that_there_cannot_be_is_damage(trace: Trace, tmp_path: Path) -> None:
    huge = with_records(trace, tmp_path / "huge", header=replace(trace.header, memory_frames=1 << 60))
    with pytest.raises(TraceError, match="frames of machine memory cannot be had here"):
        make_replay(huge)


def test_a_trace_without_records_is_a_short_one(trace: Trace, tmp_path: Path) -> None:
    replay = played(with_records(trace, tmp_path / "empty"))
    assert (replay.event, replay.number, replay.ended) == (-1, 0, True)
    assert summary.passed(replay)


def test_the_pool_is_compared_only_with_the_same_version_s(trace: Trace, tmp_path: Path) -> None:
    other = replace(trace.header, created_by="xi-harness 0.0.9")
    checked = PACK[Kind.CHECKED](Kind.CHECKED, 0, 0, 0, 0xBAD)
    same = played(with_records(trace, tmp_path / "same", checked))
    assert same.tally.differ["pool"] == 1
    assert not played(with_records(trace, tmp_path / "other", checked, header=other)).tally.compared["pool"]


def test_what_the_recorded_run_found_is_told(trace: Trace, tmp_path: Path) -> None:
    checked = PACK[Kind.CHECKED](Kind.CHECKED, 10, 3, 1, 0)
    replay = played(with_records(trace, tmp_path / "found", checked))
    assert (replay.recorded.checks, replay.recorded.mismatches, replay.recorded.audit_failures) == (10, 3, 1)
    assert "the recorded run found 3 x mismatch, 1 x audit failure" in summary.summary(replay)


def test_how_far_a_replay_is_can_be_watched(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.trace.running.LOOK_EVERY", 50)
    replay = make_replay(trace)
    seen: list[int] = []
    replay.watch = lambda playing: seen.append(playing.number)
    replay.run()
    assert seen == list(range(50, replay.number + 1, 50))
