"""What the `monitor xi` commands look at: an engine and a guest that stand, live in a debugger or in a replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harness.check.memory import Ints
from harness.check.verdict import Answers
from harness.engine import Bytes, ShadowEngine, Words
from harness.intercept.events import Event
from harness.x86.access import Access
from harness.x86.control import ControlState


class CommandError(Exception):
    """A command cannot do what it was asked; one line or a few for the user, with what to do."""


class Hardware(Protocol):
    """The machine beside the engine. There is none in a replay.

    walks: whose tables its MMU walks when the guest runs: ``guest`` (observe mode) or ``shadow`` (live mode).
    """

    walks: str

    def look(self, va: int) -> Answers:
        """What the MMU makes of each of ALL_ACCESSES, in their order, by the tables as they stand; frames are gfns.
        NOT_RUN for those that would change something: an A or D bit, a device. The engine hears of none of them.
        Raises CommandError as `probe` does."""

    def probe(self, va: int, access: Access) -> str:
        """What the MMU makes of that access, in words (``frame 0x123 + 0x40``, ``#PF 0x6 (W U) cr2=...``). Raises
        CommandError where the hardware cannot be asked now, saying why and what else there is."""

    def translate(self, va: int) -> int | None:
        """QEMU's debug walk: the physical address, None if it is not mapped. Raises CommandError where it does not
        walk the guest's tables (live mode)."""

    def flush(self, va: int | None) -> str:
        """Does what INVLPG of `va`, or a CR3 load with the same value, would do; a line that says what was done."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Guest tables and shadow at one moment. guest: gfn -> its 512 words. shadow: mfn -> its 512 words, for the pool's
    shadow tables in use; role: mfn -> what it shadows, as text. state: the guest's control registers."""

    event: int
    state: ControlState
    guest: dict[int, Words]
    shadow: dict[int, Words]
    role: dict[int, str]


class History(Protocol):
    """The recorded past of the run (`harness.trace`)."""

    def events(self, first: int, last: int) -> Sequence[Event]:
        """Events number `first` to `last`, both included, as far as there are any."""

    def tables(self, event: int) -> Tables:
        """The tables once event number `event` was handled. Raises CommandError beyond what is recorded."""


@dataclass(slots=True)
class Scene:
    """Everything is as of now; a scene is made anew at each stop.

    guest: what runs, for headings (``basic long4, observe``). state: the guest's control registers as it believes them.
    ram: guest-physical memory (uint8). p2m: mfn of each gfn, -1 without one; None: itself. registers: by the gdbstub's
    names, for ``$rip`` in arguments. events: the last ones, oldest first. total: events so far. hardware, history:
    None where there is none. stats: of engine and interception.
    """

    guest: str
    engine: ShadowEngine
    state: ControlState
    ram: Bytes
    p2m: Ints | None
    registers: dict[str, int]
    total: int
    events: Callable[[int], Sequence[Event]]
    hardware: Hardware | None = None
    history: History | None = None
    symbols: dict[str, int] = field(default_factory=dict)
