"""What the flags of an SPTE say for each guest entry."""

from __future__ import annotations

import pytest

from harness.x86.modes import PAGED_MODES, PagingMode
from harness.xi.gpt import SW_PRESENT, SW_WRITE, divided_flags, entry_rules, guest_part, leaf_flags, table_flags
from harness.xi.roles import VARIANT_PSE, VARIANT_WP
from tests.xi.domain import NX, PS, RW, US, A, D, P


@pytest.mark.parametrize("entry", range(128))
@pytest.mark.parametrize("wp", [True, False])
def test_leaf_flags_follow_the_gating_rules(entry: int, wp: bool) -> None:
    flags = leaf_flags(entry, wp)
    assert not flags & RW, "RW is added where protection allows it"
    if not entry & P:
        assert flags == 0
        return
    assert flags & SW_PRESENT
    assert bool(flags & P) == bool(entry & A) == bool(flags & A)
    assert flags & US == entry & US
    assert bool(flags & SW_WRITE) == (bool(entry & RW) or not wp)
    if flags & D:
        assert entry & D
        assert entry & A
        assert entry & RW or (not wp and not entry & US)


@pytest.mark.parametrize("entry", range(128))
@pytest.mark.parametrize("wp", [True, False])
def test_table_flags_follow_the_gating_rules(entry: int, wp: bool) -> None:
    flags = table_flags(entry, wp, True)
    assert bool(flags & P) == (bool(entry & P) and bool(entry & A))
    if entry & P:
        assert flags & US == entry & US
        assert bool(flags & RW) == (bool(entry & RW) or not wp)
        assert table_flags(entry, wp, False) == P | SW_PRESENT | SW_WRITE


def test_a_divided_page_keeps_its_rights_and_loses_what_only_leaves_have() -> None:
    leaf = leaf_flags(P | RW | US | A | D, True) | PS | 5 << 59 | NX
    assert divided_flags(leaf) == P | RW | US | A | NX | SW_PRESENT | SW_WRITE
    assert not divided_flags(leaf & ~D) & RW


def test_a_4_mib_page_has_high_address_bits() -> None:
    rules = entry_rules("nopae", 2, VARIANT_PSE, 40)
    assert rules.large_frame(0x00C0_0000 | 0x21 << 13 | PS | P) == 0x21 << 20 | 0xC00
    assert rules.is_reserved(1 << 21 | PS | P, True)
    assert not entry_rules("nopae", 2, 0, 40).is_large(PS | P)


def test_pat_is_no_address_bit_of_a_large_page() -> None:
    assert entry_rules("long4", 2, 0, 40).large_frame(0x4020_0000 | 1 << 12 | PS | P) == 0x40200


@pytest.mark.parametrize("mode", PAGED_MODES, ids=lambda mode: mode.name)
def test_every_level_of_every_mode_has_rules(mode: PagingMode) -> None:
    for level in mode.levels:
        rules = entry_rules(mode.name, level.number, VARIANT_WP, 40)
        assert rules.latched == (mode.name == "pae" and level.number == 3)
    with pytest.raises(ValueError, match="no level"):
        entry_rules(mode.name, 6, 0, 40)


def test_the_quadrants_of_a_wide_table_cover_it_once() -> None:
    for level, parts, width in ((1, 2, 512), (2, 4, 256)):
        covered: list[int] = []
        for quadrant in range(parts):
            part = guest_part("nopae", level, quadrant)
            assert part.count == width
            covered += range(part.first, part.first + part.count)
        assert covered == list(range(1024))
    assert guest_part("pae", 3, 127).first == 508
