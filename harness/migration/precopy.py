"""Pre-copy: a guest's frames go to another machine while it runs, and go again as long as it stores to them.

The engine's dirty log tells which. A round copies what the round before left to copy; when all of that is copied the
log is read, which makes the frames in it read-only again, and they are the next round's. The guest is stopped when so
few are left that copying them takes no time, or when it stores faster than it can be copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from harness.engine import ShadowEngine
from harness.live.frame_copies import unequal_frames
from harness.live.layout import FRAMES_PER_MIB
from harness.machine.guest_view import GuestView, Ints
from harness.migration.report import Round

T = TypeVar("T")

AT_ONCE: Final = 512
"""Frames: 2 MiB of either machine, copied in one go."""
BURST: Final = 8  # batches that go in a row when an exit has taken their time


@dataclass(frozen=True, slots=True)
class Limits:
    """When copying while the guest runs comes to its end.

    rounds: at most so many. threshold: so few dirty frames are copied while the guest stands. stalled: so many rounds
    in a row without fewer dirty frames than ever before. batch: frames copied at a time, so that an exit that comes
    meanwhile need not wait for long. rate: MiB a second that go while the guest runs, as over a network; 0: as fast as
    can be.
    """

    rounds: int = 30
    threshold: int = 32
    stalled: int = 4
    batch: int = 64
    rate: float = 256.0

    def __post_init__(self) -> None:
        """Raises ValueError for limits that cannot be."""
        for name, least in (("rounds", 1), ("threshold", 0), ("stalled", 1), ("batch", 1), ("rate", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"a migration's {name}: at least {least}")


class PreCopy:
    """Copies the guest of `source`, whose `engine` logs its stores, to `destination`.

    `begin`, `next_round` and `finish` are for moments at which the guest stands; `copy_some` may run beside it: a frame
    that is stored to while it is copied is in the log. Raises ValueError when the two do not have the same frames.
    """

    def __init__(self, engine: ShadowEngine, source: GuestView, destination: GuestView, limits: Limits) -> None:
        backed = source.p2m >= 0
        if not np.array_equal(backed, destination.p2m >= 0):
            raise ValueError("source and destination do not have the same guest frames")
        self._engine = engine
        self._source, self._destination = source, destination
        self._backed = backed
        self._limits = limits
        self._pending: Ints = np.zeros(0, np.int64)
        self._began = 0.0
        self._next = 0.0  # when the next batch may go
        self._seconds = limits.batch / limits.rate / FRAMES_PER_MIB if limits.rate else 0.0
        self._least = len(backed) + 1
        self._since_least = 0
        self._stopped = False  # by `next_round`
        self.rounds: list[Round] = []
        self.last_frames = 0

    @property
    def copied(self) -> bool:
        """Whether this round has nothing more to copy."""
        return not len(self._pending)

    def begin(self) -> None:
        """Round 0: from now on stores are logged; every frame is to be copied."""
        self._open(self._engine.dirty_log_start, lambda _: np.flatnonzero(self._backed))

    def copy_some(self) -> None:
        """Copies one batch of what waits, when its time has come."""
        now = time.perf_counter()
        if now < self._next:
            return
        self._next = max(self._next, now - BURST * self._seconds) + self._seconds
        batch, self._pending = self._pending[: self._limits.batch], self._pending[self._limits.batch :]
        self._copy(batch)
        self.rounds[-1].copied += len(batch)

    def next_round(self) -> str:
        """To be called when all is copied. Why the guest is to be stopped now, empty while it may run on: what it
        stored to is the new round's."""
        number = self.rounds[-1].number + 1
        self._open(self._engine.dirty_log_read, self._named)
        dirty = self._pending
        self.rounds[-2].dirty = len(dirty)
        self._since_least = 0 if len(dirty) < self._least else self._since_least + 1
        self._least = min(self._least, len(dirty))
        reason = ""
        if len(dirty) <= self._limits.threshold:
            reason = f"{len(dirty)} dirty frames are few enough"
        elif number >= self._limits.rounds:
            reason = f"{number} rounds are the limit"
        elif self._since_least >= self._limits.stalled:
            reason = f"the dirty frames have not become fewer for {self._since_least} rounds"
        self._stopped = bool(reason)
        return reason

    def _named(self, log: npt.NDArray[np.uint8]) -> Ints:
        return np.flatnonzero((log != 0) & self._backed)

    def _open(self, protect: Callable[[], T], frames: Callable[[T], Ints]) -> None:
        """Begins a round with a call that write-protects, which is measured."""
        before = self._protected()
        began = time.perf_counter()
        answer = protect()
        ended = time.perf_counter()
        if self.rounds:
            self.rounds[-1].seconds = began - self._began
        self._began = began
        self._pending = frames(answer)
        protected = self._protected() - before
        self.rounds.append(Round(len(self.rounds), len(self._pending), protected, (ended - began) * 1e6))

    def _protected(self) -> int:
        """SPTEs that the engine has made read-only for the dirty log, in all."""
        return int(self._engine.stats().get("log_protected_sptes", 0))

    def finish(self) -> None:
        """The guest stands and will not run here again: copies what is left of the round, and what is in the log."""
        if self._stopped:
            self.rounds.pop()  # it never ran: the guest has not since the log was read
        else:
            last = self.rounds[-1]
            last.seconds = time.perf_counter() - self._began
            log = self._named(self._engine.dirty_log_read())
            last.dirty = len(log)
            self._pending = np.union1d(self._pending, log)
        self._copy(self._pending)
        self.last_frames = len(self._pending)
        self._pending = self._pending[:0]
        self._engine.dirty_log_stop()

    def _copy(self, gfns: Ints) -> None:
        for first in range(0, len(gfns), AT_ONCE):
            part = gfns[first : first + AT_ONCE]
            self._destination.words[part] = self._source.words[part]

    def unequal(self) -> tuple[int, Ints]:
        """How many frames there are to compare, and the gfns of those that differ."""
        gfns = unequal_frames(self._source.words, self._destination.words)
        return int(np.count_nonzero(self._backed)), gfns[self._backed[gfns]]
