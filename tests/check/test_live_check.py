"""The cross-check in live mode: the same questions, over scattered frames, with the engine behind the processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from harness.check.target import CheckReport
from harness.machine.mailbox import Status
from harness.machine.ram import POISON
from harness.x86 import bits
from harness.x86.access import Access
from harness.x86.modes import LONG4, NOPAE, PAE, PAGED_MODES, UNPAGED, PagingMode
from tests.check.guest_tables import DATA, A, D, P, U, W, arena
from tests.check.live_machine import LiveGuest, live_guest
from tests.check.test_crosscheck import fields, first

every_mode = pytest.mark.parametrize("mode", PAGED_MODES, ids=lambda mode: mode.name)
Ints = npt.NDArray[np.int64]


def checked(guest: LiveGuest, stale: bool = False) -> CheckReport:
    return guest.checker.checkpoint(guest.stop(stale))


def answering(guest: LiveGuest, monkeypatch: pytest.MonkeyPatch, change: Callable[[int, int, int], int]) -> None:
    """From now on the engine gives change(va, access, its answer)."""
    honest = guest.xi.shadow_fault

    def one(va: int, access: int) -> int:
        return change(va, access, honest(va, access))

    def each(addresses: Sequence[int], accesses: Sequence[int]) -> list[int]:
        return [one(va, access) for va, access in zip(addresses, accesses, strict=True)]

    monkeypatch.setattr(guest.xi, "shadow_fault", one)
    monkeypatch.setattr(guest.xi, "shadow_faults", each)


@every_mode
def test_an_honest_engine_passes_again_and_again_and_its_tables_are_as_they_were(mode: PagingMode) -> None:
    guest = live_guest(mode)
    before = guest.ram.copy()
    for _ in range(3):
        report = checked(guest)
        assert report.mismatches == []
        assert report.checks["probe"] > 500
        assert report.checks["ad_bits"] > 20
        assert guest.xi.unexplained_changes() == []
        assert guest.xi.audit() == []
        guest.xi.resync_all()
    changed = before ^ guest.ram
    assert changed.any()
    assert not (changed & np.uint8(0x9F)).any()


def test_only_the_oracles_that_can_be_asked_are_counted_and_no_quirk_is_forgiven() -> None:
    report = checked(live_guest(PAE))
    assert report.checks.keys() == {"probe", "ad_bits"}
    assert report.exceptions.keys() <= {"untagged"}


def test_reserved_bits_need_no_exception() -> None:
    guest = live_guest(PAE)
    guest.flush(efer=0)  # NX is reserved now
    report = checked(guest)
    assert report.mismatches == []
    assert "qemu-rsvd-p0" not in report.exceptions


def test_an_error_code_as_qemu_would_give_it_is_a_mistake_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = live_guest(PAE)
    guest.flush(efer=0)

    def without_p(va: int, access: int, answer: int) -> int:
        return answer & ~bits.PF_P if answer > 0 and answer & bits.PF_RSVD else answer

    answering(guest, monkeypatch, without_p)
    assert fields(checked(guest)) == {"code"}


def test_nor_is_one_explained_away_that_comes_from_the_processors_side_alone() -> None:
    guest = live_guest(PAE)
    guest.flush(efer=0)

    def without_p(records: npt.NDArray[Any]) -> None:
        reserved = (records["status"] == Status.FAULT) & (records["code"] & bits.PF_RSVD != 0)
        records["code"][reserved] &= ~np.uint32(bits.PF_P)

    guest.live_target.twist = without_p
    assert fields(checked(guest)) == {"code"}


@every_mode
def test_frames_may_move_between_checkpoints_and_be_missing_at_one(mode: PagingMode) -> None:
    guest = live_guest(mode)
    spare = guest.layout.spare.tolist()
    assert checked(guest).mismatches == []
    guest.move(DATA, spare[0])
    guest.move(guest.root, spare[1])  # a table, too
    assert checked(guest).mismatches == []
    guest.move(DATA + 1, -1)
    report = checked(guest)
    assert report.mismatches == []
    assert guest.view.to_mfn[DATA + 1] == -1


def test_behind_a_table_whose_frame_is_missing_nothing_is_probed() -> None:
    guest = live_guest(LONG4)
    assert checked(guest).mismatches == []
    guest.move(guest.entry_at(arena(LONG4)) >> 12, -1)
    report = checked(guest)
    assert report.mismatches == []
    assert report.exceptions["table-not-visible"] > 0


def test_tables_that_were_synchronised_between_probes_are_not_taken_for_unchanged() -> None:
    guest = live_guest(LONG4)
    assert checked(guest).mismatches == []
    guest.live_target.twist = lambda records: guest.xi.resync_all()  # tokens and tags are still in the tables
    assert checked(guest).mismatches == []
    assert guest.xi.unexplained_changes() == []


def test_a_translation_that_forgot_that_its_frame_moved_is_found() -> None:
    guest = live_guest(LONG4)
    assert checked(guest).mismatches == []
    spare = int(guest.layout.spare[0])
    old = guest.view.to_mfn[DATA]
    guest.machine[spare << 12 : spare + 1 << 12] = guest.machine[old << 12 : old + 1 << 12]
    guest.view.remap(DATA, spare)  # and the engine is not told
    guest.machine[old << 12 : old + 1 << 12] = POISON
    report = checked(guest)
    assert "frame" in fields(report)
    wrong = first(report, "frame")
    assert wrong.guest == f"frame {DATA:#x}"
    assert wrong.shadow == wrong.hardware == "translated, frame not proven"


@every_mode
def test_a_wrong_p2m_in_the_engine_is_found_by_shadow_and_processor(mode: PagingMode) -> None:
    def swapped(p2m: Ints) -> None:
        p2m[[DATA, DATA + 0x50]] = p2m[[DATA + 0x50, DATA]]

    guest = live_guest(mode, believed=swapped)
    wrong = first(checked(guest), "frame")
    assert wrong.guest == f"frame {DATA:#x}"
    assert wrong.shadow == wrong.hardware == f"frame {DATA + 0x50:#x}"


@every_mode
def test_an_accessed_bit_that_the_engine_does_not_set_is_found(
    mode: PagingMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = live_guest(mode)
    monkeypatch.setattr(guest.xi, "set_accessed", lambda walk, store: walk)
    report = checked(guest)
    assert {"accessed", "dirty"} <= fields(report, "ad_bits")
    missing = first(report, "accessed")
    assert missing.guest.startswith("accessed=1")
    assert missing.shadow.startswith("accessed=0")
    assert missing.hardware.startswith("accessed=0")


def test_a_bit_that_never_reached_ram_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = live_guest(LONG4)
    at = guest.entry_at(arena(LONG4))
    machine = guest.view.to_mfn[at >> 12] << 12 | at & 0xFFF
    honest = guest.memory.or64

    def lost(address: int, mark: int) -> None:
        honest(address, mark)
        if address == machine:
            guest.machine[machine] &= np.uint8(0x9F)

    monkeypatch.setattr(guest.memory, "or64", lost)
    report = checked(guest)
    wrong = first(report, "accessed")
    assert (wrong.guest[:10], wrong.shadow[:10], wrong.hardware[:10]) == ("accessed=1", "accessed=1", "accessed=0")


def test_a_bit_that_someone_else_sets_is_found() -> None:
    guest = live_guest(LONG4)
    at = guest.entry_at(arena(LONG4) + (3 << 12))

    def walked(records: npt.NDArray[Any]) -> None:  # a processor on the guest's own tables
        guest.write(at, guest.read(at) | D)

    guest.entry_at(arena(LONG4))
    guest.write(at, guest.read(at) & ~W)  # a page to which no store completes
    guest.flush()
    guest.live_target.twist = walked
    wrong = first(checked(guest), "dirty")
    assert (wrong.guest[:7], wrong.shadow[:7], wrong.hardware[:7]) == ("dirty=0", "dirty=0", "dirty=1")


def test_an_upper_bit_set_by_a_walk_that_faults_is_no_freedom_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = live_guest(LONG4)
    va = arena(LONG4) + (1 << 30)
    guest.map(va - 0x1000, DATA + 5)  # so that the page after it is probed
    guest.entry_at(va)  # its tables are there, the page is not
    upper = guest.entry_at(va, 2)
    guest.flush()

    def eager(address: int, access: int, answer: int) -> int:
        if address >> 30 == va >> 30:
            guest.memory.or64(guest.view.to_mfn[upper >> 12] << 12 | upper & 0xFFF, A)
        return answer

    answering(guest, monkeypatch, eager)
    wrong = first(checked(guest), "accessed")
    assert (wrong.guest[:10], wrong.shadow[:10], wrong.hardware[:10]) == ("accessed=0", "accessed=1", "accessed=1")


def test_bits_outside_the_guests_memory_are_found() -> None:
    guest = live_guest(LONG4)
    stray = int(guest.layout.spare[0]) << 12 | 0x20
    guest.live_target.twist = lambda records: guest.memory.or64(stray, A)
    report = checked(guest)
    assert fields(report, "ad_bits") == {"place"}
    assert f"{stray:#x}" in first(report, "place").shadow


def test_a_load_from_a_frame_of_nobody_is_found() -> None:
    guest = live_guest(LONG4)

    def elsewhere(records: npt.NDArray[Any]) -> None:
        loads = (records["status"] == Status.DONE) & (records["op"] == Access.LOAD)
        records["value"][np.flatnonzero(loads)[0]] = 0xCCCCCCCC

    guest.live_target.twist = elsewhere
    report = checked(guest)
    assert [(one.field, one.hardware) for one in report.mismatches] == [("frame", "translated, frame not proven")]


def test_what_is_no_memory_of_the_guest_must_fault_and_nothing_else() -> None:
    guest = live_guest(LONG4)
    base = arena(LONG4)
    guest.map(base + (0x60 << 12), 0x8_0000)  # beyond its memory
    guest.map(base + (0x62 << 12), 0xB8)  # the hole
    guest.flush()
    for _ in range(2):
        assert checked(guest).mismatches == []

    def completes(records: npt.NDArray[Any]) -> None:
        at = (records["va"] >> np.uint64(12) == (base >> 12) + 0x60) & (records["op"] == Access.LOAD)
        records["status"][at] = Status.DONE

    guest.live_target.twist = completes
    report = checked(guest)
    assert [(one.guest, one.field) for one in report.mismatches] == [("no RAM, at 0x80000000", "frame")]


@pytest.mark.parametrize("mode", [NOPAE, PAE, LONG4], ids=lambda mode: mode.name)
def test_before_the_flush_old_and_new_translations_are_both_allowed(mode: PagingMode) -> None:
    guest = live_guest(mode)
    assert checked(guest).mismatches == []
    guest.map(arena(mode), DATA + 0x99, P | W | U | A | D)
    guest.map(arena(mode) + 0x1000, DATA, P | U | A)
    guest.announce()
    report = checked(guest, stale=True)
    assert report.mismatches == []
    assert report.exceptions["stale-allowed"] > 0
    assert report.checks["ad_bits"] == 0
    guest.flush()
    assert checked(guest).mismatches == []


def test_pdptes_are_latched_by_the_engine_and_that_is_no_quirk() -> None:
    guest = live_guest(PAE)
    assert checked(guest).mismatches == []
    pdpte = guest.entry_at(arena(PAE), 3)
    guest.write(pdpte, 0)
    guest.announce()
    report = checked(guest, stale=True)
    assert report.mismatches == []
    assert report.exceptions["stale-allowed"] > 0
    assert "qemu-pdpte-reread" not in report.exceptions
    guest.flush()
    assert checked(guest).mismatches == []


def test_a_shadow_that_missed_the_flush_is_found() -> None:
    guest = live_guest(LONG4)
    assert checked(guest).mismatches == []
    guest.map(arena(LONG4), DATA + 0x99, P | W | U | A | D)
    wrong = first(checked(guest), "frame")
    assert wrong.shadow == wrong.hardware == f"frame {DATA:#x}"


def test_unpaged_addresses_are_themselves() -> None:
    guest = LiveGuest(LONG4)
    guest.flush(cr0=bits.CR0_PE)
    assert guest.state.mode is UNPAGED
    report = checked(guest)
    assert report.mismatches == []
    assert report.checks["probe"] > 100
