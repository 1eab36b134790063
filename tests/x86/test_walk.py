"""The reference walk, held against hand-made tables, against the manual's sentences and against a second walker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.x86 import bits
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.bits import PF_I, PF_P, PF_PK, PF_RSVD, PF_U, PF_W
from harness.x86.control import ControlState
from harness.x86.modes import LONG4, LONG5, NOPAE, PAE, PAGED_MODES, UNPAGED, PagingMode
from harness.x86.walk import (
    ABSENT,
    KEY_SHIFT,
    MAPPED,
    NON_CANONICAL,
    RESERVED,
    USER,
    WRITABLE,
    Read,
    describe,
    entry_text,
    judge,
    protection_fault,
    trace,
    walk,
)
from tests.check.guest_tables import NX, PS, A, Guest, P, U, W, arena, control_of
from tests.check.model_mmu import Fault, ModelMmu


def memory(words: dict[int, int]) -> Read:
    return lambda address, size: words.get(address, 0)


def reader(guest: Guest) -> Read:
    def read(address: int, size: int) -> int | None:
        if address >= len(guest.ram):
            return None
        return int.from_bytes(guest.ram[address : address + size].tobytes(), "little")

    return read


@pytest.mark.parametrize("mode", PAGED_MODES, ids=lambda mode: mode.name)
def test_a_mapped_page_is_found_through_all_levels(mode: PagingMode) -> None:
    guest = Guest(mode)
    va = arena(mode) + 0x5000
    at = guest.map(va, 0x345, P | W)
    path, verdict = walk(guest.state, va + 0x123, Access.STORE, reader(guest))
    assert [step.level for step in path.steps] == [row.number for row in mode.levels]
    assert path.steps[-1].address == at
    assert (path.outcome, path.gfn, path.page_size) == (MAPPED, 0x345, 4096)
    assert verdict.gpa == 0x345123
    assert verdict.text == "frame 0x345 + 0x123"


def test_a_root_of_pae_need_not_be_page_aligned() -> None:
    control = control_of(PAE, 0x3FE0)
    words = {0x3FE0 + 16: 0x5000 | P, 0x5000: 0x6000 | P | W | U, 0x6000 + 8: 0x7000 | P | W | U}
    path = trace(control, 0x8000_1000, memory(words))
    assert path.gfn == 7
    assert [(step.table, step.number) for step in path.steps] == [(3, 2), (5, 0), (6, 1)]


def test_large_pages_keep_the_offset_and_pse36_adds_high_bits() -> None:
    nopae = control_of(NOPAE, 0x1000)
    entry = 0x0040_0000 | 0x5 << 13 | P | PS
    assert trace(nopae, 0x123456, memory({0x1000: entry})).gpa == 0x5_0040_0000 + 0x123456
    assert trace(nopae, 0x123456, memory({0x1000: entry | 1 << 21})).outcome == RESERVED
    without_pse = replace(nopae, cr4=0)
    assert len(trace(without_pse, 0x123456, memory({0x1000: entry})).steps) == 2
    long4 = control_of(LONG4, 0x1000)
    words = {0x1000: 0x2000 | P, 0x2000: 0x4000_0000 | P | PS}
    path = trace(long4, 0x1234_5678, memory(words))
    assert (path.gpa, path.page_size) == (0x5234_5678, 1 << 30)


def test_non_canonical_addresses_are_not_walked() -> None:
    for mode, va in ((LONG4, 0x8000_0000_0000), (LONG5, 0x0100_0000_0000_0000)):
        control = control_of(mode, 0x1000)
        path, verdict = walk(control, va, Access.LOAD, memory({}))
        assert (path.outcome, path.steps) == (NON_CANONICAL, ())
        assert (verdict.gpa, verdict.code, verdict.text) == (None, None, "#GP")


def test_without_paging_addresses_are_themselves_and_nothing_is_forbidden() -> None:
    control = ControlState()
    assert control.mode is UNPAGED
    for access in ALL_ACCESSES:
        assert walk(control, 0x1234, access, memory({}))[1].gpa == 0x1234


def test_where_no_memory_answers_nothing_is_present() -> None:
    path = trace(control_of(LONG4, 1 << 30), 0, lambda address, size: None)
    assert path.outcome == ABSENT
    assert describe(path)[0]["note"] == "no memory there"


@pytest.mark.parametrize(
    ("access", "code"),
    [
        (Access.LOAD, 0),
        (Access.STORE, PF_W),
        (Access.FETCH, PF_I),
        (Access.USER_LOAD, PF_U),
        (Access.USER_STORE, PF_U | PF_W),
        (Access.USER_FETCH, PF_U | PF_I),
    ],
)
def test_the_code_tells_the_access_and_why(access: Access, code: int) -> None:
    control = control_of(LONG4, 0x1000)
    assert walk(control, 0, access, memory({}))[1].code == code
    reserved = memory({0x1000: 1 << 51 | P})
    assert walk(control, 0, access, reserved)[1].code == code | PF_P | PF_RSVD
    no_nx = replace(control, efer=control.efer & ~bits.EFER_NXE)
    assert walk(no_nx, 0, access, memory({}))[1].code == code & ~PF_I


def verdict(rights: int, access: Access, **changes: int) -> int | None:
    state = control_of(LONG4, 0)
    fields = {"cr0": state.cr0, "cr4": state.cr4, "pkru": 0} | changes
    return protection_fault(rights, access, replace(state, **fields))


def test_write_protection_binds_ring_0_only_with_wp() -> None:
    no_wp = control_of(LONG4, 0).cr0 & ~bits.CR0_WP
    assert verdict(USER, Access.STORE) == PF_P | PF_W
    assert verdict(USER, Access.STORE, cr0=no_wp) is None
    assert verdict(USER, Access.USER_STORE, cr0=no_wp) == PF_P | PF_W | PF_U


def test_smep_forbids_fetches_and_smap_data_of_user_pages_from_ring_0() -> None:
    cr4 = control_of(LONG4, 0).cr4
    everything = USER | WRITABLE | 4
    assert verdict(everything, Access.FETCH, cr4=cr4 | bits.CR4_SMEP) == PF_P | PF_I
    assert verdict(everything, Access.LOAD, cr4=cr4 | bits.CR4_SMEP) is None
    assert verdict(everything, Access.LOAD, cr4=cr4 | bits.CR4_SMAP) == PF_P
    assert verdict(everything, Access.FETCH, cr4=cr4 | bits.CR4_SMAP) is None
    assert verdict(everything, Access.USER_LOAD, cr4=cr4 | bits.CR4_SMAP | bits.CR4_SMEP) is None


def test_protection_keys_speak_of_data_in_user_pages() -> None:
    cr4 = control_of(LONG4, 0).cr4 | bits.CR4_PKE
    no_wp = control_of(LONG4, 0).cr0 & ~bits.CR0_WP
    rights = USER | WRITABLE | 4 | 3 << KEY_SHIFT
    closed, read_only = 1 << 6, 2 << 6
    assert verdict(rights, Access.USER_LOAD, cr4=cr4, pkru=closed) == PF_P | PF_U | PF_PK
    assert verdict(rights, Access.LOAD, cr4=cr4, pkru=closed) == PF_P | PF_PK
    assert verdict(rights, Access.USER_FETCH, cr4=cr4, pkru=closed) is None
    assert verdict(rights & ~USER, Access.LOAD, cr4=cr4, pkru=closed) is None
    assert verdict(rights, Access.STORE, cr4=cr4, pkru=read_only) == PF_P | PF_W | PF_PK
    assert verdict(rights, Access.STORE, cr4=cr4, cr0=no_wp, pkru=read_only) is None
    assert verdict(rights & ~WRITABLE, Access.USER_STORE, cr4=cr4, pkru=read_only) == PF_P | PF_U | PF_W | PF_PK
    assert verdict(rights, Access.USER_LOAD, pkru=closed) is None


def test_entries_are_printed_by_their_flags() -> None:
    assert entry_text(P | W | A | NX | 5 << 59) == "P W A NX key=5"
    assert entry_text(0) == "-"


FRAMES = 8
ENTRY_BITS = (P, W, U, A, PS, 1 << 12, 1 << 14, 1 << 21, 1 << 22, NX, 1 << 52, 1 << 45, 1 << 59)


@st.composite
def entries(draw: st.DrawFn) -> int:
    """Mostly entries that lead on; now and then one bit that matters is otherwise."""
    entry = draw(st.integers(0, FRAMES)) << 12 | P | W | U
    for bit in draw(st.lists(st.sampled_from(ENTRY_BITS), max_size=2)):
        entry ^= bit
    return entry


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(PAGED_MODES),
    st.lists(entries(), min_size=16, max_size=16),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from(ALL_ACCESSES),
    st.integers(0, 31),
    st.integers(0, (1 << 32) - 1),
)
def test_it_agrees_with_a_second_walker(
    mode: PagingMode, rows: list[int], seed: int, access: Access, controls: int, pkru: int
) -> None:
    ram = np.zeros(FRAMES << 12, np.uint8)
    dwords = ram.view(np.uint32 if mode.entry_bytes == 4 else np.uint64)
    mask = 0xFFFF_FFFF if mode.entry_bytes == 4 else (1 << 64) - 1
    dwords[:] = np.resize(np.asarray([row & mask for row in rows], dwords.dtype), len(dwords))
    state = control_of(mode, 0x2000)
    cr4 = state.cr4
    for at, bit in enumerate((bits.CR4_SMEP, bits.CR4_SMAP, bits.CR4_PKE)):
        cr4 ^= bit if controls >> at & 1 else 0
    cr0 = state.cr0 ^ (bits.CR0_WP if controls & 8 else 0)
    efer = state.efer ^ (bits.EFER_NXE if controls & 16 and mode is not NOPAE else 0)
    state = replace(state, cr0=cr0, cr4=cr4, efer=efer, pkru=pkru)
    va = mode.sign_extend(seed) if mode.canonical else seed & 0xFFFF_FFFF

    def read(address: int, size: int) -> int | None:
        return int.from_bytes(ram[address : address + size].tobytes(), "little") if address < len(ram) else None

    path = trace(state, va, read)
    ours = judge(path, access, state)
    model = ModelMmu(ram.copy(), state)
    try:
        theirs: int | None = model.translate(va, access)
        code = None
    except Fault as fault:
        theirs, code = None, fault.code
    assert ours.gpa == theirs
    if code is not None:
        silicon = code | PF_P if code & PF_RSVD else code  # the model has QEMU's habit
        assert ours.code == silicon
