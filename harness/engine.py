"""The engine interface: what a shadow-paging engine must offer to be driven and validated.

XI (`harness.xi`) is one engine; others plug in through the entry-point group ``xi_harness.engines`` and are
validated exactly as XI is. An engine does no I/O: it sees machine memory through `MachineMemory` and
learns of the guest through the methods below. Nothing here knows QEMU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt

from harness.x86.control import ControlState
from harness.x86.modes import PagingMode

Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

# Results of ShadowEngine.shadow_fault below 0; a value >= 0 is the #PF error code to inject.
RETRY: Final = -1  # the shadow was filled (or was already right): the access can be tried again
MMIO: Final = -2  # the guest's tables allow it, and lead to a guest frame that no p2m entry backs
GENERAL_PROTECTION: Final = -3  # the address is not canonical: #GP, no walk
AWAY: Final = -4  # the walk met a frame that was taken away: ShadowEngine.away_gfn. Give it back, then try again


class MachineMemory(Protocol):
    """Machine memory as the engine reads and writes it. Addresses are byte addresses of machine memory.

    Writes of accessed and dirty bits go through `or64`/`or32`, so that a checker can keep them apart from
    the guest's real memory and compare the two.
    """

    @property
    def frames(self) -> int:
        """How many 4 KiB frames there are."""

    def read64(self, address: int) -> int: ...
    def read32(self, address: int) -> int: ...
    def or64(self, address: int, bits: int) -> None: ...
    def or32(self, address: int, bits: int) -> None: ...

    def page(self, mfn: int) -> Words:
        """The 512 words of one frame, as of now; read-only for the caller."""


class PlainMemory:
    """`MachineMemory` over one byte buffer: what the engine writes lands in it."""

    def __init__(self, buffer: Bytes) -> None:
        if buffer.nbytes % 4096:
            raise ValueError(f"memory of {buffer.nbytes} bytes is not a whole number of 4 KiB frames")
        self.bytes = buffer
        self._words: Words = buffer.view(np.uint64).reshape(-1, 512)
        self._q = buffer.data.cast("B").cast("Q")
        self._d = buffer.data.cast("B").cast("I")

    @property
    def frames(self) -> int:
        return len(self._words)

    def read64(self, address: int) -> int:
        return self._q[address >> 3]

    def read32(self, address: int) -> int:
        return self._d[address >> 2]

    def or64(self, address: int, bits: int) -> None:
        self._q[address >> 3] |= bits

    def or32(self, address: int, bits: int) -> None:
        self._d[address >> 2] |= bits

    def page(self, mfn: int) -> Words:
        page: Words = self._words[mfn]
        return page


def reads_plainly(memory: MachineMemory) -> TypeGuard[PlainMemory]:
    """Whether `memory` reads as what its `bytes` hold, which may then be read there: that takes no call."""
    kind = type(memory)
    return isinstance(memory, PlainMemory) and (kind.read64, kind.read32) == (PlainMemory.read64, PlainMemory.read32)


@dataclass(frozen=True, slots=True)
class ShadowRoot:
    """What the hardware would be given to walk the shadow.

    mode: the format of the shadow tables (PAE for unpaged, nopae and pae guests; LONG4; LONG5).
    root: machine address for CR3. control: the control registers that the hardware runs with on the shadow
    (CR0.WP is always set: without it a supervisor write would pass a write-protected GPT; EFER.NXE too).
    """

    mode: PagingMode
    root: int
    control: ControlState


@dataclass(frozen=True, slots=True)
class AuditFailure:
    """One broken invariant. invariant: its id (`F8`, `K5`, `backlink-bijection` ...)."""

    invariant: str
    detail: str


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine is set up.

    frames: guest frames (gfn 0 .. frames-1 have a p2m entry). p2m: mfn of each gfn, identity when None.
    pool_frames: 4 KiB frames reserved for the shadow (XI: 5 % of the domain, 4 frames a SPTI).
    pool_base_mfn: machine frame number of the pool's first frame; no p2m entry may lie in the pool.
    pool_memory: the pool's own memory, uint8, pool_frames * 4096 bytes (allocated by the engine when None).
    fill: ``eager`` (observe mode) or ``demand`` (live mode: the hardware walks the shadow, so an engine need not follow
    at which addresses frames appear; it may work that out when it is asked). options: policies, engine-specific, name
    to value.
    """

    frames: int
    pool_frames: int
    pool_base_mfn: int
    p2m: npt.NDArray[np.int64] | None = None
    pool_memory: Bytes | None = None
    fill: str = "eager"
    phys_bits: int = 40
    options: dict[str, str] = field(default_factory=dict)


