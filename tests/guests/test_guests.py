"""Every guest of the catalogue, for real: in one paging mode each here, in all of them in `make test-guest`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.catalogue import load_catalogue
from harness.report.record import RunRecord
from harness.session import Session

Run = Callable[..., RunRecord]


def _sound(record: RunRecord) -> None:
    """As the catalogue says, with nothing wrong found and something looked at."""
    assert record.verdict == record.expected, record.reason
    assert (record.mismatches, record.audit_failures, record.interception_misses) == (0, 0, 0)
    assert record.checkpoints > 0
    assert record.checks["probe"] > 0


@pytest.mark.xi_guest("basic")
@pytest.mark.xi_paging("nopae")
def test_basic(xi_run: Run) -> None:
    record = xi_run()
    _sound(record)
    assert record.events["cr3_load"] > 0
    assert record.events["table_write"] > 0


@pytest.mark.xi_guest("unpaged")
@pytest.mark.xi_paging("pae")
def test_unpaged(xi_run: Run) -> None:
    record = xi_run()
    _sound(record)
    assert record.events["control"] > 0


@pytest.mark.xi_guest("large")
@pytest.mark.xi_paging("long5")
def test_large(xi_run: Run) -> None:
    _sound(xi_run())


@pytest.mark.xi_guest("alias")
@pytest.mark.xi_paging("pae")
def test_alias(xi_run: Run) -> None:
    _sound(xi_run())


@pytest.mark.xi_guest("switch")
@pytest.mark.xi_paging("long4")
def test_switch(xi_run: Run) -> None:
    record = xi_run()
    _sound(record)
    assert record.events["cr3_load"] > 12  # more loads than address spaces


@pytest.mark.xi_guest("perm")
@pytest.mark.xi_paging("long4")
def test_perm(xi_run: Run) -> None:
    _sound(xi_run())


@pytest.mark.xi_guest("ad")
@pytest.mark.xi_paging("pae")
def test_ad(xi_run: Run) -> None:
    record = xi_run()
    _sound(record)
    assert record.checks["ad_bits"] > 0


@pytest.mark.xi_guest("stale")
@pytest.mark.xi_paging("nopae")
def test_stale(xi_run: Run) -> None:
    record = xi_run()
    _sound(record)
    assert record.events["invlpg"] > 0


@pytest.mark.xi_guest("churn")
@pytest.mark.xi_paging("long4")
def test_churn(xi_run: Run) -> None:
    _sound(xi_run())


@pytest.mark.xi_guest("basic")
@pytest.mark.xi_paging("long4")
def test_a_guest_step_by_step(xi_machine: Session) -> None:
    """The way a user's own test goes: to a checkpoint, a check, on to the end."""
    stop = xi_machine.run_to_checkpoint()
    assert stop is not None
    report = xi_machine.check()
    assert report.checks["probe"] > 0
    assert report.mismatches == []
    assert xi_machine.finish().verdict == "pass"


HOSTILE = (
    "hostile_triple",
    "hostile_flood",
    "hostile_self",
    "hostile_mmio",
    "hostile_past_ram",
    "hostile_rsvd",
    "hostile_garbage",
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xi_guest(name)) for name in HOSTILE])
@pytest.mark.xi_paging("long4")
def test_a_hostile_guest_ends_in_its_verdict(name: str, xi_run: Run) -> None:
    record = xi_run()
    assert record.verdict == record.expected, record.reason
    assert (record.mismatches, record.audit_failures, record.interception_misses) == (0, 0, 0)


@pytest.mark.xi_guest("hostile_loop")
@pytest.mark.xi_paging("pae")
def test_an_endless_loop_ends_at_its_deadline(xi_run: Run) -> None:
    record = xi_run(time_limit=2.0)
    assert record.verdict == "timeout"
    assert record.seconds < 15


def test_no_guest_is_forgotten() -> None:
    """A guest that is added to the catalogue must be added here."""
    marks = [mark for each in globals().values() for mark in getattr(each, "pytestmark", ())]
    named = {mark.args[0] for mark in marks if mark.name == "xi_guest"}
    assert named | set(HOSTILE) == set(load_catalogue())
