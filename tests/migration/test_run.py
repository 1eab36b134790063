"""A guest goes to another machine while it runs, with nothing left behind; and what is left behind is found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness import cli
from harness.catalogue import load_catalogue
from harness.engine import RETRY, EngineConfig, ShadowEngine
from harness.live.session import LiveSession
from harness.machine import monitor_abi as abi
from harness.machine.guest_view import GuestView
from harness.machine.ram import POISON, RamMap
from harness.machine.vcpu import Vcpu
from harness.migration.destination import Destination
from harness.migration.precopy import Limits, PreCopy
from harness.migration.report import MigrationReport, Round
from harness.migration.run import Migration, MigrationPlan, Start, run_migration
from harness.migration.state import GUEST_FIELDS, VcpuState
from harness.options import RunOptions
from harness.report.record import RunRecord
from harness.x86.bits import PTE_P
from harness.xi.engine import XiEngine
from tests.xi.broken import DropsOne, OwnStoresUnlogged
from tests.xi.domain import Domain

ROOT = Path(__file__).resolve().parent.parent
FRAMES = 48
HOLE = 5
LIVE = RunOptions(mode="live", probe_budget=60)
Engine = Callable[[EngineConfig, Any], ShadowEngine]


# ---- copying, without a machine


class Log:
    """The dirty log of an engine that has two writable SPTEs when it begins, and nothing else of one."""

    def __init__(self) -> None:
        self.protected = 0
        self.dirty = np.zeros(FRAMES, np.uint8)
        self.on = False
        self.drops = -1

    def dirty_log_start(self) -> None:
        self.on = True
        self.dirty[:] = 0
        self.protected += 2

    def dirty_log_read(self) -> npt.NDArray[np.uint8]:
        log = self.dirty.copy()
        self.dirty[:] = 0
        if self.drops >= 0:
            log[self.drops] = 0
        return log

    def stats(self) -> dict[str, int]:
        return {"log_protected_sptes": self.protected}

    def dirty_log_stop(self) -> None:
        self.on = False


class Pair:
    """Two machines whose RAM lies differently, and a guest on the first."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.log = Log()
        self.views = [self._view(folder / name, seed) for name, seed in (("source", 1), ("destination", 2))]
        self.source, self.destination = self.views
        self.source.words[:] = np.arange(FRAMES, dtype=np.uint64)[:, None]
        self.copy = PreCopy(self.log, self.source, self.destination, limits)  # type: ignore[arg-type]

    @staticmethod
    def _view(path: Path, seed: int) -> GuestView:
        ram = RamMap(path, 2 * FRAMES << 12)
        ram.reserve()
        path.unlink()
        ram.bytes[:] = POISON
        p2m = np.random.default_rng(seed).permutation(2 * FRAMES)[:FRAMES]
        p2m[HOLE] = -1
        return GuestView(ram, p2m)

    def store(self, gfn: int, value: int) -> None:
        self.source.words[gfn, 7] = value
        self.log.dirty[gfn] = 1

    def unequal(self) -> list[int]:
        compared, gfns = self.copy.unequal()
        assert compared == FRAMES - 1
        return [int(gfn) for gfn in gfns]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path, Limits(rounds=6, threshold=2, stalled=2, batch=10, rate=0))


def test_every_frame_but_the_hole_arrives_and_batches_are_bounded(pair: Pair) -> None:
    pair.copy.begin()
    batches = 0
    while not pair.copy.copied:
        before = pair.copy.rounds[0].copied
        pair.copy.copy_some()
        assert 0 < pair.copy.rounds[0].copied - before <= 10
        batches += 1
    assert batches == 5
    assert pair.copy.next_round() == "0 dirty frames are few enough"
    pair.copy.finish()
    assert pair.unequal() == []
    assert (pair.destination.words[HOLE] == 0).all()
    assert [(one.number, one.frames, one.copied, one.dirty, one.protected) for one in pair.copy.rounds] == [
        (0, FRAMES - 1, FRAMES - 1, 0, 2)
    ]
    assert not pair.log.on


