"""What may happen to a domain at any time happens to this one often: its frames move, go, and their stores are logged.

Between two entries of the guest, when the seed says so: a frame gets another machine frame; a frame is taken away and
comes back when the guest faults on it; a round of dirty logging begins or ends. Each time the log is read it is held
against the frames themselves: one that changed and is not in it was lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from harness.intercept.live import Live
from harness.live.frame_copies import FrameCopies
from harness.machine import monitor_abi as abi
from harness.x86.bits import PAGE_SHIFT

RECENT: Final = 8  # actions that a failure tells, and faults whose frames are in use
FIRST_LOG: Final = 25  # exits before the log begins: large pages, which it divides for good, are used whole until then
STOPPED_OF: Final = 6  # one round of the dirty log in so many is the last for a while
TOLD: Final = 8  # gfns in one failure
_SEED: Final = 0x57E5  # this use of the run's seed
_IDTR_BASE: Final = (abi.segment_offset("idtr") >> 3) + 1
_CS_BASE: Final = (abi.segment_offset("cs") >> 3) + 1
_SS_BASE: Final = (abi.segment_offset("ss") >> 3) + 1


@dataclass(slots=True)
class Schedule:
    """When an action comes: often at first, so that a short run sees dozens, and ever more rarely in a long one.

    The gap behind the n-th is drawn around 1 + growth * n ** power exits.
    """

    growth: float
    power: int
    left: int = 0  # exits until the next one
    count: int = 0

    def due(self, rng: np.random.Generator) -> bool:
        """To be called at each exit. Whether this is the moment."""
        if self.left:
            self.left -= 1
            return False
        self.count += 1
        self.left = int(rng.integers(0, 2 + int(2 * self.growth * self.count**self.power)))
        return True


class Stress:
    """Disturbs the guest that `live` drives, by `seed`. `install` begins.

    counts: by action, how often; `refused` are those that could not be (the root table cannot go), `settled` the frames
    that did not come back on a fault, `checked` the changed frames that were looked up in the log. failures: what was
    wrong with the dirty log, in words.
    """

    def __init__(self, live: Live, seed: int) -> None:
        self._live = live
        self._rng = np.random.default_rng([_SEED, seed])
        self._backed = np.flatnonzero(live.domain.view.p2m >= 0)
        self._copies: FrameCopies | None = None
        self._logging = False
        self._recent: deque[str] = deque(maxlen=RECENT)
        self.counts = dict.fromkeys(("moved", "taken", "settled", "refused", "log_rounds", "logged", "checked"), 0)
        self.failures: list[str] = []
        self._actions: tuple[tuple[Schedule, Callable[[], None]], ...] = (
            (Schedule(0.25, 1), self._move),
            (Schedule(0.25, 1), self._take),
            (Schedule(0.05, 2, FIRST_LOG), self._log),
        )

    def install(self) -> None:
        """From the next exit on."""
        self._live.between.append(self._at_exit)

    @property
    def unsettled(self) -> bool:
        """Whether there is something to settle: frames are away, or the dirty log runs."""
        return self._logging or bool(self._live.domain.away)

    def settle(self) -> None:
        """For a look at the guest as a whole: every frame is back, and the dirty log, held against the frames a last
        time, is off. The guest stands."""
        domain = self._live.domain
        for gfn in list(domain.away):
            domain.give(gfn)
            self.counts["settled"] += 1
        if self._logging:
            self._read_log()
            self._stop_log()

    def take_failures(self) -> list[str]:
        """What was found wrong since the last call."""
        found, self.failures = self.failures, []
        return found

    def _at_exit(self) -> None:
        for schedule, action in self._actions:
            if schedule.due(self._rng):
                action()

    # ---- frames

    def _move(self) -> None:
        self._try("moved", self._live.domain.move, self._frame())

    def _take(self) -> None:
        self._try("taken", self._live.domain.take, self._frame())

    def _try(self, name: str, action: Callable[[int], object], gfn: int) -> None:
        try:
            action(gfn)
        except ValueError:
            name = "refused"
        self.counts[name] += 1
        self._recent.append(f"{name} {gfn:#x}")

    def _frame(self) -> int:
        """Any frame of the guest; more often than not one that it uses at this moment."""
        rng = self._rng
        chosen = _IN_USE[int(rng.integers(len(_IN_USE)))](self) if rng.integers(5) else -1
        return chosen if self._live.domain.backed(chosen) else int(rng.choice(self._backed))

    def _behind(self, va: int) -> int:
        physical = self._live.instructions.translate(va)
        return -1 if physical is None else physical >> PAGE_SHIFT

    def _code(self) -> int:
        vmcb = self._live.vcpu.vmcb
        return self._behind(self._linear(vmcb[abi.RIP >> 3], vmcb[_CS_BASE]))

    def _stack(self) -> int:
        vmcb = self._live.vcpu.vmcb
        return self._behind(self._linear(vmcb[abi.RSP >> 3], vmcb[_SS_BASE]))

    def _linear(self, offset: int, base: int) -> int:
        return offset if self._live.state.mode.canonical else offset + base & 0xFFFF_FFFF

    def _vectors(self) -> int:
        return self._behind(self._live.vcpu.vmcb[_IDTR_BASE])

    def _table(self) -> int:
        tables = sorted(self._live.engine.guest_tables())
        return int(self._rng.choice(tables)) if tables else -1

    def _faulted(self) -> int:
        """What one of the last faults was about."""
        faults = [event.value for event in self._live.log.last(RECENT) if event.kind == "page_fault"]
        return self._behind(int(self._rng.choice(np.array(faults, np.uint64)))) if faults else -1

    # ---- the dirty log

    def _log(self) -> None:
        if not self._logging:
            self._copies = self._copies or FrameCopies(self._live.domain)
            self._copies.take()
            self._live.engine.dirty_log_start()
            self._logging = True
            self._recent.append("log on")
            return
        self._read_log()
        if not self._rng.integers(STOPPED_OF):
            self._stop_log()

    def _read_log(self) -> None:
        copies = self._copies
        assert copies is not None
        log = self._live.engine.dirty_log_read()
        changed = copies.changed()
        self.counts["log_rounds"] += 1
        self.counts["logged"] += int(np.count_nonzero(log))
        self.counts["checked"] += len(changed)
        lost = changed[log[changed] == 0]
        if len(lost):
            frames = ", ".join(f"{gfn:#x}" for gfn in lost[:TOLD].tolist())
            before = "; ".join(self._recent)
            self.failures.append(
                f"round {self.counts['log_rounds']}: {len(lost)} frames changed and are not in the log: gfn {frames} "
                f"(before: {before})"
            )
        self._recent.append("log read")

    def _stop_log(self) -> None:
        self._live.engine.dirty_log_stop()
        self._logging = False
        self._recent.append("log off")


_IN_USE: Final[tuple[Callable[[Stress], int], ...]] = (
    Stress._code,
    Stress._stack,
    Stress._vectors,
    Stress._table,
    Stress._table,
    Stress._faulted,
    Stress._faulted,
)
