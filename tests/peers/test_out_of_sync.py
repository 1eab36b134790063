"""Snapshots of tables out of sync, and the list of what lets them be written."""

from __future__ import annotations

import numpy as np
import pytest

from harness.peers.out_of_sync import RECORD_BYTES, OutOfSync, Snapshot

WIDE = np.arange(1000, 1512, dtype=np.uint64)
NARROW = np.arange(1000, 2024, dtype=np.uint32)


def now(**changes: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """The entries of WIDE, with ``e7=5``: entry 7 is 5 now."""
    out = WIDE.copy()
    for name, value in changes.items():
        out[int(name[1:])] = value
    return out


def test_an_entry_that_differs_has_changed() -> None:
    snapshot = Snapshot(WIDE, 0, 511, late=False)
    assert snapshot.changed(0, now()).tolist() == []
    assert snapshot.changed(0, now(e7=5, e511=5)).tolist() == [7, 511]
    assert snapshot.changed(5, now(e7=5)[5:10]).tolist() == [2]


def test_what_lies_outside_the_span_may_have_changed() -> None:
    snapshot = Snapshot(WIDE, 10, 12, late=False)
    assert snapshot.changed(8, now(e11=0)[8:15]).tolist() == [0, 1, 3, 5, 6]
    assert snapshot.changed(0, now()[:3]).tolist() == [0, 1, 2]
    assert snapshot.changed(300, now()[300:303]).tolist() == [0, 1, 2]
    assert Snapshot(WIDE, 512, -1, late=False).changed(4, now()[4:6]).tolist() == [0, 1], "of nothing"


def test_of_the_entries_of_a_32_bit_guest() -> None:
    snapshot = Snapshot(NARROW, 512, 1023, late=False)
    entries = NARROW[512:].astype(np.uint64)
    assert not len(snapshot.changed(512, entries))
    entries[3] = 1
    assert snapshot.changed(512, entries).tolist() == [3]
    assert snapshot.holds(600, 1600)
    assert not snapshot.holds(600, 1601)


def test_one_that_was_taken_late_vouches_for_nothing() -> None:
    snapshot = Snapshot(WIDE, 0, 511, late=True)
    assert len(snapshot.changed(3, now()[3:8])) == 5
    assert not snapshot.holds(3, 1003)


def test_a_missing_entry_is_known_to_be_missing_outside_the_span_too() -> None:
    snapshot = Snapshot(WIDE, 10, 12, late=False)
    assert snapshot.holds(11, 1011)
    assert snapshot.holds(300, 0)
    assert not snapshot.holds(300, 1300)


def test_what_the_engine_sets_is_no_change() -> None:
    snapshot = Snapshot(WIDE, 0, 511, late=False)
    snapshot.note(7, 5)
    assert snapshot.changed(0, now(e7=5)).tolist() == []
    assert snapshot.changed(0, now()).tolist() == [7]


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        (Snapshot(WIDE, 0, 511, late=False), 512 + 512),
        (Snapshot(WIDE, 10, 12, late=False), 512 + 3),
        (Snapshot(NARROW, 512, 515, late=False), 512 + 2),
        (Snapshot(WIDE, 512, -1, late=False), 512),
    ],
)
def test_it_costs_a_page_that_is_zeroed_and_the_span_that_is_copied(snapshot: Snapshot, words: int) -> None:
    assert snapshot.words == words


def test_the_list_of_a_domain() -> None:
    oos = OutOfSync()
    oos.add(4, Snapshot(WIDE, 0, 511, late=False))
    oos.add(3, Snapshot(WIDE, 0, 511, late=True))
    oos.writable += [5, 5, 9]
    assert list(oos.tables) == [4, 3]
    assert (oos.snapshot_bytes, oos.record_bytes) == (8192, 3 * RECORD_BYTES)
    oos.clear()
    assert (oos.made, oos.tables, oos.writable) == (2, {}, [])
