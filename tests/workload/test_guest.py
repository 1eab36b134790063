"""The synthetic guest's kernel: what it has when it starts, and what the engine sees of what it does."""

from __future__ import annotations

from typing import cast

import pytest

from harness.workload.guest import Guest, Space
from harness.workload.layout import READ_ONLY, WRITABLE, user_tables
from harness.workload.program import USER_LOAD, USER_STORE
from harness.workload.workload import MakeEngine, WorkloadError
from harness.x86.bits import PAGE_SHIFT, PF_P, PF_U, PF_W
from harness.x86.modes import PAGED_MODES, PagingMode
from harness.x86.walk import MAPPED, tracer
from tests.workload.engines import ENGINES, Generous, NeverFills, Noted

MODES = pytest.mark.parametrize("mode", PAGED_MODES, ids=lambda mode: mode.name)
DIRECT = pytest.mark.parametrize("direct", ["large", "small"])
FRAMES = 2048
POOL = 400


def a_guest(mode: str = "long4", direct: str = "large", seed: int = 1) -> tuple[Guest, Space, int]:
    """A guest with a process that has one page, at the address that is given."""
    guest = Guest(mode, FRAMES, direct, seed)
    space = guest.new_space()
    va = user_tables(guest.mode, 1)[0]
    guest.map(space, va, guest.take(), WRITABLE)
    return guest, space, va


def booted(make: MakeEngine = ENGINES["xi"], mode: str = "long4", direct: str = "large") -> tuple[Guest, Space, int]:
    guest, space, va = a_guest(mode, direct)
    guest.boot(make, POOL)
    guest.switch(space)
    return guest, space, va


@MODES
@DIRECT
def test_all_memory_is_in_the_kernel_map_of_every_space(mode: PagingMode, direct: str) -> None:
    guest, space, _ = a_guest(mode.name, direct)
    raw = guest.memory.bytes

    def read(address: int, size: int) -> int:
        return int.from_bytes(raw[address : address + size].tobytes(), "little")

    guest.boot(ENGINES["xi"], POOL)
    guest.switch(space)
    walk = tracer(guest.state, read)
    for gfn in range(guest.frames):
        path = walk(guest.direct + (gfn << PAGE_SHIFT))
        assert (path.outcome, path.gfn) == (MAPPED, gfn)


def test_a_kernel_map_that_a_32_bit_guest_has_no_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel map"):
        Guest("pae", 300_000, "large", 1)


def test_frames_are_handed_out_once_the_last_freed_first() -> None:
    guest, _, _ = a_guest()
    taken = guest.take_many(100).tolist()
    assert len(set(taken)) == 100
    guest.drop(taken[40])
    assert guest.take() == taken[40]


def test_a_frame_with_two_entries_is_free_after_the_second() -> None:
    guest, _, _ = a_guest()
    gfn = guest.take()
    guest.references[gfn] += 1
    guest.drop(gfn)
    assert guest.take() != gfn
    guest.drop(gfn)
    assert guest.take() == gfn


