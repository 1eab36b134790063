"""The guest's side of an engine: its registers, its tables, the walk through them and the verdict on an access.

The walk is XI's (`harness.xi.guest_walk`): it reads nothing but the guest's tables, and every engine needs the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from harness.engine import EngineConfig, MachineMemory, Words
from harness.peers.pages import ShadowPage
from harness.x86.bits import CR0_CD, CR0_NW, CR0_PG, CR4_PAE, CR4_PGE, CR4_PSE, CR4_SMEP
from harness.x86.control import ControlState
from harness.x86.modes import PAE
from harness.xi.gpt import UNBACKED_TABLE_ENTRY
from harness.xi.guest_walk import GuestWalks, Walk
from harness.xi.p2m import P2m
from harness.xi.stats import Stats

# Writes that change one of these reload the PDPTEs of a PAE guest (SDM vol. 3A, 4.4.1).
_RELOADS_CR0: Final = CR0_CD | CR0_NW | CR0_PG
_RELOADS_CR4: Final = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP


class GuestSide(GuestWalks):
    """The registers and tables of the guest. on_store: called with the gfn of each table in which A or D was set.

    Of the layers on which XI puts its walk nothing is set up: no call here comes to them.
    """

    def __init__(  # what the layers below set up is the mechanism of XI
        self, config: EngineConfig, memory: MachineMemory, p2m: P2m, on_store: Callable[[int], None]
    ) -> None:
        self.config = config
        self.memory = memory
        self.p2m = p2m
        self.counters = Stats()  # accessed_set and dirty_set of them
        self.known_paths = {}
        self.logging = True  # `on_store` knows whether it is
        self.state = ControlState()
        self.pdptes = (0, 0, 0, 0)
        self._on_store = on_store
        self._started = False
        self.latch_walk()

    def log_dirty(self, gfn: int) -> None:
        self._on_store(gfn)

    def use(self, memory: MachineMemory) -> None:
        """From now on the machine's memory is read and written through `memory`."""
        self.memory = memory
        self.latch_walk()

    # Registers.

    def control(self, state: ControlState) -> None:
        """The registers become `state`; the PDPTEs of a PAE guest are loaded if the processor would."""
        old = self.state
        reload = (
            not self._started
            or state.cr3 != old.cr3
            or state.mode is not old.mode
            or bool((state.cr0 ^ old.cr0) & _RELOADS_CR0)
            or bool((state.cr4 ^ old.cr4) & _RELOADS_CR4)
        )
        self._started = True
        self.state = state
        self._root_gpa = state.root_gpa
        self.latch_walk()
        if reload:
            self.latch_pdptes()

    def load_cr3(self, cr3: int) -> None:
        old = self.state
        self.state = ControlState(old.cr0, cr3, old.cr4, old.efer, old.pkru)
        self._started = True
        self._root_gpa = self.state.root_gpa
        self.latch_pdptes()

    def set_pkru(self, pkru: int) -> None:
        old = self.state
        self.state = ControlState(old.cr0, old.cr3, old.cr4, old.efer, pkru)

    def latch_pdptes(self) -> None:
        """Loads the four PDPTEs of a PAE guest into the registers that the processor keeps them in."""
        if self.state.mode is not PAE:
            return
        gpa = self.state.root_gpa
        if self.p2m.backed(gpa >> 12):
            at = (self.p2m.to_mfn[gpa >> 12] << 12) + (gpa & 0xFE0)
            read = self.memory.read64
            self.pdptes = (read(at), read(at + 8), read(at + 16), read(at + 24))
        else:
            self.pdptes = (UNBACKED_TABLE_ENTRY,) * 4

    def needs(self, state: ControlState) -> int:
        """gfn of the root of `state` if its frame was taken away, else -1."""
        gfn = state.root_gpa >> 12
        return gfn if state.mode.levels and gfn in self.p2m.away else -1

    # Tables.

    @property
    def paged(self) -> bool:
        return bool(self._rows)

    def canonical(self, va: int) -> bool:
        return va >> self._top_shift in self._tops

    def entry(self, walk: Walk, level: int) -> int:
        """The guest's entry of `level` on `walk`, with the A and D bits that were set since."""
        return walk.entries[self._root_level - level]

    def tables(self, walk: Walk) -> set[int]:
        """gfns of the tables that `walk` went through."""
        return {self.p2m.to_gfn[address >> 12] for address in walk.addresses if address >= 0}

    def entries(self, page: ShadowPage) -> Words:
        """The entries of the guest's table that `page` covers, as they are now, as uint64 (a 32-bit guest's widened);
        of a PAE guest's PDPT the registers."""
        rules = page.rules
        assert rules is not None
        if rules.latched:
            return np.array(self.pdptes, np.uint64)
        if not self.p2m.backed(page.gfn):
            return np.full(page.count, UNBACKED_TABLE_ENTRY, np.uint64)
        words = self.memory.page(self.p2m.to_mfn[page.gfn])
        if rules.entry_bytes == 4:
            return words.view(np.uint32)[page.first : page.first + page.count].astype(np.uint64)
        return words[page.first : page.first + page.count]

    def entry_behind(self, page: ShadowPage, index: int) -> int:
        """The guest's entry that SPTE `index` of `page` stands for, as it is now."""
        rules = page.rules
        assert rules is not None
        number = page.first + (index >> page.halved)
        if rules.latched:
            return self.pdptes[index] if index < 4 else 0
        if not self.p2m.backed(page.gfn):
            return UNBACKED_TABLE_ENTRY
        at = self.p2m.to_mfn[page.gfn] << 12
        return self.memory.read32(at + number * 4) if rules.entry_bytes == 4 else self.memory.read64(at + number * 8)
