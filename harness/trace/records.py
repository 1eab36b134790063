"""The records of a trace, as a reader gets them: what happened to one engine, in order.

A call's record stands for the call and what it answered; the words of memory that the engine met for the first time in
a call stand before it. What a checkpoint's check did to the engine lies between its `Checkpoint` and its `Checked`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from harness.x86.control import ControlState

RAISED_RESULT: Final = -128
"""The result in `Fault`, and the only one in `Faults`, of a call that raised."""


class Intercepted(NamedTuple):
    """An event, counted from 0 as `harness.intercept.events.EventLog` counts. All records up to the next one are what
    came of it. kind, rip, value, text: see `harness.intercept.events.Event`."""

    number: int
    kind: str
    rip: int
    value: int
    text: str


class Control(NamedTuple):
    cr0: int
    cr3: int
    cr4: int
    efer: int
    pkru: int

    @property
    def state(self) -> ControlState:
        return ControlState(*self)


class LoadCr3(NamedTuple):
    cr3: int


class Invlpg(NamedTuple):
    va: int


class TableWritten(NamedTuple):
    gfn: int


class Fault(NamedTuple):
    """`shadow_fault`. away: `away_gfn` where the result is AWAY, else -1."""

    va: int
    access: int
    result: int
    away: int


class Faults(NamedTuple):
    """`shadow_faults`. away: `away_gfn` where one of the results is AWAY, else -1."""

    addresses: tuple[int, ...]
    accesses: tuple[int, ...]
    results: tuple[int, ...]
    away: int


class Pkru(NamedTuple):
    pkru: int


class InvalidateMfn(NamedTuple):
    gfn: int
    mfn: int


class Pdptes(NamedTuple):
    """`restore_pdptes`."""

    pdptes: tuple[int, int, int, int]


class DirtyStart(NamedTuple):
    pass


class DirtyRead(NamedTuple):
    """`dirty_log_read`. crc: CRC-32 of the bytes, logged: how many of them are not 0."""

    crc: int
    logged: int


class DirtyStop(NamedTuple):
    pass


class ResyncAll(NamedTuple):
    pass


class Unexplained(NamedTuple):
    """`unexplained_changes` and its answer."""

    gfns: tuple[int, ...]


class WatchChanges(NamedTuple):
    """`watch_changes`; size: of its answer."""

    size: int


class ExecutableChanges(NamedTuple):
    """`executable_changes`; size: of its answer."""

    size: int


class Idle(NamedTuple):
    """So many calls of `idle`, one behind the other."""

    calls: int


class Audit(NamedTuple):
    """`audit`; failures: how many it found."""

    failures: int


class Words(NamedTuple):
    """Words of a machine frame as the engine is about to read them, where they are not what they were before.
    indices: of 8-byte words in the frame."""

    mfn: int
    indices: tuple[int, ...]
    values: tuple[int, ...]


class Page(NamedTuple):
    """The same for a whole machine frame: 4096 bytes."""

    mfn: int
    content: bytes


class ShadowWords(NamedTuple):
    """Words of a frame of the pool as the processor has written them since the last call (live mode). They do not
    matter to who plays the trace on another engine."""

    mfn: int
    indices: tuple[int, ...]
    values: tuple[int, ...]


class Raised(NamedTuple):
    """The call whose record is the next raised an exception: its class and text."""

    text: str


class Checkpoint(NamedTuple):
    """The guest has come to a checkpoint, or to where it is looked at; what the interception and the audit say to it is
    before this, the check after it. stale, final: see `harness.check.target.Stop`. crc: CRC-32 of the pool. Every
    guest table is in memory as it is now."""

    number: int
    name: str
    state: ControlState
    stale: bool
    final: bool
    crc: int


class Checked(NamedTuple):
    """The checkpoint's check is over, and what it left out of sync is synchronised. checks, mismatches: how many it
    made and found; audit_failures: of this checkpoint, before the check and after it. crc and memory: as in
    `Checkpoint`."""

    checks: int
    mismatches: int
    audit_failures: int
    crc: int


class End(NamedTuple):
    """The run's end. events: how many there were."""

    verdict: str
    reason: str
    events: int


Record = (
    Intercepted
    | Control
    | LoadCr3
    | Invlpg
    | TableWritten
    | Fault
    | Faults
    | Pkru
    | InvalidateMfn
    | Pdptes
    | DirtyStart
    | DirtyRead
    | DirtyStop
    | ResyncAll
    | Unexplained
    | WatchChanges
    | ExecutableChanges
    | Idle
    | Audit
    | Words
    | Page
    | ShadowWords
    | Raised
    | Checkpoint
    | Checked
    | End
)
