"""Runs a mutation of live mode: alone, beside a native run, or with a migration on the way."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from harness.catalogue import Guest, load_catalogue
from harness.live import session as live_session
from harness.live.session import LiveSession
from harness.machine.errors import MachineError, MachineUnavailable
from harness.machine.image import Image, load_image
from harness.migration.run import Migration, MigrationPlan
from harness.options import RunOptions
from harness.report.record import RunRecord
from harness.twin.compare import Leg, run_twin
from harness.twin.live_leg import LiveLeg
from tests.mutations.evidence import audited, mismatched
from tests.mutations.mutation import Catch, Mutation, Way
from tests.x86.assemble import TOOLS, link

DIRTY_LOG: Final = ": dirty log: "  # as a record's audit tells what `harness.live.stress` found
STUCK: Final = "faults again and again"  # as `harness.intercept.live` says it
BY_VERDICT: Final = {"crash": "crash", "timeout": "timeout", "error": "error"}
LOAD_ADDRESS: Final = 0x10_0000


def options_of(mutation: Mutation, mode: str = "live") -> RunOptions:
    given: dict[str, Any] = dict(mutation.options)
    return RunOptions(mode=mode, probe_budget=mutation.probes, **given)


def guest_of(mutation: Mutation) -> Guest:
    """The guest of the catalogue; for one with a source of its own, what a small guest there is."""
    catalogue = load_catalogue()
    return replace(catalogue["basic"], name=mutation.guest) if mutation.source else catalogue[mutation.guest]


def image_of(mutation: Mutation) -> Image | None:
    """Raises MachineUnavailable without an assembler."""
    if not mutation.source:
        return None
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise MachineUnavailable(f"no {', '.join(missing)} on this machine: binutils")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "guest.elf"
        path.write_bytes(link(mutation.source, LOAD_ADDRESS))
        return load_image(path)


class MutatedLiveSession(LiveSession):
    """A session whose engine and parts are broken as the mutation says."""

    def __init__(self, mutation: Mutation, options: RunOptions | None = None) -> None:
        super().__init__(
            guest_of(mutation),
            mutation.paging,
            options or options_of(mutation),
            make_engine=mutation.make_engine,
            image=image_of(mutation),
        )
        self._mutation = mutation

    def start(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, part in self._mutation.parts.items():
                patch.setattr(live_session, name, part)
            super().start()

    def _pin(self) -> None:
        super()._pin()
        if self._mutation.live_tamper is not None:
            self._mutation.live_tamper(self)


class MutatedLeg(LiveLeg):
    """The live leg of a comparison, broken."""

    def __init__(self, mutation: Mutation, options: RunOptions) -> None:
        super().__init__(guest_of(mutation), mutation.paging, options)
        self.session = MutatedLiveSession(mutation, options)


def run_live(catch: Catch) -> None:
    """Checkpoint after checkpoint, until everybody who must notice has noticed, or the guest has ended."""
    mutation = catch.mutation
    with MutatedLiveSession(mutation) as session:
        try:
            while session.run_to_checkpoint() is not None:
                catch.checkpoints += 1
                _standing(catch, session)
                mismatched(catch, session.check().mismatches)
                audited(catch, session.engine)
                if mutation.caught_by and not catch.missing:
                    return
        except MachineUnavailable:
            raise
        except MachineError as error:
            catch.note("error", str(error))
        else:
            _standing(catch, session)
            _ended(catch, session.record)
            catch.verdict = session.conclude().verdict


def _standing(catch: Catch, session: LiveSession) -> None:
    record = session.record
    if record.interception_misses:
        catch.note("self-check", record.misses[0])
    for text in record.audit:
        if DIRTY_LOG in text:
            catch.note("dirty-log", text)
    if record.audit_failures:
        audited(catch, session.engine)
    _, results, bailed = session.machine.console.tap()
    failed = [text for ok, text in results if not ok]
    if failed or bailed:
        catch.note("tap", failed[0] if failed else "Bail out!")


def _ended(catch: Catch, record: RunRecord) -> None:
    """How the guest itself ended. A verdict that comes of what the others have found is none of its own."""
    if STUCK in record.reason:
        catch.note("stuck", record.reason)
    elif record.verdict != record.expected and (record.verdict in BY_VERDICT or not catch.evidence):
        catch.note(BY_VERDICT.get(record.verdict, "verdict"), record.reason)


def run_beside_native(catch: Catch) -> None:
    """Natively, live, and compared."""
    mutation = catch.mutation
    options = options_of(mutation, "both")

    def leg(guest: Guest, paging: str, asked: RunOptions) -> AbstractContextManager[Leg]:
        del guest, paging
        return MutatedLeg(mutation, asked)

    try:
        record = run_twin(guest_of(mutation), mutation.paging, options, make_live=leg)
    except MachineUnavailable:
        raise
    except MachineError as error:
        catch.note("error", str(error))
        return
    for one in record.twin["differences"]:
        catch.note(f"twin:{one['field']}", f"{one['checkpoint']}, {one['where']}: {one['native']}, {one['live']}")
    catch.checkpoints = record.checkpoints
    catch.verdict = record.verdict


def run_migrated(catch: Catch) -> None:
    """A migration, checked before and after."""
    mutation = catch.mutation
    session = MutatedLiveSession(mutation)
    migration = Migration(session, mutation.plan or MigrationPlan())
    try:
        migration.run()
    except MachineUnavailable:
        raise
    except MachineError as error:
        catch.note("error", str(error))
        return
    report, record = migration.report, session.record
    catch.checkpoints, catch.verdict = record.checkpoints, record.verdict
    if report.unequal:
        catch.note("migration", report.reason)
    mismatched(catch, record.failures)
    _ended(catch, record)


LIVE_RUNS: Final = {Way.LIVE: run_live, Way.TWIN: run_beside_native, Way.MIGRATE: run_migrated}
