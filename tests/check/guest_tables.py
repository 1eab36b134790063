"""A guest made by hand for the tests: RAM with tags, tables in it, an engine and a fake machine around it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from harness.check.crosscheck import CrossCheck
from harness.check.memory import OverlayMemory
from harness.check.target import Stop
from harness.engine import Bytes, EngineConfig
from harness.machine.mailbox import TAG_OFFSET, tag_slot
from harness.x86 import bits
from harness.x86.access import Access
from harness.x86.control import ControlState
from harness.x86.modes import NOPAE, PagingMode
from tests.check.fake_target import FakeTarget
from tests.check.toy_engine import ToyEngine

P, W, U, A, D, PS, NX = (
    bits.PTE_P,
    bits.PTE_RW,
    bits.PTE_US,
    bits.PTE_A,
    bits.PTE_D,
    bits.PTE_PS,
    bits.PTE_NX,
)
FRAMES = 1024  # 4 MiB
TABLES = 0x200  # first frame that tables are taken from
DATA = 0x300  # frames from here on are plain data in the tests


def control_of(mode: PagingMode, cr3: int) -> ControlState:
    """Paging on in `mode`, WP on, NX on where it exists."""
    cr4 = bits.CR4_PSE if mode is NOPAE else bits.CR4_PAE
    efer = 0
    if mode is not NOPAE:
        efer = bits.EFER_NXE
    if mode.canonical:
        efer |= bits.EFER_LME | bits.EFER_LMA
    if mode.name == "long5":
        cr4 |= bits.CR4_LA57
    return ControlState(bits.CR0_PE | bits.CR0_PG | bits.CR0_WP, cr3, cr4, efer)


class Guest:
    """RAM, tagged; `map` edits tables as a guest would; `checker` is the cross-check around it."""

    def __init__(self, mode: PagingMode, budget: int = 600, seed: int = 1) -> None:
        self.mode = mode
        self.ram = self.new_ram()
        for gfn in range(1, FRAMES):
            at = (gfn << 12) + TAG_OFFSET
            self.ram[at : at + 16] = np.frombuffer(tag_slot(gfn), np.uint8)
        self._next = TABLES
        self.root = self.table()
        self.state = control_of(mode, self.root << 12)
        self.index = 0
        self.wire(seed, budget)

    def new_ram(self) -> Bytes:
        """Guest-physical memory, zeroed."""
        return np.zeros(FRAMES << 12, np.uint8)

    def wire(self, seed: int, budget: int) -> None:
        """Puts engine, machine and checker around the memory."""
        self.overlay = OverlayMemory(self.ram)
        self.engine = ToyEngine(EngineConfig(FRAMES, 4096, 0x100000), self.overlay)
        self.engine.control(self.state)
        self.target = FakeTarget(self.ram, self.state)
        self.checker = CrossCheck(self.engine, self.overlay, self.target, seed, budget)

    def table(self) -> int:
        """A fresh zeroed frame for a table."""
        gfn = self._next
        self._next += 1
        self.ram[gfn << 12 : (gfn + 1) << 12] = 0
        return gfn

    def entry_at(self, va: int, level: int = 1, flags: int = P | W | U) -> int:
        """Physical address of the entry of `va` at `level`; makes the tables above it."""
        table = self.root
        size = self.mode.entry_bytes
        for row in self.mode.levels:
            at = (table << 12) + row.index(va) * size
            if row.number == level:
                return at
            entry = self.read(at)
            if not entry & P:
                entry = self.table() << 12 | (P if not row.has_rights else flags)
                self.write(at, entry)
            table = (entry & bits.PTE_ADDR) >> 12
        raise AssertionError(level)

    def map(self, va: int, gfn: int, flags: int = P | W | U, level: int = 1) -> int:
        at = self.entry_at(va, level)
        self.write(at, gfn << 12 | flags)
        return at

    def read(self, at: int) -> int:
        return int.from_bytes(self.ram[at : at + self.mode.entry_bytes].tobytes(), "little")

    def write(self, at: int, entry: int) -> None:
        size = self.mode.entry_bytes
        self.ram[at : at + size] = np.frombuffer(entry.to_bytes(size, "little"), np.uint8)

    def flush(self, **changes: int) -> None:
        """A CR3 load (or a control change), seen by the engine and by the processor."""
        self.state = replace(self.state, **changes)
        self.engine.control(self.state)
        self.target.mmu.control = self.state
        self.target.mmu.tlb.clear()

    def stop(self, stale: bool = False, ambient: tuple[tuple[int, Access], ...] = ()) -> Stop:
        self.index += 1
        return Stop(self.index, "test", self.state, stale, False, ambient)


def arena(mode: PagingMode) -> int:
    """An address of the tests' own in each mode."""
    return {"nopae": 0x8000_0000, "pae": 0x8000_0000, "long4": 0x1000_0000_0000, "long5": 0x10_0000_0000_0000}[
        mode.name
    ]


def small_guest(mode: PagingMode, budget: int = 600, seed: int = 1) -> Guest:
    """A few pages of each kind of rights, an identity map of the tables, a large page, an alias."""
    guest = Guest(mode, budget, seed)
    furnish(guest)
    return guest


def furnish(guest: Guest) -> None:
    """Makes the mappings of `small_guest`."""
    mode = guest.mode
    base = arena(mode)
    rights = [P | W | U, P | U, P | W, P, P | W | U | A | D] + ([P | W | U | NX, P | U | NX] if mode.has_nx else [])
    for i, flags in enumerate(rights):
        guest.map(base + (2 * i << 12), DATA + i, flags)
        guest.map(base + (2 * i + 1 << 12), DATA + i, flags)  # the same frame again
    for i in range(16):
        guest.map(base + (0x40 + i << 12), DATA + 0x40 + i)
    large = base + (4 << 20 if mode is NOPAE else 2 << 20)
    guest.map(large, 0, P | W | PS, level=2)
    for gfn in range(TABLES, guest._next + 1):
        guest.map(base + (0x100 + gfn - TABLES << 12), gfn, P | W)
    guest.flush()
