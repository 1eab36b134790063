"""A guest under everything at once: tables that change, frames that move and go, dirty logging, hardly any pool.

The hardware is `harness.check.shadow_walk` on the pool, the truth `harness.x86.walk` on the guest's memory; neither
shares code with the engine. A run is decided by its seed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest

from harness.check.shadow_walk import ShadowView, shadow_walk
from harness.check.verdict import FRAME
from harness.engine import AWAY, GENERAL_PROTECTION, MMIO, RETRY, Bytes, PlainMemory
from harness.x86 import bits
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.control import ControlState
from harness.x86.modes import PagingMode
from harness.x86.walk import MAPPED, trace, walk
from harness.xi.engine import XiEngine
from harness.xi.shared_pool import SharedPool
from tests.xi.domain import A, D, Domain

FRAMES: Final = 4096
HOLE: Final = range(0xA0, 0x100)
ROOTS: Final = (16, 520)
TABLES: Final = (16, 17, 18, 520, 521, 1030, 1031, 1540)  # in four different blocks of 2 MiB
DATA: Final = (601, 602, 1100, 1600, 2047, 2048, 3000)
OTHER: Final = (0xA5, FRAMES + 3, (1 << 27) + 1)  # a hole, and beyond the domain
LARGE: Final = (0, 512, 1024, 1536, 2048, 3072, 3584)
REGISTERS: Final = 0x7FFF_F000  # of guest-physical memory that no guest has: where the truth reads the PDPTEs
TRIES: Final = 16  # of one access: a few for the shadow, and one for each table and the page to come back


def blocks(seed: int) -> npt.NDArray[np.int64]:
    """A p2m of which every other block of 2 MiB is whole and aligned, the rest shuffled frame by frame, with a hole."""
    rng = np.random.default_rng(seed)
    machine = rng.permutation(2 * FRAMES // 512)[: FRAMES // 512]
    table = (machine[:, None] * 512 + np.arange(512)).astype(np.int64)
    loose = np.arange(0, len(machine), 2)
    table[loose] = rng.permutation(table[loose].reshape(-1)).reshape(-1, 512)
    out = table.reshape(-1)
    out[HOLE.start : HOLE.stop] = -1
    return out


class Recording(PlainMemory):
    """Memory that notes the machine frames to which A and D bits were written."""

    def __init__(self, buffer: Bytes) -> None:
        super().__init__(buffer)
        self.marked: set[int] = set()

    def or64(self, address: int, bits: int) -> None:
        self.marked.add(address >> 12)
        super().or64(address, bits)

    def or32(self, address: int, bits: int) -> None:
        self.marked.add(address >> 12)
        super().or32(address, bits)


class Storm:
    """One run. mode: the guest's; sptis: of the pool; engine: that answers; options, late, shared_pool: as `Domain`."""

    def __init__(
        self,
        mode: str,
        sptis: int,
        seed: int,
        fill: str = "demand",
        engine: type[XiEngine] = XiEngine,
        options: Mapping[str, str] | None = None,
        late: bool = False,
        shared_pool: SharedPool | None = None,
    ) -> None:
        self.random = Random(seed)
        wp = self.random.random() < 0.7
        self.domain = Domain(
            mode,
            fill,
            FRAMES,
            sptis,
            p2m=blocks(seed),
            wp=wp,
            engine=engine,
            options=options,
            late=late,
            shared_pool=shared_pool,
        )
        self.engine = self.domain.engine
        self.memory = Recording(self.domain.memory.bytes)
        self.engine.memory = self.memory
        self.mode = self.domain.mode
        self.recent: deque[int] = deque(maxlen=5)  # addresses that the guest could use
        self.stored: set[int] = (
            set()
        )  # frames stored to in this round of the dirty log, by the guest or with A and D bits
        if self.mode.levels:
            for level in self.mode.levels:
                for gfn in TABLES:
                    for index in indices(self.mode, level.number):
                        self.domain.poke((gfn << 12) + index * self.mode.entry_bytes, self.an_entry())
            self.domain.state = replace(self.domain.state, cr3=ROOTS[0] << 12)
        self.domain.start()

    # What is drawn.

    def an_entry(self) -> int:
        """An entry, more often than not one that leads somewhere."""
        r = self.random
        if r.random() < 0.05:
            return r.getrandbits(8 * self.mode.entry_bytes)
        target = r.choice(r.choice((TABLES, TABLES, TABLES, DATA, DATA, OTHER)))
        flags = 0 if r.random() < 0.05 else bits.PTE_P
        if self.mode.name == "pae" and r.random() < 0.3:  # one that is valid as a PDPTE too
            return target << 12 | flags
        for bit, chance in ((bits.PTE_RW, 0.8), (bits.PTE_US, 0.7), (bits.PTE_A, 0.5), (bits.PTE_D, 0.4)):
            flags |= bit if r.random() < chance else 0
        if r.random() < 0.2:
            target, flags = r.choice(LARGE), flags | bits.PTE_PS
        if self.mode.entry_bytes == 8 and r.random() < 0.1:
            flags |= bits.PTE_NX
        return (target << 12 | flags) & (1 << 8 * self.mode.entry_bytes) - 1

    def an_address(self) -> int:
        """An address: one of the last, or more often than not one that is mapped."""
        r = self.random
        if not self.domain.state.mode.levels:
            return r.choice((*TABLES, *DATA, *OTHER[:2])) << 12
        if self.recent and r.random() < 0.6:
            return r.choice(self.recent)
        va = 0
        for _ in range(r.randrange(1, 8)):
            va = r.choice((0, 0, 0x2000, 0x1FF000, 0x3FF000))
            for level in self.mode.levels:
                va |= r.choice(indices(self.mode, level.number)) << level.shift
            va = self.mode.sign_extend(va)
            if trace(self.truth, va, self.read).outcome == MAPPED:
                break
        return va

    # What happens.

    def rage(self, steps: int = 80) -> None:
        """The whole run."""
        for _ in range(steps):
            self.step()
        self.do_cr3()

    def step(self) -> None:
        """One thing, and an audit."""
        kinds = (
            *("write",) * (8 if self.mode.levels else 0),
            *("access",) * 6,
            *("cr3", "invlpg", "control") * bool(self.mode.levels),
            *("move", "take", "give", "log", "log", "idle"),
        )
        getattr(self, f"do_{self.random.choice(kinds)}")()
        self.domain.audit()

    def do_write(self) -> None:
        """A store to a table: anywhere, or to an entry that was used just now, of which one bit is flipped or all."""
        r = self.random
        gfn, level = r.choice(TABLES), r.choice(self.mode.levels).number
        at = (gfn << 12) + r.choice(indices(self.mode, level)) * self.mode.entry_bytes
        entry = self.an_entry()
        if self.recent and self.domain.state.mode.levels and r.random() < 0.7:
            step = r.choice(trace(self.truth, r.choice(self.recent), self.read).steps)
            if self.there(step.table):
                at = step.address
                if r.random() < 0.5:
                    entry = step.entry ^ r.choice((bits.PTE_P, bits.PTE_RW, bits.PTE_US, A, D, A | D))
        self.domain.poke(at, entry)

    def do_access(self) -> None:
        """Possibly stale, as in a TLB: what is asserted is that it ends, and in the guest's own memory."""
        self.access(self.an_address(), self.random.choice(ALL_ACCESSES))

    def do_cr3(self) -> None:
        """A flush, whatever else it is: after it everything is as the tables say."""
        self.domain.state = replace(self.domain.state, cr3=self.random.choice(ROOTS) << 12)
        self.domain.flush()
        for _ in range(3):
            self.check(self.an_address())

    def do_invlpg(self) -> None:
        """After it this address is as the tables say."""
        va = self.an_address()
        self.engine.invlpg(va)
        self.check(va)

    def do_control(self) -> None:
        state = self.domain.state
        register, bit = self.random.choice(
            (("cr0", bits.CR0_PG), ("cr0", bits.CR0_WP), ("cr4", bits.CR4_PGE), ("cr4", bits.CR4_SMEP))
        )
        self.domain.state = replace(state, **{register: getattr(state, register) ^ bit})
        if bit == bits.CR0_WP:  # the one of them that loads no PDPTEs (SDM vol. 3A, 4.4.1)
            self.engine.control(self.domain.state)
        else:
            self.domain.start()

    def a_frame(self) -> int | None:
        gfn = self.random.choice(TABLES + DATA)
        return None if gfn in self.domain.away else gfn

    def do_move(self) -> None:
        gfn = self.a_frame()
        if gfn is not None:
            self.domain.move(gfn)

    def do_take(self) -> None:
        gfn = self.a_frame()
        if gfn is None:
            return
        if self.domain.state.mode.levels and self.domain.state.root_gpa >> 12 == gfn:
            with pytest.raises(ValueError, match="root table in use"):
                self.domain.take(gfn)
        else:
            self.domain.take(gfn)

    def do_give(self) -> None:
        if self.domain.away:
            self.domain.give(self.random.choice(sorted(self.domain.away)))

    def do_log(self) -> None:
        if not self.engine.logging or self.random.random() < 0.1:
            self.engine.dirty_log_start()
        elif self.random.random() < 0.15:
            self.engine.dirty_log_stop()
        else:
            assert set(np.flatnonzero(self.engine.dirty_log_read()).tolist()) == self.stored
        self.stored.clear()

    def do_idle(self) -> None:
        for _ in range(self.random.randrange(20)):
            if not self.engine.idle():
                break

    # The processor.

    def access(self, va: int, access: Access) -> tuple[int, int]:
        """One access as the hardware and the controller make it: (FRAME, gfn), or (#PF code, GENERAL_PROTECTION or
        MMIO, -1)."""
        for _ in range(TRIES):
            root = self.engine.root
            base, words = self.engine.pool
            view = ShadowView(root, base, words, self.domain.state.pkru)
            answer = shadow_walk(view, np.array([va], np.uint64), np.array([access], np.uint8))
            code, mfn = int(answer.codes[0]), int(answer.frames[0])
            if code == FRAME:
                gfn = int(self.engine.p2m.m2p[mfn])
                assert gfn >= 0, f"{va:#x} leads to machine frame {mfn:#x}, which is nobody's"
                if access.is_store and self.engine.logging:
                    self.stored.add(gfn)
                if va not in self.recent:
                    self.recent.append(va)
                return FRAME, gfn
            self.memory.marked.clear()
            result = self.engine.shadow_fault(va, access)
            if self.engine.logging:
                self.stored.update(int(self.engine.p2m.m2p[mfn]) for mfn in self.memory.marked)
            if result == AWAY:
                self.domain.give(self.engine.away_gfn)
            elif result != RETRY:
                return result, -1
        raise AssertionError(f"no progress at {va:#x} for {access.text}: {self.engine.describe_walk(va)}")

    @property
    def truth(self) -> ControlState:
        """The registers with which `walk` finds the truth: a PAE guest's walk begins at its PDPTE registers."""
        state = self.domain.state
        return replace(state, cr3=REGISTERS) if state.mode.name == "pae" else state

    def there(self, gfn: int) -> bool:
        """Whether the guest has memory at `gfn`, for all it knows."""
        return gfn < FRAMES and (self.domain.mfn(gfn) >= 0 or gfn in self.domain.away)

    def read(self, address: int, count: int) -> int | None:
        """Guest-physical memory as the guest's page walk reads it, and the PDPTE registers of a PAE guest."""
        if 0 <= address - REGISTERS < 32:
            return self.domain.pdptes[(address - REGISTERS) >> 3]
        if not self.there(address >> 12):
            return None
        return self.domain.read_guest(address, count)

    def check(self, va: int) -> None:
        """Where nothing may be stale: every access at `va` gets what the tables say, and leaves A and D behind."""
        state = self.domain.state
        for access in ALL_ACCESSES:
            path, verdict = walk(self.truth, va, access, self.read)
            code, gfn = self.access(va, access)
            if verdict.gpa is None:
                assert code == (GENERAL_PROTECTION if verdict.code is None else verdict.code), (hex(va), access)
                continue
            wanted = verdict.gpa >> 12
            assert (code, gfn) == ((FRAME, wanted) if self.there(wanted) else (MMIO, -1)), (
                hex(va),
                access.text,
                verdict.text,
            )
            for step in path.steps:
                if state.mode.level(step.level).has_ad and self.there(step.table):
                    bit = A | (D if access.is_store and step is path.steps[-1] else 0)
                    now = self.domain.read_guest(step.address, state.mode.entry_bytes)
                    assert now & bit == bit, (hex(va), access.text, step)


def indices(mode: PagingMode, level: int) -> tuple[int, ...]:
    """Entries of a table that the run uses: few enough to meet again, the first and the last among them."""
    count = mode.level(level).entries
    return tuple(sorted({0, 1, count // 2, count - 1}))
