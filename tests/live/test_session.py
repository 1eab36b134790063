"""A guest on the shadow tables: checked by the hardware, while its frames move, in the smallest pools, to any end."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from harness.catalogue import load_catalogue
from harness.live.session import LiveSession
from harness.machine.errors import MachineUnavailable
from harness.options import Mode, RunOptions
from harness.runs import run_guest
from harness.x86.bits import PAGE_SHIFT
from harness.xi.pool import PAGES_AT_ONCE, minimum_sptis

pytestmark = pytest.mark.two_cores

FEW = RunOptions(mode=Mode.LIVE.value, probe_budget=160)


def _session(guest: str, paging: str, options: RunOptions = FEW) -> LiveSession:
    return LiveSession(load_catalogue()[guest], paging, options)


@pytest.mark.parametrize("paging", ["pae", "long4"])
def test_the_hardware_agrees_about_every_address(paging: str) -> None:
    record = run_guest(load_catalogue()["basic"], paging, FEW)
    assert (record.verdict, record.mode) == ("pass", "live")
    assert (record.mismatches, record.audit_failures, record.interception_misses) == (0, 0, 0)
    assert record.checks["probe"] > 800
    assert record.live["exits"]["exception_pf"] > 50
    assert record.live["faults_injected"] > 0


def test_frames_move_under_the_guest_and_it_goes_on() -> None:
    with _session("basic", "long4") as session:
        assert session.run_to_checkpoint("mapped, no flush needed") is not None
        domain, view = session.domain, session.domain.view
        before, content = view.p2m.copy(), view.words.copy()
        tables = sorted(session.engine.guest_tables())
        code = session.image.entry >> PAGE_SHIFT
        for gfn in [*tables, code, code + 1]:
            domain.move(gfn)
        assert (view.p2m != before).sum() == len({*tables, code, code + 1})
        assert np.array_equal(view.words, content)
        assert not session.engine.audit()
        assert not session.check().mismatches
        assert session.finish().verdict == "pass"


def test_a_frame_that_was_taken_away_comes_back_when_it_is_used() -> None:
    with _session("basic", "pae") as session:
        assert session.run_to_checkpoint("mapped, no flush needed") is not None
        stack = session.live.registers()["rsp"] >> PAGE_SHIFT
        code = session.live.registers()["rip"] >> PAGE_SHIFT
        for gfn in {stack, code}:
            session.domain.take(gfn)
        assert not session.domain.view.words[stack].any()
        record = session.finish()
        assert record.verdict == "pass"
        assert session.domain.given >= len({stack, code})


@pytest.mark.parametrize("paging", ["nopae", "pae", "long4", "long5"])
def test_the_smallest_pool_in_which_a_guest_gets_on(paging: str) -> None:
    options = dataclasses.replace(FEW, pool_spti=minimum_sptis(paging, PAGES_AT_ONCE))
    record = run_guest(load_catalogue()["switch"], paging, options)
    assert record.verdict == "pass", record.reason
    assert record.live["recycled"] > 0
    assert record.live["zeroed_idle"] + record.live["zeroed_inline"] > 0


def test_zeroing_on_the_critical_path_is_a_policy() -> None:
    options = dataclasses.replace(FEW, policies=(("zeroing", "critical-path"),), pool_spti=40)
    record = run_guest(load_catalogue()["switch"], "long4", options)
    assert record.verdict == "pass", record.reason
    assert record.live["zeroed_idle"] == 0
    assert record.live["zeroed_inline"] > 0


@pytest.mark.parametrize(
    ("guest", "verdict", "reason"),
    [
        ("hostile_triple", "crash", "shut down"),
        ("hostile_loop", "timeout", "still running after 1 s"),
        ("hostile_self", "pass", ""),
    ],
)
def test_a_hostile_guest_ends_in_its_verdict(guest: str, verdict: str, reason: str) -> None:
    limit = 1.0 if guest == "hostile_loop" else None
    record = run_guest(load_catalogue()[guest], "long4", dataclasses.replace(FEW, time_limit=limit))
    assert record.verdict == verdict
    assert reason in record.reason


def test_a_processor_without_svm_is_told_in_one_line() -> None:
    with pytest.raises(MachineUnavailable, match="has no SVM"):
        run_guest(load_catalogue()["basic"], "long4", dataclasses.replace(FEW, cpu="qemu64,-svm"))