def test_what_is_stored_to_behind_the_copy_goes_again(pair: Pair) -> None:
    pair.copy.begin()
    while not pair.copy.copied:
        pair.copy.copy_some()
    for gfn in (3, 40, 41):
        pair.store(gfn, 99)
    assert pair.copy.next_round() == ""
    assert (pair.copy.rounds[0].dirty, pair.copy.rounds[1].frames) == (3, 3)
    pair.copy.copy_some()
    pair.store(41, 100)
    assert pair.copy.next_round() == "1 dirty frames are few enough"
    pair.copy.finish()
    assert (pair.copy.last_frames, pair.unequal()) == (1, [])
    assert pair.destination.words[41, 7] == 100


def test_a_frame_that_the_log_drops_is_found_by_the_comparison(pair: Pair) -> None:
    pair.log.drops = 40
    pair.copy.begin()
    while not pair.copy.copied:
        pair.copy.copy_some()
    for gfn in (3, 40):
        pair.store(gfn, 99)
    pair.copy.next_round()
    pair.copy.finish()
    assert pair.unequal() == [40]


def test_a_guest_that_stores_faster_than_it_is_copied_is_stopped(pair: Pair) -> None:
    pair.copy.begin()
    reason = ""
    while not reason:
        while not pair.copy.copied:
            pair.copy.copy_some()
        for gfn in range(10, 20):
            pair.store(gfn, len(pair.copy.rounds))
        reason = pair.copy.next_round()
    assert reason == "the dirty frames have not become fewer for 2 rounds"
    pair.copy.finish()
    assert (len(pair.copy.rounds), pair.copy.last_frames, pair.unequal()) == (3, 10, [])


def test_the_rounds_are_limited(tmp_path: Path) -> None:
    pair = Pair(tmp_path, Limits(rounds=2, threshold=0, rate=0))
    pair.copy.begin()
    reason = ""
    while not reason:
        while not pair.copy.copied:
            pair.copy.copy_some()
        for gfn in range(10, 40 - 4 * len(pair.copy.rounds)):
            pair.store(gfn, 1)
        reason = pair.copy.next_round()
    assert reason == "2 rounds are the limit"


def test_the_rate_is_kept(tmp_path: Path) -> None:
    pair = Pair(tmp_path, Limits(batch=1, rate=1))  # a frame each 4 ms
    pair.copy.begin()
    for _ in range(100):
        pair.copy.copy_some()
    assert 0 < pair.copy.rounds[0].copied < FRAMES // 2


@settings(max_examples=60)
@given(st.data())
def test_whenever_the_guest_stores_and_is_stopped_the_copy_is_like_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    pair = Pair(tmp_path_factory.mktemp("ram"), Limits(rounds=4, threshold=1, batch=7, rate=0))
    pair.copy.begin()
    reason = ""
    for time, step in enumerate(data.draw(st.lists(st.sampled_from(["copy", "store", "exit"]), max_size=40))):
        if step == "store":
            pair.store(data.draw(st.integers(0, FRAMES - 1).filter(lambda gfn: gfn != HOLE)), 1000 + time)
        elif not pair.copy.copied:
            pair.copy.copy_some()
        elif step == "exit":
            reason = pair.copy.next_round()
            if reason:
                break
    pair.copy.finish()
    assert pair.unequal() == []


