"""The hardware as a debugger asks it, of real guests in both modes: right answers, proven frames, memory put back."""

from __future__ import annotations

import numpy as np
import pytest

from harness.catalogue import load_catalogue
from harness.check.ranges import find_ranges
from harness.check.verdict import FRAME, NOT_RUN
from harness.debug.commands.runs import guest_runs
from harness.debug.commands.table import run_command
from harness.debug.commands.text import MARK
from harness.debug.commands.views import guest_path, layout
from harness.debug.commands.walk import shadow_answers
from harness.debug.hardware import LiveHardware, ObservedHardware
from harness.debug.observed import ObservedGuest
from harness.debug.scene import CommandError, Scene
from harness.engine import Words
from harness.live.session import LiveSession
from harness.options import Mode, RunOptions
from harness.session import Session
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.bits import PTE_A, PTE_ADDR, PTE_D
from harness.x86.walk import USER, judge

MAPPED = "mapped, no flush needed"
PAGES = 14
modes = pytest.mark.parametrize("mode", [Mode.OBSERVE, pytest.param(Mode.LIVE, marks=pytest.mark.two_cores)])
pagings = pytest.mark.parametrize("paging", ["nopae", "pae", "long4"])


def make_session(mode: Mode, guest: str, paging: str) -> Session:
    options = RunOptions(mode=mode.value, probe_budget=60)
    return (LiveSession if mode is Mode.LIVE else Session)(load_catalogue()[guest], paging, options)


def hardware_of(session: Session) -> ObservedHardware | LiveHardware:
    image = [gfn for segment in session.image.segments for gfn in segment.frames]
    if isinstance(session, LiveSession):
        return LiveHardware(session.target, session.live, image)
    guest = ObservedGuest(session.machine, session.observer, session.translate)
    return ObservedHardware(session.target, session.observer, guest, image, lambda: session.stop)


def scene_of(session: Session, hardware: ObservedHardware | LiveHardware) -> Scene:
    log = session.interception.log
    return Scene(
        guest="a guest",
        engine=session.engine,
        state=session.interception.state,
        ram=session.target.ram,
        p2m=session.memory.p2m,
        registers={},
        total=log.total,
        events=log.last,
        hardware=hardware,
        symbols=session.image.symbols,
    )


def addresses(session: Session, scene: Scene) -> list[int]:
    """First pages of what is mapped behind the guest's image, where tags find room, and some that are not mapped."""
    runs = guest_runs(scene)
    found = [
        int(first) << 12 for first, gfn in zip(runs.first, runs.gfn, strict=True) if gfn << 12 >= session.image.end
    ]
    assert found
    return [*(va + 0x123 for va in found[:PAGES]), 0x3F00_0123, *([1 << 47] if scene.state.mode.canonical else [])]


def kept_words(session: Session, scene: Scene) -> Words:
    """A copy of the guest's memory without what serving probes may change: its own writable pages, and in tables A and
    D (at both places where the two halves of a word may have them)."""
    words = scene.ram.view(np.uint64).reshape(-1, 512).copy()
    tables = find_ranges(scene.state, scene.ram, layout(scene), np.random.default_rng(0)).tables
    words[tables] &= np.uint64(~((PTE_A | PTE_D) * 0x1_0000_0001) & (1 << 64) - 1)
    words[[session.image.physical(page) >> 12 for page in session.image.writable_pages]] = 0
    return words


@modes
@pagings
def test_probes_agree_with_the_guest_tables_and_leave_memory_as_it_was(mode: Mode, paging: str) -> None:
    with make_session(mode, "perm", paging) as session:
        assert session.run_to_checkpoint() is not None
        hardware = hardware_of(session)
        scene = scene_of(session, hardware)
        before = kept_words(session, scene)
        translated = faulted = 0
        for va in addresses(session, scene):
            for access in ALL_ACCESSES:
                wanted = judge(guest_path(scene, va), access, scene.state)
                seen = hardware.probe(va, access)
                if "frame not proven" not in seen:
                    assert seen.startswith(wanted.text), f"{va:#x} {access.text}: {seen}, guest {wanted.text}"
                translated += "+" in seen
                faulted += seen.startswith("#PF")
        assert translated > 20
        assert faulted > 20
        assert np.array_equal(before, kept_words(session, scene))
        assert session.check().mismatches == []
        assert session.finish().verdict == "pass"


@modes
def test_looking_changes_nothing_at_all(mode: Mode) -> None:
    with make_session(mode, "basic", "long4") as session:
        assert session.run_to_checkpoint(MAPPED) is not None
        assert session.check().mismatches == []  # from here on A and D are set where probes go
        hardware = hardware_of(session)
        scene = scene_of(session, hardware)
        ram, pool = session.target.ram.copy(), session.engine.pool[1].copy()
        ours = np.isin(
            np.arange(len(ram)) >> 12, [session.image.physical(page) >> 12 for page in session.image.writable_pages]
        )
        stats, events = session.engine.stats(), session.interception.log.total
        asked = 0
        for va in addresses(session, scene):
            seen = hardware.look(va)
            shade = shadow_answers(scene, va)
            asked += int((seen.codes != NOT_RUN).sum())
            told = (seen.codes == FRAME) & (seen.frames >= 0)
            expected = shade.frames if mode is Mode.LIVE else np.full(6, guest_path(scene, va).gfn)
            assert (seen.frames[told] == expected[told]).all(), hex(va)
            assert MARK not in run_command(scene, f"walk {va:#x}"), hex(va)
        assert asked > 24
        assert np.array_equal(ram[~ours], session.target.ram[~ours])
        assert session.engine.stats() == stats
        assert session.interception.log.total == events
        assert np.array_equal(pool, session.engine.pool[1])
        assert session.finish().verdict == "pass"


