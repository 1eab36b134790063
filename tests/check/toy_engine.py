"""The simplest shadow engine there is: forget everything at every flush, build page by page on faults.

It serves to test the checker without the real engine, and each of its methods can be broken on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.engine import (
    GENERAL_PROTECTION,
    MMIO,
    RETRY,
    AuditFailure,
    Bytes,
    EngineConfig,
    MachineMemory,
    ShadowRoot,
    Words,
)
from harness.x86.access import Access
from harness.x86.bits import CR0_PG, CR0_WP, CR4_PAE, EFER_LME, EFER_NXE, PTE_NX
from harness.x86.control import ControlState
from harness.x86.modes import PAE
from tests.check.model_mmu import LEVELS, Fault, ModelMmu

ADDRESS = 0x000F_FFFF_FFFF_F000


class ToyEngine:
    name = "toy"

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        self.config = config
        self.memory = memory
        self.state = ControlState()
        self.words: Words = np.zeros((config.pool_frames, 512), np.uint64)
        self.used = 1
        self.faults = 0

    # Events.
    def control(self, state: ControlState) -> None:
        self.state = state
        self.flush()

    def load_cr3(self, cr3: int) -> None:
        self.state = replace(self.state, cr3=cr3)
        self.flush()

    def invlpg(self, va: int) -> None:
        self.flush()

    def table_written(self, gfn: int) -> None:
        pass

    def shadow_faults(self, addresses: Sequence[int], accesses: Sequence[int]) -> list[int]:
        return [self.shadow_fault(va, access) for va, access in zip(addresses, accesses, strict=True)]

    def idle(self) -> bool:
        return False

    # Its domain's frames stay where they are, and are all writable.
    away_gfn = -1
    pdptes = (0, 0, 0, 0)

    def restore_pdptes(self, pdptes: tuple[int, int, int, int]) -> None:
        raise NotImplementedError

    def needs(self, state: ControlState) -> int:
        return -1

    def xi_invld_mfn(self, gfn: int, mfn: int) -> None:
        raise NotImplementedError

    def dirty_log_start(self) -> None:
        raise NotImplementedError

    def dirty_log_read(self) -> Bytes:
        raise NotImplementedError

    def dirty_log_stop(self) -> None:
        raise NotImplementedError

    def set_pkru(self, pkru: int) -> None:
        self.state = replace(self.state, pkru=pkru)

    def flush(self) -> None:
        self.words[: self.used] = 0
        self.used = 1

    # The shadow.
    @property
    def root(self) -> ShadowRoot:
        mode = self.state.mode if self.state.mode.canonical else PAE
        control = replace(
            self.state,
            cr0=self.state.cr0 | CR0_WP | CR0_PG,
            cr4=self.state.cr4 | CR4_PAE,
            efer=self.state.efer | EFER_NXE | (EFER_LME if mode.canonical else 0),
        )
        return ShadowRoot(mode, self.config.pool_base_mfn << 12, control)

    @property
    def pool(self) -> tuple[int, Words]:
        return self.config.pool_base_mfn, self.words

    def translate(self, va: int, op: int) -> tuple[int, bool, bool, int, list[int]]:
        """(gpa, dirty, user, key, entry addresses) by a quiet walk; raises Fault with silicon's code."""
        seen: list[int] = []
        engine = self

        class Quiet(ModelMmu):
            def _load(self, address: int, size: int) -> int:
                seen.append(address)
                if address >= engine.memory.frames << 12:
                    return 0
                return engine.memory.read64(address) if size == 8 else engine.memory.read32(address)

            def _mark(self, address: int, bits: int) -> None:
                pass

        gpa = Quiet(np.zeros(0, np.uint8), self.state)._walk(va, op)
        return gpa, op & 3 == 1, False, 0, seen

    def shadow_fault(self, va: int, access: int) -> int:
        self.faults += 1
        mode = self.state.mode
        if mode.canonical and not mode.is_canonical(va):
            return GENERAL_PROTECTION
        try:
            gpa, _, _, _, seen = self.translate(va, access)
        except Fault as fault:
            return self.error_code(fault.code, access)
        first = 1 if mode is PAE else 0
        for address in seen[first:]:
            self.set_accessed(address)
        if access & 3 == 1 and seen:
            self.set_dirty(seen[-1])
        if gpa >> 12 >= self.config.frames or 0xA0 <= gpa >> 12 < 0x100:
            return MMIO
        self.fill(va, gpa >> 12, access, seen)
        return RETRY

    def error_code(self, code: int, access: int) -> int:
        """The model's code is QEMU's; silicon's is what an engine must inject."""
        if code & 8:
            code |= 1
        if Access(access).is_fetch and not self.state.reports_fetch:
            code &= ~16
        return code

    def set_accessed(self, address: int) -> None:
        self._or(address, 0x20)

    def set_dirty(self, address: int) -> None:
        self._or(address, 0x40)

    def _or(self, address: int, bits: int) -> None:
        if self.state.mode.entry_bytes == 4:
            self.memory.or32(address, bits)
        else:
            self.memory.or64(address, bits)

    def fill(self, va: int, gfn: int, access: int, seen: list[int]) -> None:
        """Installs one 4 KiB page whose leaf allows just this access: the narrowest right shadow."""
        shifts, widths, _, _ = LEVELS[self.root.mode.name]
        table = 0
        leaf = self.leaf(gfn, access)
        for shift, width in zip(shifts[:-1], widths[:-1], strict=True):
            index = va >> shift & (1 << width) - 1
            entry = int(self.words[table, index])
            if not entry & 1:
                flags = 1 if self.root.mode is PAE and shift == 30 else 7
                entry = (self.config.pool_base_mfn + self.used) << 12 | flags
                self.words[table, index] = entry
                self.used += 1
            table = (entry >> 12 & (1 << 40) - 1) - self.config.pool_base_mfn
        held = int(self.words[table, va >> 12 & 511])
        if held & 1 and (held ^ leaf) & ADDRESS == 0 and self.state.wp and not self.state.pke:
            leaf = (held | leaf) & ~PTE_NX | (held & leaf & PTE_NX)  # both accesses were allowed: so is their union
        self.words[table, va >> 12 & 511] = leaf

    def leaf(self, gfn: int, access: int) -> int:
        kind = Access(access)
        entry = gfn << 12 | 0x21
        if kind.is_store:
            entry |= 0x42
        if kind.is_user:
            entry |= 4
        return entry if kind.is_fetch else entry | PTE_NX

    # What the checker does not need of it.
    def watch_changes(self) -> dict[int, frozenset[int]]:
        return {}

    def executable_changes(self) -> npt.NDArray[np.int64]:
        return np.zeros(0, np.int64)

    def addresses_of(self, gfn: int, writable: bool = False, executable: bool = False) -> frozenset[int]:
        return frozenset()

    def guest_tables(self) -> dict[int, bool]:
        return {}

    def unexplained_changes(self) -> list[int]:
        return []

    def resync_all(self) -> None:
        self.flush()

    def audit(self) -> list[AuditFailure]:
        return []

    def stats(self) -> dict[str, Any]:
        return {"faults": self.faults}

    def describe_gfn(self, gfn: int) -> dict[str, Any]:
        return {"gfn": gfn, "state": "toy"}

    def describe_walk(self, va: int) -> list[dict[str, Any]]:
        return []
