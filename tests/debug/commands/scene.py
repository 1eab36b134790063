"""Guests by script, for the commands to look at: the same engine state at every run, without QEMU.

`long4` is as in live mode: machine frames are not the guest's, SPTEs appear on demand. `nopae` is as in observe mode:
each frame is itself, SPTEs appear eagerly. Each is built by a guest that stores entries, flushes and touches pages
through `tests.xi.domain.Domain`, and every event that the harness would have logged is in the log.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from harness.debug.scene import Hardware, History, Scene
from harness.engine import Bytes
from harness.intercept.events import EventLog
from harness.x86.access import Access
from harness.x86.bits import CR4_PSE, PTE_G
from tests.xi.domain import NX, RW, US, USED, A, D, Domain, P

FRAMES: Final = 1024
MFN_OF_GFN_0: Final = 0x200  # long4: each gfn lies so many frames higher in the machine
HOLE: Final = range(0xF0, 0x100)  # gfns of the long4 guest without a machine frame

CODE: Final = 0x400000
DATA: Final = 0x402000
ALIAS: Final = 0x7F00_0000_0000
KERNEL: Final = 0xFFFF_8000_0000_0000
SYMBOLS: Final = {"start": CODE, "switch_space": CODE + 7, "counter": DATA + 0x40, "kernel_map": KERNEL}

# mov rax, 0x3000; mov cr3, rax; invlpg [0x402000]; mov dword [0x402040], 1; ret, and what it is in 32-bit code
_CODE: Final = bytes.fromhex("48c7c000300000 0f22d8 0f013c2500204000 c704254020400001000000 c3")
_CODE_32: Final = bytes.fromhex("b800300000 0f22d8 0f013d00204000 c7054020400001000000 c3")


class Scripted:
    """A guest, what happened to it, and what the harness would show of it.

    other: gfn of the root table of the address space that is not the current one.
    """

    def __init__(self, name: str, domain: Domain) -> None:
        self.name = name
        self.domain = domain
        self.log = EventLog()
        self.rip = CODE
        self.other = 0
        self.hardware: Hardware | None = None
        self.history: History | None = None

    # The guest's doings, each with its event.

    def start(self) -> None:
        self.domain.start()
        self.log.add("control", self.rip, self.domain.state.cr0, "mov cr0, rax")

    def store(self, va: int, entry: int, level: int = 1) -> None:
        """Stores `entry` where the current tables keep that of `va` at `level`."""
        address = self.domain.entry_at(va, level)
        gfn = address >> 12
        if self.domain.engine.guest_tables().get(gfn):
            self.log.add("table_write", 0, gfn)
        self.domain.poke(address, entry)

    def switch(self, root: int) -> None:
        self.log.add("cr3_load", self.rip + 7, root << 12, "mov cr3, rax")
        self.domain.switch(root)

    def invlpg(self, va: int) -> None:
        self.log.add("invlpg", self.rip + 10, va, f"invlpg [{va:#x}]")
        self.domain.engine.invlpg(va)

    def touch(self, va: int, access: Access = Access.LOAD) -> None:
        """One access; with SPTEs on demand, a fault is an event."""
        if self.domain.hardware(va, access).frame is None:
            self.log.add("page_fault", self.rip, va)
        self.domain.run(va, access)

    # What a session would make of it.

    @property
    def ram(self) -> Bytes:
        """Guest-physical memory, a copy; zeros where there is no machine frame."""
        p2m = self.domain.engine.p2m.to_mfn
        out = np.zeros((self.domain.frames, 4096), np.uint8)
        machine = self.domain.memory.bytes.reshape(-1, 4096)
        for gfn in range(self.domain.frames):
            if p2m[gfn] >= 0:
                out[gfn] = machine[p2m[gfn]]
        return out.reshape(-1)

    def scene(self) -> Scene:
        """The scene as of now."""
        domain, state = self.domain, self.domain.state
        mfns = np.asarray(domain.engine.p2m.to_mfn, np.int64)
        return Scene(
            guest=self.name,
            engine=domain.engine,
            state=state,
            ram=self.ram,
            p2m=None if (mfns == np.arange(domain.frames)).all() else mfns.copy(),
            registers={
                "rax": 0x3000,
                "rcx": 0,
                "rsp": DATA + 0xFF0,
                "rip": self.rip,
                "eflags": 2,
                "cs": 8,
                "cr0": state.cr0,
                "cr3": state.cr3,
                "cr4": state.cr4,
                "efer": state.efer,
            },
            total=self.log.total,
            events=self.log.last,
            hardware=self.hardware,
            history=self.history,
            symbols=dict(SYMBOLS),
        )


def long4(**domain: object) -> Scripted:
    """Two address spaces that share the kernel's half. The first is current.

    CODE: two pages, read-only, executable, user. DATA: four pages, writable, no execute, user; the fourth was never
    used (A=0), the third never written (D=0). ALIAS: DATA's first page once more, read-only. KERNEL: a 2 MiB page of
    gfns 0 and up, where the tables lie, with the hole in it; behind it one of gfns 0x200 and up. At the end
    the entry of CODE + 0x1000 is made to name another frame, with no flush: its table is out of sync.
    """
    p2m = np.arange(FRAMES, dtype=np.int64) + MFN_OF_GFN_0
    p2m[HOLE.start : HOLE.stop] = -1
    made = Domain("long4", "demand", FRAMES, 32, p2m=p2m, **domain)  # type: ignore[arg-type]
    guest = Scripted("scripted long4, live", made)
    for page in range(2):
        made.map(CODE + page * 0x1000, 0x100 + page, P | US | A)
    for page, flags in enumerate((USED, USED, P | RW | US | A, P | RW | US)):
        made.map(DATA + page * 0x1000, 0x102 + page, flags | NX)
    made.map(ALIAS, 0x102, P | US | A | NX)
    made.map(KERNEL, 0, P | RW | A | D | PTE_G | NX, 2)
    made.map(KERNEL + 0x20_0000, 0x200, P | RW | A | D | PTE_G | NX, 2)
    first, guest.other = made.root, made.new_root()
    made.poke((guest.other << 12) + 0x800, made.read_guest((first << 12) + 0x800, 8))  # the kernel's half
    made.map(CODE, 0x110, P | US | A, root=guest.other)
    made.memory.bytes[made.mfn(0x100) << 12 :][: len(_CODE)] = np.frombuffer(_CODE, np.uint8)
    guest.start()
    for va in (CODE, CODE + 0x1000):
        guest.touch(va, Access.USER_FETCH)
    guest.touch(DATA, Access.USER_STORE)
    guest.touch(DATA + 0x2000, Access.USER_LOAD)
    guest.touch(KERNEL + 0x5000)
    guest.touch(KERNEL + 0x20_1000, Access.STORE)
    guest.switch(guest.other)
    guest.touch(CODE, Access.USER_FETCH)
    guest.touch(KERNEL + 0x5000)
    guest.switch(first)
    guest.touch(ALIAS, Access.USER_LOAD)
    guest.touch(DATA + 0x1000, Access.USER_STORE)
    guest.invlpg(DATA)
    guest.store(CODE + 0x1000, 0x111 << 12 | P | US | A)
    return guest


def nopae() -> Scripted:
    """One address space. CODE and DATA as in `long4`, without NX; a 4 MiB page of gfns 0 and up at 0xc0000000. A table
    has gone out of sync, and has been synchronised again."""
    made = Domain("nopae", "eager", FRAMES, 32)
    guest = Scripted("scripted nopae, observe", made)
    made.state = replace(made.state, cr4=CR4_PSE)
    for page in range(2):
        made.map(CODE + page * 0x1000, 0x100 + page, P | US | A)
    for page, flags in enumerate((USED, USED, P | RW | US | A, P | RW | US)):
        made.map(DATA + page * 0x1000, 0x102 + page, flags)
    made.map(0xC000_0000, 0, P | RW | A | D, 2)
    made.memory.bytes[0x100 << 12 :][: len(_CODE_32)] = np.frombuffer(_CODE_32, np.uint8)
    guest.start()
    guest.store(DATA + 0x4000, 0x106 << 12 | USED)
    guest.switch(made.root)
    return guest
