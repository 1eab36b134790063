"""What catchers say, noted."""

from __future__ import annotations

from collections.abc import Sequence

from harness.check.target import Mismatch
from harness.engine import AuditFailure, ShadowEngine
from tests.mutations.mutation import Catch


def audited(catch: Catch, engine: ShadowEngine) -> None:
    """Audits `engine` now."""
    try:
        failures = engine.audit()
    except Exception as error:  # an engine broken enough breaks its own audit, and that is a finding
        failures = [AuditFailure("audit", f"{type(error).__name__}: {error}")]
    for failure in failures:
        catch.note(f"audit:{failure.invariant}", failure.detail)


def mismatched(catch: Catch, mismatches: Sequence[Mismatch]) -> None:
    for one in mismatches:
        place = f"{one.checkpoint}: {one.va:#x} {one.access}: {one.field}"
        catch.note(one.oracle, f"{place}: shadow {one.shadow}, hardware {one.hardware}")
