"""Where a frame appears, and being told when that changes."""

from __future__ import annotations

import pytest

from harness.x86.modes import PAGED_MODES
from tests.xi.domain import NX, RW, US, USED, A, Domain, P

MODE_NAMES = [mode.name for mode in PAGED_MODES]
VA = 0x40000000
every_mode = pytest.mark.parametrize("mode", MODE_NAMES)


@every_mode
def test_addresses_of_a_frame_by_the_guests_rights(mode: str) -> None:
    domain = Domain(mode)
    wide = domain.mode.entry_bytes == 8
    domain.map(VA, 300, P)
    domain.map(VA + 0x1000, 300, P | RW)
    domain.map(VA + 0x2000, 300, P | RW | (NX if wide else 0))
    domain.map(VA + 0x800000, 0, USED, 2)
    domain.start()
    large = VA + 0x800000 + 300 * 4096
    engine = domain.engine
    assert engine.addresses_of(300) == {VA, VA + 0x1000, VA + 0x2000, large}
    assert engine.addresses_of(300, writable=True) == {VA + 0x1000, VA + 0x2000, large}
    no_execute = {VA + 0x2000} if wide else set()
    assert engine.addresses_of(300, executable=True) == {VA, VA + 0x1000, VA + 0x2000, large} - no_execute
    assert engine.addresses_of(10**9) == frozenset()


@every_mode
def test_rights_above_narrow_the_addresses(mode: str) -> None:
    domain = Domain(mode)
    domain.map(VA, 300)
    upper = domain.entry_at(VA, 2)
    domain.poke(upper, domain.entry_at(VA) & ~0xFFF | P | US | A)
    domain.start()
    assert domain.engine.addresses_of(300) == {VA}
    assert domain.engine.addresses_of(300, writable=True) == frozenset()


@every_mode
def test_every_root_counts_and_shared_tables_once(mode: str) -> None:
    domain = Domain(mode)
    table = domain.map(VA, 300) >> 12
    domain.map(VA + 0x5000, table)
    domain.start()
    assert domain.engine.watch_changes()[table] == {VA + 0x5000}
    for _ in range(3):
        other = domain.new_root()
        size = domain.mode.entry_bytes
        index = domain.mode.levels[0].index(VA)
        domain.poke((other << 12) + index * size, domain.read_guest((domain.root << 12) + index * size, size))
        domain.switch(other)
        assert table not in domain.engine.watch_changes()
    private = domain.new_root()
    domain.map(VA + 0x10000000, table, root=private)
    domain.switch(private)
    assert domain.engine.watch_changes()[table] == {VA + 0x5000, VA + 0x10000000}
    domain.audit()


@every_mode
def test_an_upper_entry_cleared_takes_the_addresses_below_with_it(mode: str) -> None:
    domain = Domain(mode)
    table = domain.map(VA, 300) >> 12
    domain.map(VA + 0x40000000, table)
    domain.start()
    assert domain.engine.watch_changes()[table] == {VA + 0x40000000}
    domain.poke(domain.entry_at(VA + 0x40000000, 2), 0)
    domain.flush()
    assert domain.engine.watch_changes()[table] == frozenset()
    assert domain.engine.watch_changes() == {}


@every_mode
def test_a_recursive_map_shows_each_table_where_it_is(mode: str) -> None:
    domain = Domain(mode)
    table = domain.map(VA, 300) >> 12
    row = domain.mode.levels[-2]
    slot = row.entries - 1
    directory = domain.entry_at(VA, row.number) >> 12
    domain.poke((directory << 12) + slot * domain.mode.entry_bytes, directory << 12 | P | RW | A)
    domain.start()
    base = VA & ~(row.span * row.entries - 1) | slot * row.span
    assert domain.engine.watch_changes()[table] == {base + (row.index(VA) << 12)}
    domain.audit()


@every_mode
def test_frames_are_reported_when_they_become_executable(mode: str) -> None:
    domain = Domain(mode)
    domain.map(VA, 300)
    domain.start()
    assert 300 in domain.engine.executable_changes()
    assert domain.engine.executable_changes().size == 0
    entry = domain.map(VA + 0x1000, 301, USED | (NX if domain.mode.has_nx else 0))
    domain.flush()
    gained = domain.engine.executable_changes().tolist()
    assert gained == ([] if domain.mode.has_nx else [301])
    domain.poke(entry, 301 << 12 | USED)
    domain.flush()
    assert domain.engine.executable_changes().tolist() == ([301] if domain.mode.has_nx else [])
    domain.map(VA + 0x40000000, 300)
    domain.flush()
    assert 300 in domain.engine.executable_changes(), "at a new address"


def test_no_execute_above_hides_what_is_below_until_it_goes() -> None:
    domain = Domain("long4")
    domain.map(VA, 300)
    upper = domain.entry_at(VA, 2)
    below = domain.entry_at(VA) & ~0xFFF | USED
    domain.poke(upper, below | NX)
    domain.start()
    assert domain.engine.executable_changes().size == 0
    domain.poke(upper, below)
    domain.flush()
    assert domain.engine.executable_changes().tolist() == [300]


def test_a_large_page_is_executable_all_over() -> None:
    domain = Domain("long4")
    domain.map(VA, 512, USED, 2)
    domain.start()
    assert domain.engine.executable_changes().tolist() == list(range(512, 1024))
