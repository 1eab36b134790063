"""How much faster a replay is than the run that it replays."""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness.bench.figures import PAGING, ROUNDS, Measured
from harness.catalogue import load_catalogue
from harness.options import RunOptions
from harness.session import Session
from harness.trace.exact import Replay
from harness.trace.reader import open_trace
from harness.trace.replay import history_replay, make_replay
from harness.trace.summary import passed


def _recorded_run(path: Path) -> tuple[float, float]:
    """A checked run of `churn` recorded to `path`: its seconds in the guest and its interception, and in all."""
    with Session(load_catalogue()["churn"], PAGING, RunOptions(record=path)) as session:
        while session.run_to_checkpoint() is not None:
            session.check()
        record = session.conclude()
        session.settle()
        return session.observer.run_seconds, record.seconds


def _replayed(replay: Replay) -> Replay:
    replay.run()
    if not passed(replay) or not replay.ended:
        raise RuntimeError(f"the replay of churn went another way: {dict(replay.tally.differ)} {replay.broken}")
    return replay


def measure() -> Measured:
    """Turn about: an observed and recorded run of `churn`, and its replay, on traces of their own.

    event_ratio: events a second of a replay that compares answers only, with reading the file, against those of the
    run while the guest and its interception were at work. run_ratio: the run with its launch, audits and checks,
    against the replay with its audits and walks.
    """
    events = records = 0
    observed = whole = replayed = checked = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            path = Path(folder, f"{number}.xitrace")
            in_guest, in_all = _recorded_run(path)
            trace = open_trace(path)
            plain, full = _replayed(history_replay(trace)), _replayed(make_replay(trace))
            events += plain.events.total
            records += plain.number
            observed += in_guest
            whole += in_all
            replayed += plain.seconds
            checked += full.seconds
    return (
        {"replay.event_ratio": observed / replayed, "replay.run_ratio": whole / checked},
        {
            "replay.events_per_second": events / replayed,
            "replay.observe_events_per_second": events / observed,
            "replay.records_per_event": records / events,
        },
    )
