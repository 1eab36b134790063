"""The memory of a replay, and which of the guest's changes may still be unknown to its TLB."""

from __future__ import annotations

import numpy as np
import pytest

from harness.engine import EngineConfig
from harness.trace.memory import Pending, ReplayMemory
from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.modes import LONG4, NOPAE, PAE, PagingMode
from harness.x86.walk import trace
from tests.xi.domain import CONTROL, USED, A, D, P

TABLE, LEAF = 3, 9  # gfn of a table, index of an entry in it


@pytest.fixture
def memory() -> ReplayMemory:
    p2m = np.array([5, -1, 7, 1], np.int64)
    return ReplayMemory(16, EngineConfig(4, 16, 16, p2m=p2m))


def test_guest_memory_is_where_the_p2m_has_it(memory: ReplayMemory) -> None:
    memory.q[7 << 9 | 2] = 0x1122334455667788
    memory.touched.add(7)
    assert memory.read_guest(0x2010, 8) == 0x1122334455667788
    assert memory.read_guest(0x2014, 4) == 0x11223344
    assert memory.read_guest(0x1000, 8) is None
    assert memory.read_guest(0x4000, 8) is None
    assert memory.guest_bytes().view(np.uint64)[2 << 9 | 2] == 0x1122334455667788
    memory.remap(2, 8)
    assert memory.read_guest(0x2010, 8) == 0
    assert (memory.to_gfn[7], memory.to_gfn[8]) == (-1, 2)
    memory.remap(2, -1)
    assert memory.read_guest(0x2010, 8) is None
    assert not memory.guest_bytes().any()


def test_a_large_machine_takes_no_room() -> None:
    memory = ReplayMemory(1 << 24, EngineConfig(16, 16, 16))  # 64 GiB
    memory.page((1 << 24) - 1)[511] = 7
    assert memory.read64((1 << 36) - 8) == 7


class Entry:
    """One entry of a guest's level-1 table, as it was and is, and what is pending of it."""

    def __init__(self, mode: PagingMode) -> None:
        self.mode = mode
        self.memory = ReplayMemory(64, EngineConfig(64, 16, 64))
        cr0, cr4, efer = CONTROL[mode.name]
        tables = (TABLE + 1, TABLE + 2, TABLE + 3, TABLE)[-len(mode.levels) :]
        self.state = ControlState(cr0, tables[0] << 12, cr4, efer)
        self.va = sum(LEAF << level.shift for level in mode.levels[-1:])
        for level, table, below in zip(mode.levels, tables, tables[1:], strict=False):
            self.put(
                table << 12 | level.index(self.va) * mode.entry_bytes, below << 12 | (USED if level.has_rights else P)
            )
        self.at = TABLE << 12 | LEAF * mode.entry_bytes
        self.root = tables[0]
        self.pending = Pending()
        self.pending.enter(mode)

    def put(self, address: int, value: int) -> None:
        count = self.mode.entry_bytes
        self.memory.bytes[address : address + count] = np.frombuffer(value.to_bytes(count, "little"), np.uint8)

    def change(self, old: int, new: int, address: int | None = None) -> None:
        at = self.at if address is None else address
        self.put(at, old)
        was = self.memory.q[at >> 3]
        self.put(at, new)
        self.pending.change(at >> 3, was, self.memory.q[at >> 3])

    @property
    def is_pending(self) -> bool:
        path = trace(self.state, self.va, self.memory.read_guest)
        return self.pending.covers(path, self.memory, self.mode)


@pytest.mark.parametrize("mode", [NOPAE, PAE, LONG4], ids=lambda mode: mode.name)
@pytest.mark.parametrize(
    ("old", "new", "pending"),
    [
        (0x5000 | USED, 0x6000 | USED, True),
        (0x5000 | USED, 0, True),
        (0x5000 | USED, 0x5000 | P | A | D, True),
        (0x5000 | USED, 0x5000 | (USED & ~(A | D)), False),
        (0, 0x5000 | USED, False),
        (0x5000, 0x6000 | USED, False),
    ],
)
def test_what_needs_a_flush(mode: PagingMode, old: int, new: int, pending: bool) -> None:
    entry = Entry(mode)
    entry.change(old, new)
    assert entry.is_pending == pending


@pytest.mark.parametrize("mode", [NOPAE, PAE, LONG4], ids=lambda mode: mode.name)
def test_what_flushes(mode: PagingMode) -> None:
    entry = Entry(mode)
    for flush in (
        entry.pending.flush,
        lambda: entry.pending.synchronise(mode, entry.root << 12),
        lambda: entry.pending.invlpg(entry.va | 0xFFF),
    ):
        entry.change(0x5000 | USED, 0x6000 | USED)
        assert entry.is_pending
        entry.pending.invlpg(entry.va + 0x1000)
        assert entry.is_pending
        flush()
        assert not entry.is_pending


def test_a_change_behind_the_flush_is_pending_again() -> None:
    entry = Entry(LONG4)
    entry.change(0x5000 | USED, 0x6000 | USED)
    entry.pending.invlpg(entry.va)
    entry.change(0x6000 | USED, 0x7000 | USED)
    assert entry.is_pending


def test_a_change_further_up_covers_what_is_below() -> None:
    entry = Entry(LONG4)
    root = entry.state.root_gpa
    entry.change(entry.memory.q[root >> 3] ^ bits.PTE_RW, entry.memory.q[root >> 3], root)
    assert entry.is_pending


def test_the_pdptes_of_a_pae_guest_are_loaded_with_cr3_only() -> None:
    entry = Entry(PAE)
    root = entry.state.root_gpa
    entry.change(0x30000 | P, entry.memory.q[root >> 3], root)
    entry.pending.invlpg(entry.va)
    assert entry.is_pending
    entry.pending.synchronise(PAE, root)
    assert entry.is_pending
    entry.pending.flush()
    assert not entry.is_pending


def test_a_page_is_as_many_changes_as_it_has(memory: ReplayMemory) -> None:
    entry = Entry(LONG4)
    old = entry.memory.page(TABLE).copy()
    old[LEAF] = 0x5000 | USED
    new = old.copy()
    new[LEAF] |= A | D
    assert not entry.pending.change_page(TABLE, old, new)
    new[LEAF] = 0x6000 | USED
    assert entry.pending.change_page(TABLE, old, new)
    entry.memory.page(TABLE)[:] = new
    assert entry.is_pending
