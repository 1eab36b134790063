"""A domain on a byte buffer, a guest that builds its tables by hand, and the hardware that walks the shadow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from harness.engine import AWAY, GENERAL_PROTECTION, MMIO, RETRY, EngineConfig, PlainMemory
from harness.x86 import bits
from harness.x86.access import Access
from harness.x86.control import ControlState
from harness.x86.modes import MODES
from harness.xi.engine import XiEngine
from harness.xi.shared_pool import SharedPool
from tests.xi.model import Answer, mmu

A, D, P, RW, US, PS, NX = (
    bits.PTE_A,
    bits.PTE_D,
    bits.PTE_P,
    bits.PTE_RW,
    bits.PTE_US,
    bits.PTE_PS,
    bits.PTE_NX,
)
USED = P | RW | US | A | D
POISON = 0xDEAD_F00D_DEAD_F00D  # fills machine frames that are nobody's: as an entry, present, and nonsense

CONTROL = {
    "unpaged": (bits.CR0_PE, 0, 0),
    "nopae": (bits.CR0_PE | bits.CR0_PG, bits.CR4_PSE, 0),
    "pae": (bits.CR0_PE | bits.CR0_PG, bits.CR4_PAE, bits.EFER_NXE),
    "long4": (bits.CR0_PE | bits.CR0_PG, bits.CR4_PAE, bits.EFER_LME | bits.EFER_NXE),
    "long5": (bits.CR0_PE | bits.CR0_PG, bits.CR4_PAE | bits.CR4_LA57, bits.EFER_LME | bits.EFER_NXE),
}


class Domain:
    """One domain. gfns up to `frames`; pool of `sptis` SPTIs; p2m: mfn of each gfn below 2 * `frames`, the identity by
    default, or scattered when `scramble`. late: stores are announced when they are made already, as they are under
    observation. shared_pool: the one to join, which has its own size."""

    def __init__(
        self,
        mode: str = "long4",
        fill: str = "eager",
        frames: int = 1024,
        sptis: int = 64,
        scramble: bool = False,
        p2m: npt.NDArray[np.int64] | None = None,
        wp: bool = True,
        cr4: int = 0,
        options: Mapping[str, str] | None = None,
        engine: type[XiEngine] = XiEngine,
        late: bool = False,
        shared_pool: SharedPool | None = None,
    ) -> None:
        self.late = late
        self.frames = frames
        self.memory = PlainMemory(np.zeros(2 * frames * 4096, np.uint8))
        table = np.arange(frames, dtype=np.int64) if p2m is None else p2m
        if scramble:
            table = np.random.default_rng(7).permutation(2 * frames)[:frames].astype(np.int64)
        self.pool_base = shared_pool.base_mfn if shared_pool else 2 * frames
        pool_frames = shared_pool.frames if shared_pool else sptis * 4
        config = EngineConfig(frames, pool_frames, self.pool_base, p2m=table, fill=fill, options=dict(options or {}))
        self.engine = engine(config, self.memory, shared_pool) if shared_pool else engine(config, self.memory)
        self.mode = MODES[mode]
        cr0, mode_cr4, efer = CONTROL[mode]
        self.state = ControlState(cr0 | (bits.CR0_WP if wp else 0), 0, mode_cr4 | cr4, efer)
        self.next_frame = 1
        self.pdptes: tuple[int, ...] = (0, 0, 0, 0)
        self.away: dict[int, bytes] = {}  # gfn -> contents, of frames that were taken away
        self.root = self.new_root() if self.mode.levels else 0
        self.state = replace(self.state, cr3=self.root << 12)

    # The guest.

    def frame(self) -> int:
        """A gfn that nothing uses yet."""
        self.next_frame += 1
        assert self.next_frame < self.frames, "the test asks for more frames than the domain has"
        return self.next_frame

    def new_root(self) -> int:
        return self.frame()

    def mfn(self, gfn: int) -> int:
        return self.engine.p2m.to_mfn[gfn]

    def read_guest(self, address: int, count: int) -> int:
        """Guest-physical memory, as the guest's own page walk reads it; 0 outside it. Frames that are away count as
        there: the guest does not notice that they come and go."""
        gfn = address >> 12
        if gfn in self.away:
            return int.from_bytes(self.away[gfn][address & 0xFFF : (address & 0xFFF) + count], "little")
        if gfn >= self.frames or self.mfn(gfn) < 0:
            return 0
        at = (self.mfn(gfn) << 12) + (address & 0xFFF)
        return int.from_bytes(self.memory.bytes[at : at + count].tobytes(), "little")

    def poke(self, address: int, value: int, announce: bool = True) -> None:
        """The guest stores one entry. `announce`: as an intercepted store, if the table is watched."""
        count = self.mode.entry_bytes
        gfn = address >> 12
        if gfn in self.away:
            self.give(gfn)
        announce = announce and self.engine.guest_tables().get(gfn, False)
        if announce and not self.late:
            self.engine.table_written(gfn)
        at = (self.mfn(gfn) << 12) + (address & 0xFFF)
        self.memory.bytes[at : at + count] = np.frombuffer(value.to_bytes(count, "little"), np.uint8)
        if announce and self.late:
            self.engine.table_written(gfn)

    def entry_at(self, va: int, level: int = 1, root: int | None = None) -> int:
        """Guest-physical address of the entry of `va` at `level`; tables above it are created."""
        table = self.root if root is None else root
        for row in self.mode.levels:
            address = (table << 12) + row.index(va) * self.mode.entry_bytes
            if row.number == level:
                return address
            entry = self.read_guest(address, self.mode.entry_bytes)
            if not entry & P:
                table = self.frame()
                self.poke(address, table << 12 | (P if not row.has_rights else P | RW | US | A))
            else:
                table = (entry & self.mode.address_mask) >> 12
        raise AssertionError(f"{self.mode.name} has no level {level}")

    def map(self, va: int, gfn: int, flags: int = USED, level: int = 1, root: int | None = None) -> int:
        """The guest maps `va` to `gfn`. The address of the entry."""
        address = self.entry_at(va, level, root)
        self.poke(address, gfn << 12 | flags | (PS if level > 1 else 0))
        return address

    def start(self) -> None:
        """The guest's control registers become `state`."""
        self.bring_root()
        self.latch()
        self.engine.control(self.state)

    def flush(self) -> None:
        """MOV CR3 of `state.cr3`."""
        self.bring_root()
        self.latch()
        self.engine.load_cr3(self.state.cr3)

    def switch(self, root: int) -> None:
        """MOV CR3 to the tables at gfn `root`."""
        self.root = root
        self.state = replace(self.state, cr3=root << 12)
        self.flush()

    def latch(self) -> None:
        """Loads the PDPTE registers of a PAE guest."""
        self.pdptes = tuple(self.read_guest(self.state.root_gpa + 8 * i, 8) for i in range(4))

    # Who owns the machine's frames.

    def spare(self) -> int:
        """A machine frame that is nobody's."""
        return int(np.flatnonzero(self.engine.p2m.m2p < 0)[-1])

    def move(self, gfn: int) -> None:
        """The frame of `gfn` becomes another machine frame; the old one is poisoned."""
        old, new = self.mfn(gfn), self.spare()
        self.memory.page(new)[:] = self.memory.page(old)
        self.engine.xi_invld_mfn(gfn, new)
        self.memory.page(old)[:] = POISON

    def take(self, gfn: int) -> None:
        """Takes the frame of `gfn` away."""
        old = self.mfn(gfn)
        content = self.memory.page(old).tobytes()
        self.engine.xi_invld_mfn(gfn, -1)
        self.away[gfn] = content
        self.memory.page(old)[:] = POISON

    def give(self, gfn: int) -> None:
        """Brings a frame back that was taken away."""
        new = self.spare()
        self.memory.page(new)[:] = np.frombuffer(self.away.pop(gfn), np.uint64)
        self.engine.xi_invld_mfn(gfn, new)

    def bring_root(self) -> None:
        """Brings the root table back that is about to be loaded, if it is away."""
        gfn = self.engine.needs(self.state)
        if gfn >= 0:
            self.give(gfn)
        assert self.engine.needs(self.state) == -1

    # The hardware.

    def read_shadow(self, address: int, count: int) -> int:
        base, words = self.engine.pool
        frame = (address >> 12) - base
        assert 0 <= frame < len(words), f"the hardware walks outside the pool, at {address:#x}"
        assert frame % 4 == 0, "the hardware walks a snapshot or a backlink page"
        return int(words[frame, (address & 0xFFF) >> 3])

    def hardware(self, va: int, access: Access) -> Answer:
        """The hardware's walk of the shadow, as it is."""
        return mmu(self.read_shadow, self.engine.root.control, va, access)

    def run(self, va: int, access: Access, tries: int = 6) -> Answer:
        """One access on the shadow, faults going to the engine until it lands or the guest gets a fault.

        The answer's frame is a gfn; -1 when it is the device model's. What is away comes back when it is missed.
        """
        if not self.state.mode.is_canonical(va):
            assert self.engine.shadow_fault(va, access) == GENERAL_PROTECTION
            return Answer(None, general_protection=True)
        for _ in range(tries):
            answer = self.hardware(va, access)
            if answer.frame is not None:
                return Answer(int(self.engine.p2m.m2p[answer.frame]))
            code = self.engine.shadow_fault(va, access)
            if code == MMIO:
                return Answer(-1)
            if code == AWAY:
                self.give(self.engine.away_gfn)
            elif code != RETRY:
                return Answer(None, code)
        raise AssertionError(f"no progress at {va:#x} for {access.text}: {self.engine.describe_walk(va)}")

    def expect(self, va: int, access: Access) -> Answer:
        """What the guest's own tables say now; an unbacked frame is -1."""
        answer = mmu(self.read_guest, self.state, va, access, self.pdptes)
        if answer.frame is not None:
            backed = answer.frame < self.frames and (self.mfn(answer.frame) >= 0 or answer.frame in self.away)
            return Answer(answer.frame if backed else -1)
        return replace(answer, touched=())

    def check(self, va: int, access: Access) -> Answer:
        """Asserts that the shadow gives the answer of the guest's tables, and gives it."""
        wanted = self.expect(va, access)
        got = self.run(va, access)
        assert got == wanted, f"{va:#x} {access.text}: shadow {got}, guest {wanted}, {self.engine.describe_walk(va)}"
        return got

    def audit(self) -> None:
        failures = self.engine.audit()
        assert not failures, "\n".join(f"{f.invariant}: {f.detail}" for f in failures)
