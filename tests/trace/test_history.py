"""The past of a run by its trace: events, and the tables once each was handled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.check.target import Stop
from harness.debug.scene import CommandError, Tables
from harness.trace import history
from harness.trace.history import TraceHistory
from harness.trace.reader import Trace
from harness.trace.replay import history_replay
from harness.trace.running import Running
from harness.x86.access import Access
from tests.trace import broken_engines as broken
from tests.trace.guest import PAGES, RecordedGuest
from tests.xi.domain import USED


class Moments:
    """Moments of a guest, as they really were: what a history must give."""

    def __init__(self, guest: RecordedGuest) -> None:
        self.guest = guest
        self.seen: dict[int, tuple[dict[int, bytes], bytes]] = {}

    def note(self) -> int:
        """The tables now, under the number of the last event. A checkpoint brings all of them into the trace."""
        domain = self.guest.domain
        self.guest.recorder.checkpoint(Stop(1, "a moment", domain.state, True, False))
        tables = {gfn: domain.memory.page(domain.mfn(gfn)).tobytes() for gfn in domain.engine.guest_tables()}
        event = self.guest.recorder.log.total - 1
        self.seen[event] = (tables, domain.engine.pool[1].tobytes())
        return event

    def check(self, tables: Tables) -> None:
        guest, pool = self.seen[tables.event]
        assert {gfn: words.tobytes() for gfn, words in tables.guest.items()} == guest
        words = np.frombuffer(pool, np.uint64).reshape(-1, 512)
        base = self.guest.domain.pool_base
        assert tables.shadow
        for mfn, now in tables.shadow.items():
            np.testing.assert_array_equal(now, words[mfn - base])
        assert tables.role.keys() == tables.shadow.keys()


@pytest.fixture
def moments(tmp_path: Path) -> Moments:
    guest = RecordedGuest(tmp_path)
    moments = Moments(guest)
    for va in PAGES:
        guest.access(va, Access.STORE)
        moments.note()
        guest.store(va, guest.others[0], USED)
        guest.invlpg(va)
        moments.note()
    return moments


@pytest.mark.parametrize("mode", ["nopae", "pae", "long4", "long5"])
def test_tables_are_as_they_were(mode: str, tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path, mode)
    moments = Moments(guest)
    for _ in range(60):
        guest.step()
        moments.note()
    past = TraceHistory(guest.save().path)
    for event in moments.seen:
        moments.check(past.tables(event))


def test_the_past_can_be_asked_in_any_order(moments: Moments) -> None:
    past = TraceHistory(moments.guest.save().path)
    for event in (3, 9, 5, 5, 1, 12, 3):
        tables = past.tables(event)
        assert tables.event == event
        moments.check(tables)


def test_going_forward_is_no_new_replay(moments: Moments, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Running] = []

    def counting(trace: Trace) -> Running:
        made.append(history_replay(trace))
        return made[-1]

    monkeypatch.setattr(history, "history_replay", counting)
    past = TraceHistory(moments.guest.save().path)
    for event in (1, 3, 4, 9, 3, 4, 9, 12):
        past.tables(event)
    assert len(made) == 1
    past.tables(2)
    assert len(made) == 2


def test_events_are_those_that_were_logged(moments: Moments) -> None:
    log = moments.guest.recorder.log
    past = TraceHistory(moments.guest.save().path)
    assert past.events(0, log.total) == log.last(log.total)
    assert [event.index for event in past.events(3, 5)] == [3, 4, 5]
    assert past.events(log.total, log.total + 5) == []


def test_a_run_that_goes_on_has_a_past_too(moments: Moments) -> None:
    guest = moments.guest
    past = TraceHistory(guest.recorder.path, guest.recorder.flush)
    last = guest.recorder.log.total - 1
    moments.check(past.tables(last))
    assert past.events(last, last + 9) == guest.recorder.log.last(1)
    guest.domain.engine.invlpg(PAGES[0])  # more comes of the last event
    guest.store(PAGES[3], guest.others[1], USED)
    guest.access(PAGES[3], Access.STORE)
    now = moments.note()
    assert now == last + 1
    moments.check(past.tables(now))
    assert len(past.events(0, now)) == now + 1
    guest.store(PAGES[3], guest.others[2], USED)
    guest.domain.engine.invlpg(PAGES[3])
    assert moments.note() == now
    moments.check(past.tables(now))


def test_what_is_not_recorded_yet_is_told(moments: Moments) -> None:
    past = TraceHistory(moments.guest.recorder.path, moments.guest.recorder.flush)
    last = moments.guest.recorder.log.total - 1
    with pytest.raises(CommandError, match=f"event {last + 1} is not recorded: the last one is {last}"):
        past.tables(last + 1)
    past.tables(last)


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("nothing of the kind")
    past = TraceHistory(bad)
    with pytest.raises(CommandError, match="no trace of xi-harness"):
        past.tables(0)
    with pytest.raises(CommandError, match="no trace of xi-harness"):
        past.events(0, 1)


def test_a_past_that_cannot_be_lived_again_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = RecordedGuest(tmp_path)
    guest.access(PAGES[0], Access.LOAD)
    guest.invlpg(PAGES[0])
    monkeypatch.setattr("harness.trace.replay.engine_class", lambda name: broken.Gives)
    past = TraceHistory(guest.save().path)
    past.tables(1)
    with pytest.raises(CommandError, match="the replay of the recording ends at event 2: the engine raised IndexError"):
        past.tables(2)
