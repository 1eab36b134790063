"""The view shows machine frames in the guest's order, follows the p2m, and outlives nothing that looks at it."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harness.machine import guest_view
from harness.machine.errors import MachineError
from harness.machine.guest_view import GuestView, Ints
from harness.machine.ram import RamMap

FRAMES = 64


@pytest.fixture
def ram(tmp_path: Path) -> RamMap:
    """RAM in which every word of frame n is n; the file has no name any more."""
    return numbered(tmp_path / "ram")


def numbered(path: Path) -> RamMap:
    ram = RamMap(path, FRAMES << 12)
    ram.reserve()
    path.unlink()
    ram.bytes.view(np.uint64).reshape(-1, 512)[:] = np.arange(FRAMES, dtype=np.uint64)[:, None]
    return ram


def p2m_of(*mfns: int) -> Ints:
    return np.asarray(mfns, np.int64)


def frame_of(ram: RamMap, mfn: int) -> guest_view.Words:
    frame: guest_view.Words = ram.bytes.view(np.uint64).reshape(-1, 512)[mfn]
    return frame


def test_each_guest_frame_is_its_machine_frame_and_the_hole_is_zero(ram: RamMap) -> None:
    view = GuestView(ram, p2m_of(9, 10, 11, -1, -1, 3, 40, 2))
    assert (view.words == np.asarray([9, 10, 11, 0, 0, 3, 40, 2], np.uint64)[:, None]).all()
    assert view.frames == 8
    assert view.bytes.nbytes == 8 << 12
    assert view.m2p[40] == 6
    assert np.count_nonzero(view.m2p >= 0) == 6


@given(st.permutations(range(FRAMES)), arrays(np.bool_, 24))
def test_any_p2m_can_be_seen_and_its_m2p_is_its_inverse(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], gone: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> None:
    ram = numbered(tmp_path_factory.mktemp("ram") / "ram")
    p2m = np.where(gone, -1, np.asarray(order[:24], np.int64))
    view = GuestView(ram, p2m)
    assert (view.words[:, 511].astype(np.int64) == np.where(gone, 0, p2m)).all()
    for gfn, mfn in enumerate(p2m.tolist()):
        assert mfn < 0 or view.m2p[mfn] == gfn


def test_it_is_the_same_memory_in_both_directions(ram: RamMap) -> None:
    view = GuestView(ram, p2m_of(9, 3))
    view.words[1, 7] = 0x1234
    assert frame_of(ram, 3)[7] == 0x1234
    frame_of(ram, 9)[0] = 0x5678
    assert view.words[0, 0] == 0x5678
    view.bytes[8] = 0xAB
    assert frame_of(ram, 9)[1] & 0xFF == 0xAB


def test_a_remap_is_seen_by_arrays_made_before(ram: RamMap) -> None:
    view = GuestView(ram, p2m_of(9, 10, 11, 12))
    words, quads = view.words, view.bytes.data.cast("B").cast("Q")
    view.remap(1, 50)
    assert words[:, 0].tolist() == [9, 50, 11, 12]
    assert quads[512] == 50
    view.remap(1, -1)
    assert words[:, 0].tolist() == [9, 0, 11, 12]
    words[1, 0] = 77
    assert frame_of(ram, 50)[0] == 50  # nobody's any more
    view.remap(2, 10)
    view.remap(1, 50)
    assert words[:, 0].tolist() == [9, 50, 10, 12]
    assert view.p2m.tolist() == list(view.to_mfn) == [9, 50, 10, 12]
    assert np.flatnonzero(view.m2p >= 0).tolist() == [9, 10, 12, 50]


@pytest.mark.parametrize(("gfn", "mfn", "text"), [(2, 1, "outside the guest"), (0, 64, "machine's"), (0, 3, "gfn 0x1")])
def test_a_remap_that_cannot_be_is_refused_and_changes_nothing(ram: RamMap, gfn: int, mfn: int, text: str) -> None:
    view = GuestView(ram, p2m_of(9, 3))
    with pytest.raises(ValueError, match=text):
        view.remap(gfn, mfn)
    assert view.words[:, 0].tolist() == [9, 3]


@pytest.mark.parametrize("bad", [p2m_of(1, 64), p2m_of(1, -2), p2m_of(5, 5)])
def test_a_p2m_that_cannot_be_is_refused(ram: RamMap, bad: Ints) -> None:
    with pytest.raises(ValueError, match="p2m"):
        GuestView(ram, bad)


def mappings() -> int:
    return Path("/proc/self/maps").read_bytes().count(b"\n")


def test_arrays_stay_valid_after_close_and_the_memory_goes_with_the_last_of_them(ram: RamMap) -> None:
    before = mappings()
    view = GuestView(ram, np.arange(FRAMES, dtype=np.int64)[::-1])
    kept = view.words[5]
    assert mappings() >= before + FRAMES
    view.close()
    view.close()
    gc.collect()
    assert (kept == FRAMES - 6).all()
    assert view.bytes.nbytes == 0
    with pytest.raises(MachineError, match="closed"):
        view.remap(0, -1)
    del kept
    gc.collect()
    assert mappings() < before + FRAMES


def test_runs_of_frames_are_one_mapping(ram: RamMap) -> None:
    before = mappings()
    view = GuestView(ram, np.arange(FRAMES, dtype=np.int64))
    assert mappings() <= before + 1
    view.close()


def test_too_many_pieces_are_one_clear_line(ram: RamMap, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = tmp_path / "max_map_count"
    few.write_text("1100\n")
    monkeypatch.setattr(guest_view, "_MAX_MAP_COUNT", few)
    with pytest.raises(MachineError, match=r"64 pieces .* limit 1100.*vm\.max_map_count"):
        GuestView(ram, np.arange(FRAMES, dtype=np.int64)[::-1])


def test_views_that_only_a_cycle_holds_make_room_for_the_next(ram: RamMap, monkeypatch: pytest.MonkeyPatch) -> None:
    scattered = np.arange(FRAMES, dtype=np.int64)[::-1].copy()
    gc.collect()
    limit = int(guest_view._MAX_MAP_COUNT.read_text())
    monkeypatch.setattr(guest_view, "_SPARE_MAPS", limit - mappings() - 3 * FRAMES)
    gc.disable()
    try:
        for _ in range(8):  # three of them fit
            cycle: list[object] = [GuestView(ram, scattered)]
            cycle.append(cycle)
    finally:
        gc.enable()


def test_a_released_file_is_an_error(ram: RamMap) -> None:
    view = GuestView(ram, p2m_of(9, 3))
    ram.release()
    ram.release()
    with pytest.raises(MachineError, match="closed"):
        view.remap(0, 5)
    assert view.words[:, 0].tolist() == [9, 3]
