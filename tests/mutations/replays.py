"""Runs a mutation on a recorded run: of the unbroken engine, live under stress, without a machine the second time."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from harness.catalogue import load_catalogue
from harness.live.session import LiveSession
from harness.options import Policies, RunOptions
from harness.trace.exact import Replay
from harness.trace.neutral import NeutralReplay
from harness.trace.reader import open_trace
from harness.trace.records import Checkpoint
from harness.trace.replay import make_replay
from tests.mutations.mutation import Catch, Mutation, Way

PROBES: Final = 48  # a checkpoint: what the check of the recorded run asks is in the trace too
_FOLDER: Final = tempfile.TemporaryDirectory(prefix="xi-mutations-")


@cache
def recorded(guest: str, paging: str, engine: str, policies: Policies) -> Path:
    """The trace of a run that passed. Raises MachineError when there is none to be had."""
    path = Path(_FOLDER.name) / f"{guest}-{paging}-{engine}-{'-'.join(value for _, value in policies)}.xitrace"
    options = RunOptions(
        mode="live", stress=True, engine=engine, policies=policies, probe_budget=PROBES, record=path, seed=2
    )
    with LiveSession(load_catalogue()[guest], paging, options) as session:
        while session.run_to_checkpoint() is not None:
            session.check()
        record = session.conclude()
        session.settle()
    assert record.as_expected and not record.trace_lost, record.reason or record.trace_lost
    return path


def replay_of(mutation: Mutation) -> Replay:
    """The replay that shows a mutation."""
    if mutation.way is Way.REPEAT:
        name, policies = mutation.unbroken.name, tuple(sorted(mutation.policies.items()))
        trace = open_trace(recorded(mutation.guest, mutation.paging, name, policies))
        return make_replay(trace, make_engine=mutation.engine)
    trace = open_trace(recorded(mutation.guest, mutation.paging, "xi", ()))
    return NeutralReplay(trace, mutation.engine, dict(mutation.policies))


def run_replayed(catch: Catch) -> None:
    """All of the trace, up to what the engine breaks down at."""
    replay = replay_of(catch.mutation)
    replay.run()
    for one in replay.tally.kept:
        answers = "".join(f", {who} {said}" for who, said in one.answers)
        catch.note(f"replay:{one.check.replace(' ', '-')}", f"event {one.event}: {one.what}{answers}")
    if replay.broken:
        catch.note("exception", replay.broken)
    catch.checkpoints = replay.calls[Checkpoint]
    catch.verdict = "pass" if replay.ended and not replay.tally.wrong else ""
