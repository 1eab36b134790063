"""The ranges are what walking every page one by one would give, and hostile tables do not blow them up."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest

from harness.check.layout import Layout
from harness.check.ranges import TABLES_PER_LEVEL, Ranges, find_ranges
from harness.x86 import bits
from harness.x86.modes import LONG4, NOPAE, PAE, PAGED_MODES, PagingMode
from harness.x86.walk import EXECUTABLE, MAPPED, USER, WRITABLE, trace
from tests.check.guest_tables import DATA, FRAMES, NX, PS, Guest, P, U, W, arena, small_guest


def ranges_of(guest: Guest, seed: int = 1) -> Ranges:
    return find_ranges(guest.state, guest.ram, Layout(FRAMES), np.random.default_rng(seed))


@pytest.mark.parametrize("mode", PAGED_MODES, ids=lambda mode: mode.name)
def test_every_page_of_every_range_walks_to_its_frame_with_its_rights(mode: PagingMode) -> None:
    guest = small_guest(mode)
    found = ranges_of(guest)
    seen = 0
    for first, pages, gfn, rights in zip(found.first, found.pages, found.gfn, found.rights, strict=True):
        for page in (0, int(pages) // 2, int(pages) - 1):
            path = trace(guest.state, int(first) + (page << 12), read(guest))
            assert (path.outcome, path.gfn, path.rights & 7) == (MAPPED, int(gfn) + page, int(rights))
            seen += 1
    assert seen
    assert not found.capped


def read(guest: Guest):  # type: ignore[no-untyped-def]
    return lambda address, size: int.from_bytes(guest.ram[address : address + size].tobytes(), "little")


def test_contiguous_pages_with_equal_rights_are_one_range_and_each_difference_ends_it() -> None:
    guest = Guest(LONG4)
    base = arena(LONG4)
    for i in range(8):
        guest.map(base + (i << 12), DATA + i, P | W | U)
    guest.map(base + (8 << 12), DATA + 8, P | U)  # other rights
    guest.map(base + (9 << 12), DATA + 20, P | U)  # another frame
    guest.map(base + (11 << 12), DATA + 22, P | U | NX)  # after a gap
    found = ranges_of(guest)
    assert found.pages.tolist() == [8, 1, 1, 1]
    assert found.rights.tolist() == [7, USER | EXECUTABLE, USER | EXECUTABLE, USER]
    assert found.last[0] == base + (7 << 12)
    assert guest.root in found.tables.tolist()


def test_rights_are_those_of_all_levels_together() -> None:
    guest = Guest(LONG4)
    base = arena(LONG4)
    guest.map(base, DATA)
    at = guest.entry_at(base, 3)
    guest.write(at, guest.read(at) & ~W)
    assert ranges_of(guest).rights.tolist() == [USER | EXECUTABLE]
    guest.write(at, guest.read(at) & ~U | NX | W)
    assert ranges_of(guest).rights.tolist() == [WRITABLE]


def test_upper_half_addresses_come_out_canonical_and_the_halves_are_not_joined() -> None:
    guest = Guest(LONG4)
    low = (1 << 47) - 4096
    high = (1 << 64) - (1 << 47)
    guest.map(low, DATA)
    guest.map(high, DATA + 1)
    found = ranges_of(guest)
    assert found.first.tolist() == [low, high]


def test_large_pages_of_pse36_reach_beyond_four_gib() -> None:
    guest = Guest(NOPAE)
    guest.write((guest.root << 12) + 4, 0x0040_0000 | 1 << 13 | P | PS)
    found = ranges_of(guest)
    assert (found.gfn[0], found.pages[0], found.page_size[0]) == (0x100400, 1024, 4 << 20)


def test_reserved_entries_and_tables_outside_ram_are_odd_addresses() -> None:
    guest = Guest(PAE)
    guest.map(0, DATA)
    guest.map(0x1000, DATA, P | 1 << 55)
    guest.write(guest.entry_at(0x20_0000, 2), 0x8_0000 << 12 | P)
    assert sorted(ranges_of(guest).odd.tolist()) == [0x1000, 0x20_0000]


def test_tables_full_of_pointers_to_themselves_stay_bounded() -> None:
    guest = Guest(LONG4)
    guest.map(0, DATA)
    for row in range(1, 512):
        guest.write((guest.root << 12) + 8 * row, guest.root << 12 | P | W | U)
    started = perf_counter()
    found = ranges_of(guest)
    assert found.capped
    assert found.leaves <= TABLES_PER_LEVEL * 512
    assert 0 in found.first.tolist()  # the one honest entry of the root has its share
    assert perf_counter() - started < 2.0


def test_unpaged_is_one_range_of_all_ram() -> None:
    guest = Guest(LONG4)
    guest.flush(cr0=bits.CR0_PE)
    found = ranges_of(guest)
    assert (found.first.tolist(), found.pages.tolist(), len(found)) == ([0], [FRAMES], 1)
