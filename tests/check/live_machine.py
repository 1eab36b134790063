"""A live machine that is not there: scattered memory, XI on demand, and a model processor that walks its shadow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.check.crosscheck import CrossCheck
from harness.check.live_memory import GuestMemory, LoggedMemory
from harness.check.target import NO_MEMORY
from harness.engine import GENERAL_PROTECTION, RETRY, Bytes, EngineConfig
from harness.live.layout import LiveLayout
from harness.machine.guest_view import GuestView
from harness.machine.mailbox import Status
from harness.machine.ram import POISON, RamMap
from harness.x86.modes import PagingMode
from harness.xi.engine import XiEngine
from tests.check.fake_target import ModelProber
from tests.check.guest_tables import FRAMES, Guest, furnish
from tests.check.model_mmu import Fault, ModelMmu

POOL_FRAMES = 1024
ROUNDS = 8


class LiveFakeTarget(ModelProber):
    """Probes on the shadow in machine memory, the engine behind the faults."""

    architectural = True
    opinions: frozenset[str] = frozenset()

    def __init__(self, machine: Bytes, view: GuestView, engine: XiEngine) -> None:
        super().__init__(machine)
        self._view = view
        self.engine = engine
        self.served = 0

    @property
    def ram(self) -> Bytes:
        return self._view.bytes

    def _probe(self, record: Any) -> None:
        va, op = int(record["va"]), int(record["op"])
        for _ in range(ROUNDS):
            root = self.engine.root
            try:  # no TLB: each VMRUN starts with none
                address = ModelMmu(self._memory, replace(root.control, cr3=root.root)).translate(va, op)
            except Fault as fault:
                answer = GENERAL_PROTECTION if fault.code < 0 else self.engine.shadow_fault(va, op)
                if answer == RETRY:
                    self.served += 1
                    continue
                if answer >= 0 or answer == GENERAL_PROTECTION:
                    self._fault(record, va, answer)
                else:
                    record["status"] = NO_MEMORY
                return
            self._access(record, address, op & 3)
            return
        record["status"] = Status.NOT_RUN

    def plant(self, writes: list[tuple[int, bytes]]) -> None:
        for gpa, data in writes:
            address = self._view.to_mfn[gpa >> 12] << 12 | gpa & 0xFFF
            self._memory[address : address + len(data)] = np.frombuffer(data, np.uint8)

    def gva2gpa(self, addresses: list[int]) -> list[int | None]:
        raise AssertionError("the debug walker sees the monitor")

    def read_virtual(self, addresses: list[int], count: int) -> list[bytes | None]:
        raise AssertionError("the debug walker sees the monitor")

    def info_tlb(self) -> str:
        raise AssertionError("the debug walker sees the monitor")


class LiveGuest(Guest):
    """`Guest` on a live machine. view, layout, machine memory (`machine`); the engine is XI's, filled on demand.

    believed: what the engine is told of the p2m, when it is not the truth.
    """

    def __init__(
        self,
        mode: PagingMode,
        budget: int = 600,
        seed: int = 1,
        believed: Callable[[npt.NDArray[np.int64]], None] | None = None,
    ) -> None:
        self._believed = believed
        self.layout = LiveLayout.plan(FRAMES // 256, POOL_FRAMES, seed)
        super().__init__(mode, budget, seed)

    def new_ram(self) -> Bytes:
        with tempfile.TemporaryDirectory() as folder:
            self._map = RamMap(Path(folder) / "ram", self.layout.machine_mib << 20)
        self.machine = self._map.bytes
        self.machine[self.layout.spare[:, None] << 12 | np.arange(4096)] = POISON
        self.view = GuestView(self._map, self.layout.p2m)
        return self.view.bytes

    def wire(self, seed: int, budget: int) -> None:
        layout = self.layout
        first, last = layout.pool_base_mfn << 12, layout.pool_base_mfn + layout.pool_frames << 12
        p2m = layout.p2m.copy()
        if self._believed:
            self._believed(p2m)
        self.memory = LoggedMemory(self.machine)
        config = EngineConfig(
            FRAMES, layout.pool_frames, layout.pool_base_mfn, p2m, self.machine[first:last], fill="demand"
        )
        self.xi = XiEngine(config, self.memory)
        self.xi.control(self.state)
        self.live_target = LiveFakeTarget(self.machine, self.view, self.xi)
        guest = GuestMemory(self.memory, self.view)
        self.checker = CrossCheck(self.xi, guest, self.live_target, seed, budget)

    def flush(self, **changes: int) -> None:
        self.state = replace(self.state, **changes)
        self.announce()
        self.xi.control(self.state)
        self.xi.load_cr3(self.state.cr3)

    def announce(self) -> None:
        """The write faults that the guest's stores into tables would have made."""
        for gfn in list(self.xi.guest_tables()):
            self.xi.table_written(gfn)

    def move(self, gfn: int, mfn: int) -> None:
        """Another machine frame for `gfn`, its content moved, the old one poisoned; -1 takes it away."""
        old = self.view.to_mfn[gfn]
        if mfn >= 0:
            self.machine[mfn << 12 : mfn + 1 << 12] = self.machine[old << 12 : old + 1 << 12]
        self.xi.xi_invld_mfn(gfn, mfn)
        self.view.remap(gfn, mfn)
        self.machine[old << 12 : old + 1 << 12] = POISON


def live_guest(
    mode: PagingMode,
    budget: int = 600,
    seed: int = 1,
    believed: Callable[[npt.NDArray[np.int64]], None] | None = None,
) -> LiveGuest:
    """`small_guest`, live."""
    guest = LiveGuest(mode, budget, seed, believed)
    furnish(guest)
    return guest