class ShadowEngine(Protocol):
    """A shadow-paging engine. Constructed as ``Engine(config: EngineConfig, memory: MachineMemory)``."""

    name: str

    # What the guest did.
    def control(self, state: ControlState) -> None:
        """CR0, CR4 or EFER (or the paging mode) changed; also the first call of all. May flush."""

    def load_cr3(self, cr3: int) -> None:
        """MOV CR3. The new value may equal the old one: that is a flush all the same."""

    def invlpg(self, va: int) -> None:
        """INVLPG of `va`."""

    def table_written(self, gfn: int) -> None:
        """The first store to a write-protected guest table: it goes out of sync (no-op if it is already)."""

    def shadow_fault(self, va: int, access: int) -> int:
        """A #PF on the shadow tables for `access` (harness.x86.access.Access value).

        Returns the error code to inject into the guest (>= 0), or RETRY, MMIO, GENERAL_PROTECTION or AWAY.
        """

    def shadow_faults(self, addresses: Sequence[int], accesses: Sequence[int]) -> list[int]:
        """`shadow_fault` for each (address, access), in order, at one moment: the guest does not run between them.

        An engine may share work among them. RETRY then means "try again", not that this access was served: one that
        still faults comes back.
        """

    def set_pkru(self, pkru: int) -> None:
        """The guest's PKRU, where it is known."""

    # Frames that move or are taken away, and migration: live mode only.
    @property
    def away_gfn(self) -> int:
        """The gfn because of which the last fault was answered with AWAY; -1 before the first."""

    def needs(self, state: ControlState) -> int:
        """gfn of the root table of `state` when its frame was taken away, else -1.

        To be asked before `control` and `load_cr3` in a domain whose frames are taken away: the root that is loaded
        must be there.
        """

    def xi_invld_mfn(self, gfn: int, mfn: int) -> None:
        """From now on `gfn` is machine frame `mfn`; -1 takes its frame away until another call gives it one.

        The caller has moved the contents, and flushes the TLB. A frame that never had a machine frame is a hole
        (MMIO), one that was taken away is AWAY. Raises ValueError, with nothing changed, for an mfn that cannot be
        given to the guest, and for taking the root in use away.
        """

    @property
    def pdptes(self) -> tuple[int, int, int, int]:
        """The PDPTE registers of a PAE guest, as they were last loaded. In other modes they mean nothing."""

    def restore_pdptes(self, pdptes: tuple[int, int, int, int]) -> None:
        """The registers of a PAE guest that comes from another machine, after the `control` that told its state:
        memory may hold others by now, which the guest has not loaded."""

    def dirty_log_start(self) -> None:
        """Starts a round of dirty logging: from now on the first store to each page faults and is logged."""

    def dirty_log_read(self) -> Bytes:
        """uint8 of shape (frames,): 1 for each gfn stored to since the round began, by the guest or (A and D bits) by
        the engine. Starts the next round."""

    def dirty_log_stop(self) -> None:
        """No more logging."""

    # What the hardware, the interception and the checker see.
    @property
    def root(self) -> ShadowRoot: ...

    @property
    def pool(self) -> tuple[int, Words]:
        """(pool_base_mfn, pool memory as words of shape (pool_frames, 512)); shadow tables live only there."""

    def watch_changes(self) -> dict[int, frozenset[int]]:
        """For each gfn whose set changed since the last call: *all* 4 KiB-aligned virtual addresses at which the
        guest may write that frame and where a store must be seen because the frame is an in-sync guest table.
        An empty set: no longer watched. Covers every root, and the identity addresses while unpaged."""

    def executable_changes(self) -> npt.NDArray[np.int64]:
        """gfns (unique, sorted) that gained an executable mapping since the last call."""

    def addresses_of(self, gfn: int, writable: bool = False, executable: bool = False) -> frozenset[int]:
        """4 KiB-aligned virtual addresses that map `gfn` in any root, by the guest's own rights."""

    def guest_tables(self) -> dict[int, bool]:
        """gfn of every shadowed guest table -> whether it is in sync (write-protected)."""

    def unexplained_changes(self) -> list[int]:
        """Self-check: gfns of in-sync guest tables that differ from their snapshot beyond A and D bits, each
        of them changed by a store that no event announced. They are marked out of sync (repaired)."""

    def idle(self) -> bool:
        """The guest runs and nobody waits for the engine: a moment for work off the critical path.

        One short piece of it (some 10 us at most); next to nothing when there is nothing to do, since it is called in a
        loop. Whether more is left to do: False until something else has been asked of the engine.
        """

    def resync_all(self) -> None:
        """Bring every table reachable from the current root in sync."""

    def audit(self) -> list[AuditFailure]: ...

    def stats(self) -> dict[str, Any]:
        """Counters, flat, JSON-able."""

    def describe_gfn(self, gfn: int) -> dict[str, Any]:
        """What the engine knows of a frame: its SPTIs (role, state, LRU), backlinks. JSON-able, for reports."""

    def describe_walk(self, va: int) -> list[dict[str, Any]]:
        """The shadow walk of `va`, level by level: level, spti, mfn, index, spte, role. JSON-able."""
