"""The cross-check finds nothing wrong with an honest engine, and each oracle finds its own kind of lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from harness.check.target import CheckReport, Mismatch
from harness.machine.mailbox import Status, load_tag
from harness.x86 import bits
from harness.x86.access import Access
from harness.x86.modes import LONG4, NOPAE, PAE, PAGED_MODES, UNPAGED, PagingMode
from tests.check.guest_tables import DATA, NX, A, D, Guest, P, U, W, arena, small_guest
from tests.check.toy_engine import ToyEngine

every_mode = pytest.mark.parametrize("mode", PAGED_MODES, ids=lambda mode: mode.name)


def fields(report: CheckReport, oracle: str = "probe") -> set[str]:
    return {mismatch.field for mismatch in report.mismatches if mismatch.oracle == oracle}


def first(report: CheckReport, field: str) -> Mismatch:
    return next(mismatch for mismatch in report.mismatches if mismatch.field == field)


@every_mode
def test_an_honest_engine_passes_and_ram_is_as_it_was_but_for_accessed_and_dirty_bits(mode: PagingMode) -> None:
    guest = small_guest(mode)
    before = guest.ram.copy()
    report = guest.checker.checkpoint(guest.stop())
    assert report.mismatches == []
    assert report.checks["probe"] > 500
    assert report.checks["ad_bits"] > 20
    assert report.checks["gva2gpa"] == guest.checker.second.addresses
    assert report.checks["memory"] == guest.checker.second.reads
    changed = np.flatnonzero(before ^ guest.ram)
    assert len(changed)
    assert not (before ^ guest.ram)[changed].__and__(np.uint8(0x9F)).any()


@every_mode
def test_a_second_checkpoint_without_changes_passes_too(mode: PagingMode) -> None:
    guest = small_guest(mode)
    for _ in range(3):
        assert guest.checker.checkpoint(guest.stop()).mismatches == []


@pytest.mark.parametrize("wp", [0, 1])
@pytest.mark.parametrize("protection", [0, bits.CR4_SMEP, bits.CR4_SMAP, bits.CR4_SMEP | bits.CR4_SMAP])
@every_mode
def test_the_control_bits_change_the_answers_of_all_three_alike(mode: PagingMode, protection: int, wp: int) -> None:
    guest = small_guest(mode)
    cr0 = guest.state.cr0 if wp else guest.state.cr0 & ~bits.CR0_WP
    guest.flush(cr0=cr0, cr4=guest.state.cr4 | protection)
    assert guest.checker.checkpoint(guest.stop()).mismatches == []


def test_protection_keys() -> None:
    guest = small_guest(LONG4)
    base = arena(LONG4)
    for key in range(1, 5):
        guest.map(base + (0x80 + key << 12), DATA + key, P | W | U | key << 59)
    guest.flush(cr4=guest.state.cr4 | bits.CR4_PKE, pkru=0b01_10_11_00_00)
    assert guest.checker.checkpoint(guest.stop()).mismatches == []


def test_without_nx_enabled_its_bit_is_reserved_and_the_missing_p_is_a_named_exception() -> None:
    guest = small_guest(PAE)
    guest.flush(efer=0)
    report = guest.checker.checkpoint(guest.stop())
    assert report.mismatches == []
    assert report.exceptions["qemu-rsvd-p0"] > 0


def test_the_fetch_bit_without_pae_is_a_named_exception() -> None:
    guest = small_guest(NOPAE)
    guest.flush(efer=bits.EFER_NXE)
    report = guest.checker.checkpoint(guest.stop())
    assert report.mismatches == []
    assert report.exceptions["qemu-nopae-id-bit"] > 0


def test_accessed_bits_in_pdptes_are_a_named_exception() -> None:
    guest = small_guest(PAE)
    report = guest.checker.checkpoint(guest.stop())
    assert report.exceptions["pdpte-accessed"] > 0


@every_mode
def test_a_wrong_frame_in_the_shadow_is_found(mode: PagingMode) -> None:
    class OffByOne(ToyEngine):
        def leaf(self, gfn: int, access: int) -> int:
            return super().leaf(gfn ^ (gfn == DATA), access)

    guest = small_guest(mode)
    guest.engine.__class__ = OffByOne
    report = guest.checker.checkpoint(guest.stop())
    assert "frame" in fields(report)
    wrong = first(report, "frame")
    assert wrong.shadow == f"frame {DATA ^ 1:#x}"
    assert wrong.hardware == wrong.guest == f"frame {DATA:#x}"
    assert wrong.guest_walk
    assert wrong.shadow_walk


def test_a_wrong_error_code_from_the_engine_is_found() -> None:
    class NoUserBit(ToyEngine):
        def error_code(self, code: int, access: int) -> int:
            return super().error_code(code, access) & ~bits.PF_U

    guest = small_guest(LONG4)
    guest.engine.__class__ = NoUserBit
    report = guest.checker.checkpoint(guest.stop())
    assert fields(report) == {"code"}
    assert all("ring 3" in mismatch.access for mismatch in report.mismatches)


def test_a_shadow_without_nx_is_found() -> None:
    class NxDropped(ToyEngine):
        def leaf(self, gfn: int, access: int) -> int:
            return super().leaf(gfn, access) & ~NX

    guest = small_guest(LONG4)
    guest.engine.__class__ = NxDropped
    base = arena(LONG4)
    guest.engine.shadow_fault(base + (10 << 12), Access.LOAD)  # the page is in the shadow before the check
    report = guest.checker.checkpoint(guest.stop())
    assert "verdict" in fields(report)
    assert all("fetch" in mismatch.access for mismatch in report.mismatches if mismatch.oracle == "probe")


@every_mode
def test_an_accessed_bit_that_the_engine_does_not_set_is_found(mode: PagingMode) -> None:
    class NoAccessed(ToyEngine):
        def set_accessed(self, address: int) -> None:
            if address & 0xFFF == 0:
                super().set_accessed(address)

    guest = small_guest(mode)
    guest.engine.__class__ = NoAccessed
    report = guest.checker.checkpoint(guest.stop())
    assert "accessed" in fields(report, "ad_bits")
    missing = first(report, "accessed")
    assert missing.guest.startswith("accessed=1")
    assert missing.shadow.startswith("accessed=0")
    assert missing.hardware.startswith("accessed=1")


@every_mode
def test_a_dirty_bit_that_the_engine_does_not_set_is_found(mode: PagingMode) -> None:
    class NoDirty(ToyEngine):
        def set_dirty(self, address: int) -> None:
            pass

    guest = small_guest(mode)
    guest.engine.__class__ = NoDirty
    assert fields(guest.checker.checkpoint(guest.stop()), "ad_bits") == {"dirty"}


def test_bits_that_the_processor_does_not_set_are_found() -> None:
    guest = small_guest(LONG4)
    guest.target.mmu.sets_dirty = False
    report = guest.checker.checkpoint(guest.stop())
    assert fields(report, "ad_bits") == {"dirty"}
    assert first(report, "dirty").hardware == "dirty=0 in RAM"


def test_a_bit_set_where_no_walk_went_is_found() -> None:
    class Eager(ToyEngine):
        def set_accessed(self, address: int) -> None:
            super().set_accessed(address)
            super().set_accessed(DATA << 12)

    guest = small_guest(LONG4)
    guest.engine.__class__ = Eager
    assert "accessed" in fields(guest.checker.checkpoint(guest.stop()), "ad_bits")


def twisted(change: Any) -> CheckReport:
    guest = small_guest(LONG4)
    guest.target.twist = change
    return guest.checker.checkpoint(guest.stop())


def test_a_wrong_cr2_is_found() -> None:
    def twist(records: npt.NDArray[Any]) -> None:
        at = np.flatnonzero(records["status"] == Status.FAULT)[0]
        records["cr2"][at] ^= 0x1000

    report = twisted(twist)
    assert [mismatch.field for mismatch in report.mismatches] == ["cr2"]
    assert "CR2" in report.mismatches[0].hardware


def test_a_wrong_code_from_the_processor_is_found() -> None:
    def twist(records: npt.NDArray[Any]) -> None:
        at = np.flatnonzero(records["status"] == Status.FAULT)[0]
        records["code"][at] ^= bits.PF_P

    assert [mismatch.field for mismatch in twisted(twist).mismatches] == ["code"]


def test_a_load_from_another_frame_is_found_and_the_frame_is_named() -> None:
    def twist(records: npt.NDArray[Any]) -> None:
        loads = (records["status"] == Status.DONE) & (records["op"] == Access.LOAD) & (records["value"] != 0)
        records["value"][np.flatnonzero(loads)[0]] = load_tag(0x155)

    report = twisted(twist)
    assert [mismatch.field for mismatch in report.mismatches] == ["frame"]
    assert report.mismatches[0].hardware == "frame 0x155"


def test_a_store_that_goes_elsewhere_is_found_and_the_frame_is_named() -> None:
    guest = small_guest(LONG4)
    page = (arena(LONG4) >> 12) + 0x40
    honest = guest.target.mmu.translate

    def elsewhere(va: int, op: int) -> int:
        gpa = honest(va, op)
        return gpa & 0xFFF | 0x3AA << 12 if va >> 12 == page and op == Access.STORE else gpa

    guest.target.mmu.translate = elsewhere  # type: ignore[method-assign]
    report = guest.checker.checkpoint(guest.stop())
    assert [(one.field, one.hardware) for one in report.mismatches] == [("frame", "frame 0x3aa")]


def test_an_exception_of_another_kind_is_a_wrong_verdict() -> None:
    def twist(records: npt.NDArray[Any]) -> None:
        at = np.flatnonzero(records["status"] == Status.FAULT)[0]
        records["status"][at], records["code"][at] = Status.EXCEPTION, 6

    report = twisted(twist)
    assert [(one.field, one.hardware) for one in report.mismatches] == [("verdict", "exception 6")]


def test_a_probe_that_was_not_run_is_found() -> None:
    def twist(records: npt.NDArray[Any]) -> None:
        records["status"][5] = Status.NOT_RUN

    report = twisted(twist)
    assert [(one.field, one.hardware) for one in report.mismatches] == [("verdict", "not run")]


@every_mode
def test_a_stale_shadow_is_found_once_the_guest_has_flushed(mode: PagingMode) -> None:
    guest = small_guest(mode)
    assert not guest.checker.checkpoint(guest.stop()).mismatches
    guest.map(arena(mode), DATA + 0x99, P | W | U | A | D)
    guest.target.mmu.tlb.clear()  # the processor saw the flush, the engine did not
    report = guest.checker.checkpoint(guest.stop())
    assert "frame" in fields(report)
    assert first(report, "frame").shadow == f"frame {DATA:#x}"


@every_mode
def test_before_the_flush_old_and_new_translations_are_both_allowed(mode: PagingMode) -> None:
    guest = small_guest(mode)
    assert not guest.checker.checkpoint(guest.stop()).mismatches
    guest.map(arena(mode), DATA + 0x99, P | W | U | A | D)
    guest.map(arena(mode) + 0x1000, DATA, P | U | A)
    report = guest.checker.checkpoint(guest.stop(stale=True))
    assert report.mismatches == []
    assert report.exceptions["stale-allowed"] > 0
    assert report.checks["ad_bits"] == 0
    guest.target.mmu.tlb.clear()
    report = guest.checker.checkpoint(guest.stop(stale=True))
    assert report.mismatches == []
    assert report.exceptions["stale-allowed"] > 0
    guest.flush()
    assert not guest.checker.checkpoint(guest.stop()).mismatches


def test_a_stale_checkpoint_allows_nothing_that_never_was() -> None:
    guest = small_guest(LONG4)
    guest.checker.checkpoint(guest.stop())
    guest.map(arena(LONG4), DATA + 0x99, P | W | U | A | D)
    guest.target.mmu.tlb = {key: 0x3BB for key in guest.target.mmu.tlb if key[0] == arena(LONG4) >> 12}
    assert "frame" in fields(guest.checker.checkpoint(guest.stop(stale=True)))


def test_unpaged_addresses_are_themselves() -> None:
    guest = Guest(LONG4)
    guest.flush(cr0=bits.CR0_PE)
    assert guest.state.mode is UNPAGED
    report = guest.checker.checkpoint(guest.stop())
    assert report.mismatches == []
    assert report.checks["probe"] > 100


def test_tables_that_point_past_ram_at_devices_and_at_themselves_end_in_an_answer() -> None:
    guest = small_guest(LONG4)
    base = arena(LONG4)
    guest.map(base + (0x60 << 12), 0x8_0000)  # nothing is there
    guest.map(base + (0x61 << 12), 0xFEE00)  # a device
    guest.map(base + (0x62 << 12), 0xB8)  # the ROM window
    for row in range(8):
        guest.write((guest.root << 12) + 8 * (300 + row), guest.root << 12 | P | W | U)
    guest.write((guest.root << 12) + 8 * 40, 0x9_0000 << 12 | P | W | U)
    guest.write((guest.root << 12) + 8 * 41, 0xFEC00 << 12 | P | W | U)
    guest.flush()
    for _ in range(3):
        report = guest.checker.checkpoint(guest.stop())
        assert report.mismatches == []
    assert report.exceptions["table-not-visible"] > 0


def test_what_the_probe_server_uses_is_left_alone_and_its_bits_are_expected() -> None:
    guest = small_guest(LONG4)
    page = arena(LONG4) + (0x41 << 12)
    at = guest.entry_at(page)
    guest.ram[DATA + 0x41 << 12 : DATA + 0x42 << 12] = 0xEE  # no tag there
    held = guest.ram[DATA + 0x41 << 12 : DATA + 0x42 << 12].copy()
    seen: list[int] = []

    def serve(records: npt.NDArray[Any]) -> None:
        guest.write(at, guest.read(at) | A | D)
        seen.extend(records["op"][records["va"] >> np.uint64(12) == page >> 12].tolist())

    guest.target.twist = serve
    report = guest.checker.checkpoint(guest.stop(ambient=((page, Access.STORE), (page, Access.LOAD))))
    assert report.mismatches == []
    assert (guest.ram[DATA + 0x41 << 12 : DATA + 0x42 << 12] == held).all()
    assert Access.STORE not in seen
    assert report.exceptions["untagged"] > 0


def test_a_guest_without_a_probe_server_is_asked_for_loads_by_the_weak_oracles_only() -> None:
    guest = small_guest(LONG4)
    for va in range(arena(LONG4), arena(LONG4) + 0x50000, 0x1000):
        if guest.read(guest.entry_at(va)) & P:
            guest.target.mmu.translate(va, Access.LOAD)  # A is set already, as in a guest that runs
    guest.target.can_probe = False
    guest.target.probed.update(range(arena(LONG4) >> 12, (arena(LONG4) >> 12) + 0x400))
    checker = type(guest.checker)(guest.engine, guest.overlay, guest.target, 1, 600)
    before = guest.ram.copy()
    report = checker.checkpoint(guest.stop())
    assert report.mismatches == []
    assert report.checks["probe"] == 0
    assert report.checks["gva2gpa"] > 0
    assert report.checks["memory"] > 0
    assert (before == guest.ram).all()


def test_a_debug_walk_that_disagrees_is_found() -> None:
    guest = small_guest(LONG4)
    guest.target.gva2gpa_lies = 0x1000
    report = guest.checker.checkpoint(guest.stop())
    assert {"frame"} == fields(report, "gva2gpa")
    assert {"value"} == fields(report, "memory")


def test_all_is_restored_when_the_machine_is_lost_in_the_middle() -> None:
    guest = small_guest(LONG4)
    before = guest.ram.copy()

    def lose(records: npt.NDArray[Any]) -> None:
        raise OSError("the machine is gone")

    guest.target.twist = lose
    with pytest.raises(OSError, match="gone"):
        guest.checker.checkpoint(guest.stop())
    assert not ((before ^ guest.ram) & np.uint8(0x9F)).any()


def test_a_shadow_table_outside_the_pool_is_a_finding() -> None:
    class Escapes(ToyEngine):
        def fill(self, va: int, gfn: int, access: int, seen: list[int]) -> None:
            self.words[0] = np.uint64(5 << 12 | 7)

    guest = small_guest(LONG4)
    guest.engine.__class__ = Escapes
    report = guest.checker.checkpoint(guest.stop())
    assert any("outside the pool" in one.shadow for one in report.mismatches)


def test_an_engine_that_never_gets_there_is_a_finding_and_not_a_hang() -> None:
    class Never(ToyEngine):
        def fill(self, va: int, gfn: int, access: int, seen: list[int]) -> None:
            pass

    guest = small_guest(LONG4, budget=60)
    guest.engine.__class__ = Never
    report = guest.checker.checkpoint(guest.stop())
    assert any("faults again" in one.shadow for one in report.mismatches)


def test_the_same_seed_makes_the_same_probes() -> None:
    def va_of(seed: int) -> list[int]:
        guest = small_guest(LONG4, seed=seed)
        seen: list[int] = []
        guest.target.twist = lambda records: seen.extend(records["va"].tolist())
        guest.checker.checkpoint(guest.stop())
        return seen

    assert va_of(7) == va_of(7)
    assert va_of(7) != va_of(8)
