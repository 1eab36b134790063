"""Stress disturbs every guest and breaks none; what an engine forgets when it is disturbed is found."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from harness.catalogue import load_catalogue
from harness.engine import AuditFailure
from harness.live.frame_copies import FrameCopies
from harness.live.session import LiveSession
from harness.live.stress import Schedule
from harness.machine.guest_view import GuestView
from harness.machine.ram import RamMap
from harness.options import RunOptions
from harness.report.record import RunRecord
from harness.runs import run_guest
from harness.xi.engine import XiEngine
from tests.xi.broken import DropsOne, OldFrameKept, OneRound, OwnStoresUnlogged

pytestmark = pytest.mark.two_cores

STRESSED = RunOptions(mode="live", stress=True, probe_budget=60)


@pytest.mark.parametrize(("exits", "least", "most"), [(150, 20, 60), (20_000, 200, 800)])
def test_an_action_comes_dozens_of_times_and_not_much_oftener(exits: int, least: int, most: int) -> None:
    rng = np.random.default_rng(1)
    schedule = Schedule(0.25, 1)
    assert least < sum(schedule.due(rng) for _ in range(exits)) == schedule.count < most


class Frames:
    """Eight frames of a guest, and what `FrameCopies` needs of a domain."""

    def __init__(self, path: Path) -> None:
        ram = RamMap(path, 16 << 12)
        ram.reserve()
        self.view = GuestView(ram, np.asarray([3, 4, -1, 9, 8, 7, 1, 0], np.int64))
        self.frames = 8
        self.away: dict[int, bytes] = {}


def test_the_copies_tell_what_changed_and_only_once(tmp_path: Path) -> None:
    domain = Frames(tmp_path / "ram")
    copies = FrameCopies(domain)  # type: ignore[arg-type]
    copies.take()
    assert copies.changed().tolist() == []
    for gfn in (6, 1):
        domain.view.words[gfn, 511] += np.uint64(1)
    assert copies.changed().tolist() == [1, 6]
    assert copies.changed().tolist() == []


def test_a_frame_that_is_away_holds_what_it_comes_back_with(tmp_path: Path) -> None:
    domain = Frames(tmp_path / "ram")
    copies = FrameCopies(domain)  # type: ignore[arg-type]
    domain.view.words[:] = 5
    copies.take()
    domain.view.words[3, 0] = 6
    for gfn in (3, 4):
        domain.away[gfn] = domain.view.words[gfn].tobytes()
        domain.view.remap(gfn, -1)
    assert copies.changed().tolist() == [3]
    for gfn, mfn in ((3, 12), (4, 13)):
        domain.view.remap(gfn, mfn)
        domain.view.words[gfn] = np.frombuffer(domain.away.pop(gfn), np.uint64)
    assert copies.changed().tolist() == []


# ---- real guests


@pytest.mark.parametrize(("name", "paging"), [("basic", "pae"), ("basic", "long5")])
def test_a_guest_does_not_notice(name: str, paging: str) -> None:
    record = run_guest(load_catalogue()[name], paging, STRESSED)
    assert (record.verdict, record.reason, record.audit) == ("pass", "", [])
    stress = record.live["stress"]
    assert min(stress["moved"], stress["taken"], stress["log_rounds"], stress["checked"]) >= 15
    assert record.live["taken"] == record.live["given"] == stress["taken"]
    assert stress["taken"] - stress["settled"] >= 5
    assert record.live["dirty_rounds"] == stress["log_rounds"]
    assert stress["logged"] >= stress["checked"]


def test_at_a_checkpoint_the_guest_is_whole() -> None:
    with LiveSession(load_catalogue()["switch"], "long4", STRESSED) as session:
        for _ in range(4):
            assert session.run_to_checkpoint() is not None
            assert session.domain.away == {}
            assert (session.domain.view.p2m != session.layout.p2m).any()
            assert session.check().mismatches == []
        assert session.stress is not None
        assert session.stress.failures == []


def test_a_checkpoint_is_audited_as_stress_left_it_and_again_when_all_is_calm() -> None:
    seen: list[tuple[bool, int]] = []  # of each audit: whether the log ran, how many gfns had no machine frame
    disturbed: list[tuple[bool, int]] = []

    class Observed(XiEngine):
        def audit(self) -> list[AuditFailure]:
            seen.append((self.logging, int(np.count_nonzero(self.p2m.table < 0))))
            return super().audit()

    with LiveSession(load_catalogue()["switch"], "long4", STRESSED, make_engine=Observed) as session:
        hole = int(np.count_nonzero(session.layout.p2m < 0))
        while session.run_to_checkpoint() is not None:
            *under_stress, calm = seen
            assert calm == (False, hole)
            assert len(under_stress) <= 1
            disturbed += under_stress
            seen.clear()
        assert (session.record.verdict, session.record.audit) == ("pass", [])
    assert all(logging or backless > hole for logging, backless in disturbed)
    assert any(logging for logging, _ in disturbed)
    assert any(backless > hole for _, backless in disturbed)


def _run_broken(engine: type[XiEngine]) -> RunRecord:
    with LiveSession(load_catalogue()["switch"], "long4", STRESSED, make_engine=engine) as session:
        return session.finish()


@pytest.mark.parametrize("engine", [DropsOne, OwnStoresUnlogged])
def test_a_log_with_holes_is_found(engine: type[XiEngine]) -> None:
    record = _run_broken(engine)
    assert record.verdict == "fail"
    assert record.audit_failures > 0
    assert "changed and are not in the log: gfn 0x" in record.audit[0]
    assert "dirty log: round" in record.audit[0]


def test_what_the_log_leaves_writable_is_found_at_a_checkpoint() -> None:
    record = _run_broken(OneRound)
    assert record.verdict == "fail"
    assert any(re.match(r"at checkpoint \d+, under stress: dirty-log: .* writable, ", text) for text in record.audit)


def test_a_forgotten_mapping_leads_to_poison() -> None:
    record = _run_broken(OldFrameKept)
    assert record.verdict != "pass"


def test_what_cannot_be_is_counted_and_left_alone() -> None:
    with LiveSession(load_catalogue()["basic"], "pae", STRESSED) as session:
        assert session.run_to_checkpoint() is not None
        stress, domain = session.stress, session.domain
        assert stress is not None
        before, p2m = dict(stress.counts), domain.view.p2m.copy()
        root = session.live.state.cr3 >> 12
        stress._try("taken", domain.take, root)
        stress._try("moved", domain.move, 0xA0)
        assert stress.counts == before | {"refused": before["refused"] + 2}
        assert np.array_equal(domain.view.p2m, p2m)
