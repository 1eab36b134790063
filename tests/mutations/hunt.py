"""Runs a mutation until everybody who must notice has noticed, or its guest has ended."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Final

from harness.catalogue import load_catalogue
from harness.check.plan import Planner
from harness.guest_target import GuestTarget
from harness.options import RunOptions
from harness.peers.faults import NoRoom
from harness.session import Session
from tests.mutations.evidence import audited, mismatched
from tests.mutations.live_hunt import LIVE_RUNS
from tests.mutations.mutation import Catch, Mutation, Way
from tests.mutations.replays import run_replayed

BREAKDOWNS: Final = (LookupError, TypeError, NoRoom)  # of an engine whose lists do not fit each other any more
RUNS: Final = LIVE_RUNS | {Way.REPLAY: run_replayed, Way.REPEAT: run_replayed}


class MutatedSession(Session):
    """A session whose engine and interception are broken as the mutation says."""

    def __init__(self, mutation: Mutation) -> None:
        options = RunOptions(probe_budget=mutation.probes)
        super().__init__(load_catalogue()[mutation.guest], mutation.paging, options, make_engine=mutation.make_engine)
        self._mutation = mutation

    def _reach_entry(self) -> None:
        super()._reach_entry()
        if self._mutation.blind:
            without_probes(self)
        if self._mutation.tamper is not None:
            self._mutation.tamper(self)


class Unprobed(GuestTarget):
    """A guest that is taken to have no probe server."""

    @property
    def can_probe(self) -> bool:
        return False


def without_probes(session: Session) -> None:
    """Leaves the check with the oracles that need no help from the guest."""
    session.target.__class__ = Unprobed
    planner = session.check_engine.planner
    session.check_engine.planner = Planner(planner.seed, planner.budget, can_probe=False)


def hunt(mutation: Mutation) -> Catch:
    """Who caught `mutation`. A control, which names no catcher, always runs to its guest's end."""
    began = time.monotonic()
    catch = Catch(mutation)
    try:
        if mutation.script is not None:
            audited(catch, mutation.script(mutation.engine, mutation.policies).engine)
        else:
            RUNS.get(mutation.way, _run)(catch)
    except AssertionError as error:
        catch.note("assertion", _raised(error))
    except BREAKDOWNS as error:
        catch.note("exception", _raised(error))
    catch.seconds = time.monotonic() - began
    return catch


def _run(catch: Catch) -> None:
    must = catch.mutation.caught_by
    with MutatedSession(catch.mutation) as session:
        while session.run_to_checkpoint() is not None:
            catch.checkpoints += 1
            if session.record.interception_misses:
                catch.note("self-check", session.record.misses[0])
            if session.record.audit_failures:
                audited(catch, session.engine)
            mismatched(catch, session.check().mismatches)
            # What the check's faults have done to the shadow: a session looks only now and then.
            audited(catch, session.engine)
            if must and not catch.missing:
                return
        catch.verdict = session.conclude().verdict


def _raised(error: Exception) -> str:
    """Where it was raised, and what it says."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}, {last.name}: {error}".rstrip(": ")
