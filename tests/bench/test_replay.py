"""The figures of a replay: what is divided by what."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.bench import FIGURES, replay
from harness.bench.figures import ROUNDS
from tests.trace import broken_engines as broken
from tests.trace.guest import RecordedGuest


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The traces that are recorded, of runs that take 7 seconds in the guest and 10 in all."""
    made: list[Path] = []

    def record(path: Path) -> tuple[float, float]:
        RecordedGuest(path.parent).live().save(path.name)
        made.append(path)
        return 7.0, 10.0

    monkeypatch.setattr(replay, "_recorded_run", record)
    return made


def test_a_replay_is_held_against_the_run_that_it_replays(recorded: list[Path]) -> None:
    assert "replay" in FIGURES
    figures, raw = replay.measure()
    assert len(recorded) == ROUNDS
    speed = raw["replay.events_per_second"] / raw["replay.observe_events_per_second"]
    assert figures["replay.event_ratio"] == pytest.approx(speed)
    assert figures["replay.event_ratio"] > figures["replay.run_ratio"] * 7 / 10  # audits and walks take time, too
    assert raw["replay.records_per_event"] > 1


def test_a_replay_that_went_another_way_is_no_figure(recorded: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.trace.replay.engine_class", lambda name: broken.OtherCode)
    with pytest.raises(RuntimeError, match="the replay of churn went another way"):
        replay.measure()
    assert recorded