@modes
def test_a_stale_entry_is_seen_by_the_hardware_until_it_is_flushed(mode: Mode) -> None:
    """The guest `stale` stands behind a change of an entry that it has not flushed."""
    with make_session(mode, "stale", "long4") as session:
        for _ in range(40):
            stop = session.run_to_checkpoint()
            assert stop is not None, "no such checkpoint"
            if stop.stale and stop.name == "remap":
                break
        hardware = hardware_of(session)
        scene = scene_of(session, hardware)
        runs = guest_runs(scene)
        own = (runs.gfn << 12 >= session.image.end) & (runs.rights & USER != 0)
        va = int(runs.first[np.flatnonzero(own)[0]]) << 12
        before = kept_words(session, scene)
        users = (Access.USER_LOAD, Access.USER_STORE, Access.USER_FETCH)
        (old,) = {hardware.probe(va, access) for access in users}
        now = f"frame {guest_path(scene, va).gfn:#x} + 0x0"
        assert old.startswith("frame 0x") and old != now, "the TLB, or the shadow, still has the old frame"
        assert MARK in run_command(scene, f"probe {va:#x} r u")
        assert np.array_equal(before, kept_words(session, scene)), "what was stored to the old frame is put back"
        events = session.interception.log.total
        assert f"INVLPG {va:#x}" in run_command(scene, f"flush {va:#x}")
        assert session.interception.log.total == events + 1
        assert {hardware.probe(va, access) for access in users} == {now}
        assert MARK not in run_command(scene, f"probe {va:#x} r u")
        assert MARK not in run_command(scene, "ranges both")
        assert np.array_equal(before, kept_words(session, scene))
        assert session.finish().verdict == "pass"


def test_observed_guests_probe_at_checkpoints_only() -> None:
    with make_session(Mode.OBSERVE, "basic", "long4") as session:
        assert session.run_to_checkpoint(MAPPED) is not None
        hardware = hardware_of(session)
        assert isinstance(hardware, ObservedHardware)
        hardware._standing = lambda: None
        scene = scene_of(session, hardware)
        va = session.image.entry
        with pytest.raises(CommandError, match=f"no checkpoint.*\n.*{session.image.physical(va):#x}"):
            run_command(scene, f"probe {va:#x} r")
        walk = run_command(scene, f"walk {va:#x}")
        assert "no checkpoint" in walk
        assert f"QEMU's debug walk: at {session.image.physical(va):#x}" in walk
        assert MARK not in walk


@pytest.mark.two_cores
def test_a_cr3_flush_is_an_event_and_both_agree_afterwards() -> None:
    with make_session(Mode.LIVE, "basic", "pae") as session:
        assert session.run_to_checkpoint(MAPPED) is not None
        hardware = hardware_of(session)
        loads = session.interception.log.counts["cr3_load"]
        assert f"{session.interception.state.cr3:#x}" in hardware.flush(None)
        assert session.interception.log.counts["cr3_load"] == loads + 1
        with pytest.raises(CommandError, match="monitor's tables"):
            hardware.translate(0)
        assert session.finish().verdict == "pass"


@pytest.mark.two_cores
@pytest.mark.parametrize("level", [1, 2])
def test_a_shadow_that_leads_out_of_the_guest_is_not_followed(level: int) -> None:
    with make_session(Mode.LIVE, "basic", "long4") as session:
        assert session.run_to_checkpoint(MAPPED) is not None
        hardware = hardware_of(session)
        scene = scene_of(session, hardware)
        runs = guest_runs(scene)
        va = int(runs.first[np.flatnonzero((runs.rights & USER != 0) & (runs.gfn << 12 >= session.image.end))[0]]) << 12
        assert hardware.probe(va, Access.LOAD).startswith("frame")
        assert (hardware.look(va).codes != NOT_RUN).any()
        (row,) = [row for row in session.engine.describe_walk(va) if row["level"] == level]
        base, words = session.engine.pool
        table, held = words[row["mfn"] - base], row["spte"]
        outside = session.engine.root.root if level == 1 else 1 << 20  # the pool; the monitor
        table[row["index"]] = held & ~PTE_ADDR | outside
        assert (hardware.look(va).codes == NOT_RUN).all()
        with pytest.raises(CommandError, match=f"out of the guest's memory.*walk {va:#x}"):
            hardware.probe(va, Access.STORE)
        assert MARK in run_command(scene, f"walk {va:#x}")
        table[row["index"]] = held
        assert hardware.probe(va, Access.LOAD).startswith("frame")
        assert session.finish().verdict == "pass"
