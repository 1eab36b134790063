"""A guest without a machine that is recorded: it changes its tables, flushes or does not, faults, and moves about."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Final, cast

from harness import __version__
from harness.check.target import CheckReport, Stop
from harness.engine import EngineConfig, MachineMemory, ShadowEngine
from harness.trace.format import CHUNK, LENGTH, MAGIC, Header
from harness.trace.reader import Trace, open_trace
from harness.trace.recorder import Recorder
from harness.x86 import bits
from harness.x86.access import ALL_ACCESSES, Access
from harness.xi.engine import XiEngine
from tests.xi.domain import NX, RW, USED, Domain

PAGES: Final = tuple(0x400000 + (n << 12) for n in (0, 1, 2, 5, 511, 512, 600))  # in two tables
FRAMES: Final = 2048
RIP: Final = 0x101000


class RecordedGuest:
    """One run. What it does is decided by `seed`; `save` gives the trace, and the guest is over then.

    engine: what is recorded. life: whether frames move and go, and the dirty log runs. scramble: whether mfn is another
    number than gfn.
    """

    def __init__(
        self,
        folder: Path,
        mode: str = "long4",
        seed: int = 1,
        fill: str = "demand",
        engine: Callable[[EngineConfig, MachineMemory], ShadowEngine] = XiEngine,
        life: bool = True,
        scramble: bool = True,
        options: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.random = Random(seed)
        self.life = life
        self._make, self._seed, self._mode, self._fill = engine, seed, mode, fill
        self.recorder: Recorder
        self.domain = Domain(mode, fill, FRAMES, 64, scramble, options=options, engine=cast(Any, self._recorded))
        self.stops = 0
        self.logging = False
        self.others = (self.domain.frame(), self.domain.frame(), self.domain.frame(), self.domain.frame())
        for va in PAGES if self.domain.mode.levels else ():
            self.domain.map(va, self.domain.frame())
        self.start()

    def _recorded(self, config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
        header = Header(
            guest="scripted",
            paging=self._mode,
            mode="live",
            seed=self._seed,
            engine="xi",
            command="none",
            created_by=f"xi-harness {__version__}",
            config=config,
            memory_frames=memory.frames,
        )
        self.recorder = Recorder(self.folder, header, self._make, memory)
        return self.recorder.engine

    def event(self, kind: str, value: int) -> None:
        self.recorder.log.add(kind, RIP, value, f"{kind} of the script")

    # What the guest does.

    def start(self) -> None:
        self.event("control", self.domain.state.cr0)
        self.domain.start()

    def flush(self) -> None:
        self.event("cr3_load", self.domain.state.cr3)
        self.domain.flush()
        self.drain()

    def invlpg(self, va: int) -> None:
        self.event("invlpg", va)
        self.domain.engine.invlpg(va)
        self.drain()

    def access(self, va: int, access: Access) -> None:
        self.event("page_fault", va)
        self.domain.run(va, access, 16)

    def store(self, va: int, gfn: int, flags: int) -> None:
        """The entry of `va` becomes `gfn` and `flags`."""
        self.domain.poke(self.domain.entry_at(va), gfn << 12 | flags if flags else 0)

    def toggle(self, **flags: int) -> None:
        """Bits of control registers are turned over: ``cr0=CR0_WP``."""
        state = self.domain.state
        changed: dict[str, Any] = {name: getattr(state, name) ^ bit for name, bit in flags.items()}
        self.domain.state = replace(state, **changed)
        self.event("control", self.domain.state.cr0)
        if flags.get("cr0") == bits.CR0_WP:
            self.domain.engine.control(self.domain.state)
        else:
            self.domain.start()

    def drain(self) -> None:
        if self._fill == "eager":
            self.domain.engine.watch_changes()
            self.domain.engine.executable_changes()

    def checkpoint(self, stale: bool = False) -> None:
        """Comes to a checkpoint, where every page is probed; nothing is pending unless it is `stale`."""
        engine, recorder = self.domain.engine, self.recorder
        if not stale:
            self.flush()
        self.stops += 1
        engine.unexplained_changes()
        engine.audit()
        recorder.checkpoint(Stop(self.stops, f"stop {self.stops}", self.domain.state, stale, False))
        wanted = [(va, int(access)) for va in PAGES for access in ALL_ACCESSES]
        if self.domain.mode.levels:
            for _ in range(3):
                engine.shadow_faults([va for va, _ in wanted], [access for _, access in wanted])
        if not stale:
            engine.resync_all()
        recorder.checked(CheckReport({"probe": len(wanted)}, [], {}))

    # All of it.

    def live(self, steps: int = 120, every: int = 30) -> RecordedGuest:
        """Does this and that, with a checkpoint now and then, and one at the end."""
        for number in range(steps):
            self.step()
            if number % every == every - 1:
                self.checkpoint(stale=self.random.random() < 0.3)
        self.settle()
        self.checkpoint()
        return self

    def step(self) -> None:
        r, domain = self.random, self.domain
        kinds = ["access"] * 8 + ["store"] * 5 + ["cr3", "invlpg", "invlpg", "wp", "idle"]
        if self.life:
            kinds += ["move", "take", "give", "log", "root"]
        kind = r.choice(kinds)
        va = r.choice(PAGES)
        if kind == "access":
            self.access(va, r.choice(ALL_ACCESSES))
        elif kind == "store":
            flags = r.choice((0, USED, USED, USED & ~RW, USED | (NX if domain.mode.entry_bytes == 8 else 0)))
            self.store(va, r.choice(self.others), flags)
            if r.random() < 0.6:
                self.invlpg(va)
        elif kind == "cr3":
            self.flush()
        elif kind == "invlpg":
            self.invlpg(va)
        elif kind == "wp":
            self.toggle(cr0=bits.CR0_WP)
        elif kind == "idle":
            domain.engine.idle()
        elif kind == "log":
            self.log()
        elif kind == "root":
            try:  # the one frame that cannot go; the call is recorded, and that it raised
                domain.engine.xi_invld_mfn(domain.state.root_gpa >> 12, -1)
            except ValueError:
                return
        elif kind == "give":
            self.settle()
        else:
            gfn = r.choice(self.others)
            if gfn not in domain.away:
                getattr(domain, kind)(gfn)

    def log(self) -> None:
        engine = self.domain.engine
        if not self.logging:
            engine.dirty_log_start()
        elif self.random.random() < 0.3:
            engine.dirty_log_stop()
        else:
            engine.dirty_log_read()
            return
        self.logging = not self.logging

    def settle(self) -> None:
        """Everything that was taken away comes back."""
        for gfn in sorted(self.domain.away):
            self.domain.give(gfn)

    def save(self, name: str = "run.xitrace") -> Trace:
        """Ends the run, and gives its trace."""
        path = self.folder / name
        self.recorder.finish("pass", "")
        self.recorder.keep(path)
        assert not self.recorder.lost
        self.recorder.close()
        return open_trace(path)


def with_records(trace: Trace, path: Path, *records: bytes, header: Header | None = None) -> Trace:
    """A trace with the header of `trace`, or another, and nothing but `records`."""
    text = (header or trace.header).encode()
    raw = b"".join(records)
    packed = zlib.compress(raw)
    chunk = CHUNK.pack(len(packed), len(raw), zlib.crc32(packed)) + packed
    path.write_bytes(MAGIC + LENGTH.pack(len(text)) + text + (chunk if records else b""))
    return open_trace(path)
