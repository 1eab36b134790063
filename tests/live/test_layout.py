"""The layout of a live machine: nothing overlaps, no frame is its own, and large pages stay possible."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.live.layout import BLOCK, SCATTERED_BLOCKS, LiveLayout
from harness.placement import HOLE
from harness.xi.p2m import P2m

layouts = st.builds(
    LiveLayout.plan,
    guest_mib=st.integers(1, 40),
    pool_frames=st.integers(4, 3000),
    seed=st.integers(0, 2**32),
    spare_frames=st.integers(0, 1200),
)


@given(layouts)
def test_every_frame_of_the_guest_has_one_of_its_own_and_the_hole_has_none(layout: LiveLayout) -> None:
    p2m = layout.p2m
    assert len(p2m) == layout.guest_frames
    assert np.flatnonzero(p2m < 0).tolist() == [gfn for gfn in HOLE if gfn < layout.guest_frames]
    mfns = np.sort(np.concatenate((p2m[p2m >= 0], layout.spare)))
    assert mfns.tolist() == list(range(layout.first_mfn, layout.machine_frames))


@given(layouts)
def test_no_frame_is_its_own(layout: LiveLayout) -> None:
    assert not (layout.p2m == np.arange(layout.guest_frames)).any()


@given(layouts)
def test_monitor_pool_and_frames_are_apart(layout: LiveLayout) -> None:
    assert layout.monitor_area % (1 << 20) == 0
    assert layout.monitor_area >= 1 << 20
    assert layout.monitor_area + layout.monitor_bytes <= layout.pool_base_mfn << 12
    assert layout.pool_base_mfn + layout.pool_frames <= layout.first_mfn
    assert layout.first_mfn % BLOCK == 0


@given(layouts)
def test_the_engine_takes_it(layout: LiveLayout) -> None:
    pool = range(layout.pool_base_mfn, layout.pool_base_mfn + layout.pool_frames)
    P2m(layout.guest_frames, layout.p2m, layout.machine_frames, pool)


@given(layouts)
def test_half_of_the_blocks_are_whole_aligned_and_not_in_order(layout: LiveLayout) -> None:
    blocks = layout.guest_frames // BLOCK
    runs = layout.p2m[: blocks * BLOCK].reshape(-1, BLOCK)
    whole = (np.diff(runs, axis=1) == 1).all(axis=1) & (runs[:, 0] % BLOCK == 0)
    assert np.count_nonzero(whole) == blocks // 2
    assert not whole[:1].any()
    assert np.unique(np.diff(runs[~whole], axis=1)).size > 2 or blocks == 0


def test_a_large_guest_has_no_more_pieces_than_the_kernel_maps() -> None:
    layout = LiveLayout.plan(1024, 4096, 3)
    assert np.count_nonzero(np.diff(layout.p2m) != 1) < (SCATTERED_BLOCKS + 1) * BLOCK + 1024 // 2


def test_the_seed_decides() -> None:
    one, same, other = (LiveLayout.plan(8, 384, seed) for seed in (5, 5, 6))
    assert [np.asarray(item).tolist() for item in astuple(one)] == [np.asarray(item).tolist() for item in astuple(same)]
    assert (one.p2m != other.p2m).any()


def test_spare_frames_are_at_least_what_was_asked_for() -> None:
    assert len(LiveLayout.plan(8, 384, 1, spare_frames=1000).spare) >= 1000


@pytest.mark.parametrize(
    ("guest_mib", "pool_frames", "spare", "text"),
    [
        (0, 384, 0, "guest with 0 is less"),
        (8, 0, 0, "pool of frames: 0"),
        (8, 384, -1, "spare frames: -1"),
        (3584, 384, 0, "at most 3584 MiB"),
        (3000, 200_000, 0, "machine with 37"),
    ],
)
def test_sizes_that_cannot_be_are_refused(guest_mib: int, pool_frames: int, spare: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LiveLayout.plan(guest_mib, pool_frames, 1, spare)
