"""What one run of a guest testifies: everything that the guest can see of its machine, as evidence to be compared.

A run is followed from checkpoint to checkpoint. Memory is kept as changes: which 8-byte words of guest-physical memory
differ from the checkpoint before, and what they hold now. Together with the memory at the start that is all of memory
at every checkpoint, exactly, in a few kilobytes each.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from harness.check.guest_walks import GuestWalks, ambient_frames, ram_reader
from harness.check.layout import Layout
from harness.check.plan import Planner
from harness.check.probes import ProbeRun
from harness.check.ranges import find_ranges
from harness.check.tags import FrameKinds, TagBoard
from harness.check.target import ProbeServer, Stop
from harness.engine import Bytes, Words
from harness.machine.exception_log import Faults
from harness.machine.image import Image
from harness.machine.mailbox import MAILBOX
from harness.placement import HOLE
from harness.x86.control import ControlState

Ints = npt.NDArray[np.int64]

WORDS: Final = 512
"""8-byte words of a frame."""
TIMEOUT: Final = "timeout"  # as an ending: the guest was stopped by its time limit
SHUTDOWN: Final = "shutdown"  # a triple fault
ENDED: Final = "exit status {}"  # QEMU's, by which the guest says how it went


class WitnessedMachine(ProbeServer, Protocol):
    """A guest in one leg of a comparison, standing before its first instruction when the leg is entered."""

    name: str
    image: Image

    @property
    def memory(self) -> Bytes:
        """Guest-physical memory, live, gfn after gfn. What it shows between 640 KiB and 1 MiB does not matter."""

    @property
    def can_probe(self) -> bool:
        """Whether the guest has a probe server, which `run_probes` uses."""

    def run_to_checkpoint(self) -> Stop | None:
        """Lets the guest run to its next checkpoint; None when it ended, or its time was up, before that."""

    def plant(self, writes: list[tuple[int, bytes]]) -> None:
        """Writes (guest-physical address, bytes) so that translated code there is dropped."""

    def wrote(self, gfns: set[int]) -> None:
        """The harness wrote in these frames, to probe them, and has put every byte back."""

    def take_faults(self) -> Faults:
        """The #PFs that the guest has seen since the last call, in order. The guest stands."""

    def take_states(self) -> set[ControlState]:
        """The control registers that the guest has had since the last call, as far as the leg knows them."""

    @property
    def ending(self) -> str:
        """How the run ended: TIMEOUT, SHUTDOWN or ENDED with the status."""

    @property
    def console(self) -> str:
        """All that the guest has printed; complete once it has ended."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Words of memory that changed. at: index (guest-physical address / 8), sorted. now: what they hold."""

    at: Ints
    now: Words

    @classmethod
    def none(cls) -> Changes:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.uint64))


@dataclass(frozen=True, slots=True)
class Stretch:
    """What came of letting the guest run once. states: the control registers that it had, as far as they are known."""

    faults: Faults
    memory: Changes
    states: frozenset[ControlState]


@dataclass(frozen=True, slots=True)
class Probed:
    """The probes of one checkpoint, with the answers (dtype PROBE), in the order in which they ran."""

    records: npt.NDArray[Any]
    stretch: Stretch


@dataclass(frozen=True, slots=True)
class Moment:
    """One checkpoint: how the guest came there, how it stands, and what its probes found (stale checkpoints: none)."""

    stop: Stop
    way: Stretch
    probed: Probed | None


@dataclass(slots=True)
class Witness:
    """A run from its first instruction to its end. start: guest-physical memory before the first instruction, flat: it
    takes as much room as the guest's RAM.

    last: what came after the last checkpoint; of a guest that its time limit stopped anywhere, no memory.
    """

    leg: str
    image: Image
    start: Words
    moments: list[Moment] = field(default_factory=list)
    last: Stretch | None = None
    ending: str = ""
    console: str = ""
    seconds: float = 0.0

    @property
    def probes(self) -> int:
        return sum(len(moment.probed.records) for moment in self.moments if moment.probed)


