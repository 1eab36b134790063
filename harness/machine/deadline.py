"""Deadlines: every wait in the harness ends."""

from __future__ import annotations

import time

from harness.machine.errors import DeadlineExceeded


class Deadline:
    """A moment that waits may not pass. Seconds are wall-clock seconds from now."""

    __slots__ = ("_end", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left; 0 or less when passed."""
        return self._end - time.monotonic()

    @property
    def passed(self) -> bool:
        return self.left <= 0

    def check(self, what: str) -> None:
        """Raises DeadlineExceeded, naming `what` was waited for, once the deadline has passed."""
        if self.passed:
            raise DeadlineExceeded(f"{what}: no answer within {self.seconds:g} s")

    def prolong(self, seconds: float) -> None:
        """Puts the moment off: time passed that is not to count (somebody looks at the guest in a debugger)."""
        self._end += seconds

    def sooner(self, seconds: float) -> Deadline:
        """A deadline `seconds` from now, or this one if it comes first."""
        return Deadline(max(0.0, min(seconds, self.left)))
