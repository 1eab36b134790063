"""Watchpoints follow the aliases of in-sync tables."""

from __future__ import annotations

from harness.intercept.watchpoints import WatchSet
from harness.machine.gdbstub import watch_packet


def test_each_new_address_is_watched_once() -> None:
    watches = WatchSet()
    packets = watches.update({5: frozenset((0x1000, 0x2000))})
    assert sorted(packets) == sorted((watch_packet(0x1000, 4096), watch_packet(0x2000, 4096)))
    assert watches.update({5: frozenset((0x1000, 0x2000))}) == []


def test_a_page_that_two_tables_need_stays_watched_until_both_let_go() -> None:
    watches = WatchSet()
    watches.update({5: frozenset((0x1000,)), 6: frozenset((0x1000,))})
    assert watches.tables_at(0x1000) == {5, 6}
    assert watches.update({5: frozenset()}) == []
    assert watches.tables_at(0x1000) == {6}
    assert watches.update({6: frozenset()}) == [watch_packet(0x1000, 4096, insert=False)]
    assert len(watches) == 0


def test_one_update_that_hands_a_page_over_sends_nothing() -> None:
    watches = WatchSet()
    watches.update({5: frozenset((0x1000,))})
    assert watches.update({5: frozenset(), 6: frozenset((0x1000,))}) == []
    assert watches.tables_at(0x1000) == {6}