def test_machines_that_do_not_match_and_limits_that_cannot_be_are_refused(pair: Pair) -> None:
    pair.destination.remap(9, -1)
    with pytest.raises(ValueError, match="same guest frames"):
        PreCopy(pair.log, pair.source, pair.destination, Limits())  # type: ignore[arg-type]
    for wrong in ({"rounds": 0}, {"threshold": -1}, {"batch": 0}, {"rate": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Limits(**wrong)


# ---- registers


def _vcpu(path: Path, fill: int) -> Vcpu:
    ram = RamMap(path, 4 << 20)
    ram.reserve()
    vcpu = Vcpu(ram, 1 << 20, 0, lambda: False)
    rng = np.random.default_rng(fill)
    for number in range(16):
        vcpu.set_gpr(number, int(rng.integers(1 << 62)))
    vcpu.pkru = fill
    for name in abi.VMCB.names or ():
        field = vcpu.vmcb_fields[name]
        field[...] = np.frombuffer(rng.bytes(field.nbytes), field.dtype).reshape(field.shape)
    return vcpu


def test_the_guests_registers_go_and_the_machines_stay(tmp_path: Path) -> None:
    ours, theirs = _vcpu(tmp_path / "a", 1), _vcpu(tmp_path / "b", 2)
    before = theirs.vmcb_fields.copy()
    VcpuState.take(ours).put(theirs)
    for name in abi.VMCB.names or ():
        expected = ours.vmcb_fields if name in GUEST_FIELDS else before
        assert theirs.vmcb_fields[name].tobytes() == expected[name].tobytes(), name
    assert [theirs.gpr(number) for number in range(16)] == [ours.gpr(number) for number in range(16)]
    assert theirs.pkru == 1
    stay = {"cr0", "cr3", "cr4", "efer", "intercept", "intercept_cr", "iopm_base", "msrpm_base", "asid"}
    assert not stay & set(GUEST_FIELDS)


def test_the_pdptes_that_a_guest_has_loaded_go_with_it() -> None:
    one = Domain("pae", fill="demand")
    one.map(0x1000, 7)
    one.start()
    loaded = one.engine.pdptes
    one.poke(one.root << 12, 0)  # not loaded again: the processor still has the old one
    assert one.engine.shadow_fault(0x1000, 0) == RETRY

    other = XiEngine(one.engine.config, one.memory)
    other.control(one.state)
    assert not other.pdptes[0] & PTE_P
    other.restore_pdptes(loaded)
    assert other.shadow_fault(0x1000, 0) == RETRY
    assert other.audit() == []


# ---- what is told


def test_the_table_tells_each_round_and_the_outcome() -> None:
    report = MigrationReport("churn", "pae", 1, "after checkpoint 1", "7 dirty frames are few enough", passed=0)
    report.rounds = [Round(0, 8096, 350, 120.4, 8096, 1954, 219, 0.2314), Round(1, 219, 263, 506.0, 219, 87, 7, 0.0076)]
    report.last_frames, report.compared, report.stopped_us = 7, 8096, 1270.0
    lines = report.lines()
    assert [line.split()[0] for line in lines[:4]] == ["round", "0", "1", "stop"]
    assert "8,096" in lines[1]
    assert lines[-1] == "8,096 frames compared, 0 unequal; the guest stood for 1.27 ms"
    assert report.copied == 8096 + 219 + 7
    report.unequal, report.first_unequal = 12, [0x150, 0x151]
    assert report.outcome == "8,096 frames compared, 12 unequal (gfn 0x150, 0x151, ...)"


def test_the_seed_chooses_the_start_and_a_wish_overrides_it() -> None:
    drawn = {Start.of(None, None, seed) for seed in range(20)}
    assert len(drawn) > 5
    assert Start.of(None, None, 3) == Start.of(None, None, 3)
    assert Start.of("mapped", None, 3) == Start("mapped", 0)
    assert Start.of(None, 40, 3).text == "40 exits after its entry"
    assert Start.of(2, 40, 3).words == ["--after", "2", "--exits", "40"]


# ---- real guests


def _migrate(
    name: str, paging: str, plan: MigrationPlan | None = None, engine: Engine | None = None, options: RunOptions = LIVE
) -> tuple[RunRecord, MigrationReport]:
    return run_migration(load_catalogue()[name], paging, options, plan, make_engine=engine)


@pytest.mark.two_cores
@pytest.mark.parametrize("paging", ["nopae", "pae", "long4", "long5"])
def test_a_guest_finishes_its_plan_on_the_other_machine(paging: str) -> None:
    record, report = _migrate("basic", paging)
    assert (record.verdict, record.reason) == ("pass", "")
    assert report.done
    assert report.unequal == 0
    assert report.compared == 8192 - 0x60
    assert report.rounds[0].frames == report.compared
    assert report.rounds[0].protected > 0
    assert record.checkpoints == 9
    assert len(record.tap) == 9
    assert record.checks["probe"] > 0
    assert record.mismatches == record.audit_failures == 0
    assert 0 < report.stopped_us < report.checking_us * 100


@pytest.mark.two_cores
def test_a_guest_that_stores_all_the_time_takes_several_rounds() -> None:
    record, report = _migrate("churn", "long4", MigrationPlan(after=1, exits=10, limits=Limits(threshold=8)))
    assert (record.verdict, report.unequal) == ("pass", 0)
    assert len(report.rounds) > 1
    assert report.rounds[1].frames == report.rounds[0].dirty > 8
    assert report.rounds[1].exits > 0
    assert "--after 1 --exits 10" in record.repro[0]


@pytest.mark.two_cores
def test_a_guest_that_never_leaves_is_pulled_out() -> None:
    options = RunOptions(mode="live", probe_budget=60, time_limit=1.5)
    record, report = _migrate("hostile_loop", "long4", MigrationPlan(after=1, limits=Limits(rate=0)), options=options)
    assert report.done
    assert report.pulled > 0
    assert record.verdict == "timeout"


@pytest.mark.two_cores
def test_the_source_is_poisoned_and_ended_before_the_guest_goes_on() -> None:
    source = LiveSession(load_catalogue()["basic"], "pae", LIVE)
    seen: list[tuple[bool, bool, bool]] = []

    class Watched(Migration):
        def _switch_over(self, destination: Destination, stop: Any) -> None:
            ram, layout = source.machine.ram.bytes, source.layout
            assert (ram[layout.first_mfn << 12 :] != POISON).any()
            assert (layout.p2m != destination.layout.p2m).mean() > 0.9
            super()._switch_over(destination, stop)
            poisoned = bool((ram[layout.first_mfn << 12 :] == POISON).all())
            seen.append((poisoned, source.machine.ended(), destination.machine.ended()))

    migration = Watched(source, MigrationPlan(after=1))
    migration.run()
    assert seen == [(True, True, False)]
    assert source.record.verdict == "pass"


@pytest.mark.two_cores
@pytest.mark.parametrize("broken", [DropsOne, OwnStoresUnlogged])
def test_a_log_with_holes_fails_the_comparison(broken: Engine) -> None:
    # What the log misses shows when it happens behind the copying's back: on a slow day not at the first go.
    for guest, paging in (("switch", "long4"), ("perm", "nopae"), ("perm", "pae"), ("switch", "pae")) * 2:
        record, report = _migrate(guest, paging, MigrationPlan(after=1), broken)
        if report.unequal:
            break
    assert report.unequal > 0
    assert not report.done
    assert record.verdict == "fail"
    assert record.reason.startswith("the copy is not like the original: 8,096 frames compared")


@pytest.mark.two_cores
@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (MigrationPlan(after="nowhere"), "before the migration could begin (after checkpoint nowhere)"),
        (MigrationPlan(after=1, limits=Limits(rate=1)), "while it was copied"),
    ],
)
def test_a_guest_that_ends_too_soon_is_a_failure(plan: MigrationPlan, reason: str) -> None:
    record, report = _migrate("hostile_triple", "pae", plan)
    assert not report.done
    assert (record.verdict, record.reason) == ("fail", f"the guest ended {reason} (the guest: crash)")


def test_what_does_not_run_live_is_not_migrated() -> None:
    with pytest.raises(ValueError, match="live mode"):
        _migrate("basic", "pae", options=RunOptions())


# ---- the command


@pytest.mark.two_cores
def test_the_command_tells_the_rounds_and_the_verdict() -> None:
    command = [sys.executable, "-m", "harness", "migrate", "basic", "--paging", "pae", "--json", "-"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["runs"][0]["verdict"] == "pass"
    assert report["migrations"][0]["unequal"] == 0
    assert report["migrations"][0]["rounds"][0]["frames"] == 8096
    assert "8,096 frames compared, 0 unequal" in done.stderr
    assert "1 run (1 pass), 1 as expected" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nobody"], "unknown guest 'nobody'"),
        (["basic", "--paging", "pea"], "unknown paging mode 'pea'"),
        (["basic", "--rate", "-1"], "--rate"),
        (["basic", "--json", "/absent/report.json"], "/absent/report.json"),
    ],
)
def test_a_wrong_command_line_is_status_2(arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(cli.app, ["migrate", *arguments])
    assert done.exit_code == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
