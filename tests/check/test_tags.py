"""Tags go where they do no harm, prove their frame, and leave nothing behind."""

from __future__ import annotations

import numpy as np
import pytest

from harness.check.layout import Layout
from harness.check.tags import (
    NO_SLOT,
    STORE_AT,
    FrameKinds,
    TagBoard,
    decode_code,
    decode_load,
)
from harness.machine.mailbox import TAG_OFFSET, code_tag, load_tag, tag_slot
from harness.x86.modes import LONG4
from tests.check.guest_tables import DATA, FRAMES, Guest, P, W


def board(
    guest: Guest, tables: tuple[int, ...] = (), kept: tuple[int, ...] = (), closed: tuple[int, ...] = (), size: int = 8
) -> TagBoard:
    kinds = FrameKinds(frozenset(tables), frozenset(kept), frozenset(closed), size)
    return TagBoard(guest.ram, Layout(FRAMES), guest.target.plant, kinds)


def one(tags: TagBoard, gfn: int) -> int:
    return int(tags.slots(np.asarray([gfn])).offset[0])


def fill(guest: Guest, gfn: int, value: int) -> None:
    guest.ram[gfn << 12 : (gfn + 1) << 12] = value


def test_tags_decode_to_their_frames_and_other_values_to_none() -> None:
    gfns = np.asarray([0, 1, DATA, FRAMES - 1])
    loads = np.asarray([load_tag(int(gfn)) for gfn in gfns], np.uint32)
    codes = np.asarray([code_tag(int(gfn)) for gfn in gfns], np.uint32)
    assert decode_load(loads, FRAMES).tolist() == gfns.tolist()
    assert decode_code(codes, FRAMES).tolist() == gfns.tolist()
    assert set(decode_load(np.append(codes, loads + 1).astype(np.uint32), FRAMES).tolist()) == {-1}


def test_an_intact_tag_is_used_as_it_is() -> None:
    guest = Guest(LONG4)
    slots = board(guest).slots(np.asarray([DATA, -1, FRAMES + 5, 0xB0]))
    assert slots.offset.tolist() == [TAG_OFFSET, NO_SLOT, NO_SLOT, NO_SLOT]
    assert slots.executable.tolist() == [True, False, False, False]


def test_a_copied_tag_is_not_this_frames_tag() -> None:
    guest = Guest(LONG4)
    guest.ram[DATA << 12 : (DATA + 1) << 12] = guest.ram[(DATA + 1) << 12 : (DATA + 2) << 12]
    tags = board(guest)
    assert one(tags, DATA) != TAG_OFFSET
    tags.plant(set(), np.zeros(0, np.int64))
    at = (DATA << 12) + one(tags, DATA) + 8
    assert int(guest.ram[at : at + 4].view(np.uint32)[0]) == load_tag(DATA)


def test_in_a_page_table_only_entries_that_are_not_present_change() -> None:
    guest = Guest(LONG4)
    for i in range(512):
        guest.write((DATA << 12) + 8 * i, 0 if i in (100, 101) else i << 12 | P | W)
    tags = board(guest, tables=(DATA,))
    assert one(tags, DATA) == 800
    assert tag_slot(DATA)[0] % 2 == 0
    places = tags.store_places(np.asarray([DATA, DATA]), np.asarray([800, 800]))
    assert places.tolist() == [800 + STORE_AT, NO_SLOT]
    guest.write((DATA << 12) + 800, P)
    assert one(board(guest, tables=(DATA,)), DATA) == NO_SLOT


def test_in_the_guests_image_only_zero_bytes_change() -> None:
    guest = Guest(LONG4)
    fill(guest, DATA, 0xEE)
    assert one(board(guest, kept=(DATA,)), DATA) == NO_SLOT
    guest.ram[(DATA << 12) + 0x120 : (DATA << 12) + 0x130] = 0
    assert one(board(guest, kept=(DATA,)), DATA) == 0x120


def test_what_the_probe_server_uses_gets_no_tag() -> None:
    guest = Guest(LONG4)
    assert one(board(guest, closed=(DATA,)), DATA) == NO_SLOT


def test_data_is_saved_overwritten_and_put_back() -> None:
    guest = Guest(LONG4)
    fill(guest, DATA, 0xEE)
    before = guest.ram.copy()
    tags = board(guest)
    offset = one(tags, DATA)
    places = tags.store_places(np.full(5, DATA), np.full(5, offset))
    assert len(set(places.tolist())) == 5
    assert not {offset, offset + 4, offset + 8} & set(places.tolist())
    flat = np.full(5, DATA) << 10 | places >> 2
    tags.plant({DATA}, flat)
    assert guest.ram[(DATA << 12) + offset :][:8].tobytes() == tag_slot(DATA)[:8]
    tags.dwords[flat] = 0x36000000
    assert tags.where(0x36000000, int(places[3])) == DATA
    tags.restore()
    assert (guest.ram == before).all()
    assert len(guest.target.plants) == 2  # code goes in and out where QEMU hears of it


@pytest.mark.parametrize("gfn", [DATA, 0xB0, FRAMES + 1, -1])
def test_a_second_frame_takes_the_slot_of_the_first_if_it_can(gfn: int) -> None:
    guest = Guest(LONG4)
    tags = board(guest)
    assert tags.also(gfn, TAG_OFFSET) is (gfn == DATA)
    assert tags.also(gfn, 0x80) is (gfn == DATA)
    assert not board(guest, closed=(DATA,)).also(DATA, TAG_OFFSET)