def test_the_seed_decides_which_frame_is_what() -> None:
    first, again, other = (Guest("long4", FRAMES, "large", seed).take_many(8).tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_a_block_is_aligned_and_nobody_elses() -> None:
    guest = Guest("long4", 16384, "large", 1)
    for gfn in guest.take_many(8).tolist():
        assert gfn
    first = guest.take_block(512)
    assert first % 512 == 0
    rest = guest.take_many(14000).tolist()
    assert not set(range(first, first + 512)) & set(rest)


def test_no_block_is_an_error() -> None:
    guest = Guest("long4", FRAMES, "large", 1)
    with pytest.raises(ValueError, match="in a row"):
        guest.take_block(2048)


@MODES
@DIRECT
@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_a_process_gets_what_its_tables_say(mode: PagingMode, direct: str, make: MakeEngine) -> None:
    guest, space, va = booted(make, mode.name, direct)
    there, other = va, va + (1 << PAGE_SHIFT)
    assert guest.touch(there, USER_STORE) == 0
    assert guest.touch(other, USER_LOAD) == PF_U
    guest.map(space, other, guest.take(), READ_ONLY)
    assert guest.touch(other, USER_LOAD) == 0
    assert guest.touch(other, USER_STORE) == PF_P | PF_W | PF_U
    guest.unmap(space, there)
    guest.invlpg(there)
    assert guest.touch(there, USER_LOAD) == PF_U


@MODES
def test_directories_of_a_pae_guest_are_there_from_the_start(mode: PagingMode) -> None:
    guest, space, _ = a_guest(mode.name)
    if mode.name == "pae":
        assert all(guest.entry(space.root, index) for index in range(4))
    assert space.tables == 1 + sum(map(len, space.below))


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_a_space_that_ends_leaves_nothing_behind(make: MakeEngine) -> None:
    guest, space, va = booted(make)
    free = sum(1 for count in guest.references if not count)
    child = guest.new_space()
    for number in range(20):
        guest.map(child, va + (number << 20), guest.take(), WRITABLE)
    guest.switch(child)
    assert guest.touch(va, USER_STORE) == 0
    guest.switch(space)
    root = child.root
    guest.end_space(child)
    assert sum(1 for count in guest.references if not count) == free
    assert all(guest.entry(root, index) in (0, entry) for index, entry in guest.kernel_entries)


def test_tables_are_written_through_the_kernel_map() -> None:
    guest, space, va = booted(Noted)
    engine = cast(Noted, guest.engine)
    guest.touch(va, USER_STORE)
    engine.calls.clear()
    table = guest.table_of(space, va)
    assert engine.guest_tables()[table]  # in sync: the store must be seen
    guest.map(space, va + (3 << PAGE_SHIFT), guest.take(), WRITABLE)
    assert guest.direct + (table << PAGE_SHIFT) + 3 * 8 in engine.named("shadow_fault")
    assert engine.guest_tables()[table] is False


def test_a_frame_that_becomes_a_table_was_written_as_data_before() -> None:
    guest, space, va = booted(Noted)
    engine = cast(Noted, guest.engine)
    engine.calls.clear()
    far = va + (1 << 30)
    guest.map(space, far, guest.take(), WRITABLE)
    table = guest.table_of(space, far)
    assert guest.direct + (table << PAGE_SHIFT) in engine.named("shadow_fault")


def test_idle_moments_come_after_every_exit() -> None:
    guest, _, va = booted(Noted)
    engine = cast(Noted, guest.engine)
    engine.calls.clear()
    guest.touch(va, USER_STORE)
    guest.invlpg(va)
    guest.flush()
    names = [name for name, _ in engine.calls if name != "shadow_fault"]
    assert names[-4:] == ["invlpg", "idle", "load_cr3", "idle"]


def test_a_frame_that_moves_takes_its_content_along() -> None:
    guest = Guest("long4", FRAMES, "small", 1, spare=4)
    space = guest.new_space()
    va = user_tables(guest.mode, 1)[0]
    guest.map(space, va, guest.take(), WRITABLE)
    guest.boot(ENGINES["xi"], POOL)
    guest.switch(space)
    assert guest.touch(va, USER_STORE) == 0
    table = guest.table_of(space, va)
    before = guest.entry(table, guest.mode.levels[-1].index(va))
    old = guest.move(table, guest.frames)
    assert guest.p2m[table] == guest.frames != old
    assert guest.entry(table, guest.mode.levels[-1].index(va)) == before
    assert guest.touch(va, USER_STORE) == 0


def test_a_store_to_a_page_that_is_read_only_and_is_made_is_an_error() -> None:
    guest, space, va = a_guest()
    guest.map(space, va + 0x1000, guest.take(), READ_ONLY)
    guest.boot(Generous, POOL)
    guest.switch(space)
    guest.touch(va + 0x1000, USER_LOAD)
    with pytest.raises(WorkloadError, match=r"store ring 3 at .* leads to machine frame"):
        guest.touch(va + 0x1000, USER_STORE)


def test_an_engine_that_does_nothing_is_an_error() -> None:
    guest, _, va = a_guest()
    guest.boot(NeverFills, POOL)
    with pytest.raises(WorkloadError, match="again and again"):
        guest.touch(va, USER_STORE)