class MemoryRecorder:
    """Finds what changed in `memory` (uint8) from one look to the next. omit: ranges of words that do not count."""

    def __init__(self, memory: Bytes, omit: list[range]) -> None:
        self._live: Words = memory.view(np.uint64)
        self._omit = omit
        self.start: Words = self._live.copy()
        for words in omit:
            self.start[words.start : words.stop] = 0
        self._held = self.start.copy()

    def changes(self) -> Changes:
        """Since the last call, or since the start."""
        differs = self._live != self._held
        for words in self._omit:
            differs[words.start : words.stop] = False
        at = np.flatnonzero(differs)
        now = self._live[at]
        self._held[at] = now
        return Changes(at, now)


class Prober:
    """Plans and runs the probes of one checkpoint after the other, from the guest's own tables and the run's seed."""

    def __init__(self, leg: WitnessedMachine, seed: int, budget: int) -> None:
        self._leg = leg
        self._planner = Planner(seed, budget)
        self._layout = Layout(len(leg.memory) >> 12)
        self._read = ram_reader(leg.memory)
        self._image = frozenset(gfn for segment in leg.image.segments for gfn in segment.frames)
        self._pages = np.asarray(leg.image.writable_pages, np.uint64)
        self._tables: set[int] = set()  # of every address space seen so far: stores keep away from their entries
        self._tokens = 0

    def probe(self, stop: Stop) -> npt.NDArray[Any]:
        """The records, with their answers. What the leg raises passes through."""
        leg, state, layout = self._leg, stop.state, self._layout
        ranges = find_ranges(state, leg.memory, layout, self._planner.rng(stop.index, 1))
        plan = self._planner.plan(state.mode, ranges, stop.index)
        guest = GuestWalks.of(state, plan.pages, self._read, layout)
        served = GuestWalks.of(state, self._pages, self._read, layout)
        self._tables.update(ranges.tables.tolist())
        self._tables.update(step.table for path in (*guest.paths, *served.paths) for step in path.steps)
        kinds = FrameKinds(
            tables=frozenset(self._tables),
            kept=self._image,
            closed=ambient_frames(served),
            entry_bytes=state.mode.entry_bytes,
        )
        board = TagBoard(leg.memory, layout, leg.plant, kinds)
        run = ProbeRun(plan, guest, None, board, layout, self._tokens, Counter())
        self._tokens += len(run.probes)
        run.execute(leg)
        leg.wrote(run.written)
        return run.records


def take_witness(
    leg: WitnessedMachine, seed: int, budget: int, tell: Callable[[Stop, int], None] | None = None
) -> Witness:
    """Runs the guest of `leg` to its end and writes down what it saw.

    budget: probes a checkpoint. tell: called at each checkpoint with the number of probes so far. What the leg raises
    (a lost guest) passes through.
    """
    began = time.monotonic()
    recorder = MemoryRecorder(leg.memory, _omitted(leg))
    witness = Witness(leg.name, leg.image, recorder.start)
    prober = Prober(leg, seed, budget) if leg.can_probe else None

    while (stop := leg.run_to_checkpoint()) is not None:
        way, probed = _stretch(leg, recorder.changes()), None
        if prober is not None and not stop.stale:  # a stale TLB may answer this or that, and both would be right
            probed = Probed(prober.probe(stop), _stretch(leg, recorder.changes()))
        witness.moments.append(Moment(stop, way, probed))
        if tell is not None:
            tell(stop, witness.probes)
    witness.ending = leg.ending
    stopped = witness.ending == TIMEOUT
    witness.last = _stretch(leg, Changes.none() if stopped else recorder.changes())
    witness.console = leg.console
    witness.seconds = time.monotonic() - began
    return witness


def _stretch(leg: WitnessedMachine, memory: Changes) -> Stretch:
    return Stretch(leg.take_faults(), memory, frozenset(leg.take_states()))


def _omitted(leg: WitnessedMachine) -> list[range]:
    """The window below 1 MiB, which is not the guest's RAM, and the mailbox's records, which are compared as such."""
    omitted = [range(HOLE.start * WORDS, HOLE.stop * WORDS)]
    if leg.can_probe:
        box = leg.image.physical(leg.image.symbols["xi_mailbox"])
        offset = MAILBOX.fields["probes"][1] if MAILBOX.fields else 0
        omitted.append(range((box + offset) >> 3, (box + MAILBOX.itemsize) >> 3))
    return omitted
