"""What the interception tells: one record per event, counted and kept for reports."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

KEPT: Final = 64  # events that a failure report can show


@dataclass(frozen=True, slots=True)
class Event:
    """One intercepted event. kind: cr3_load, table_write, invlpg, control, and in live mode page_fault and the other
    kinds of exits. rip: of the instruction (0 for stores in observe mode: QEMU stops after them). value: new CR3,
    linear address, gfn of the table, or what the exit is about. text: the instruction."""

    index: int
    kind: str
    rip: int
    value: int
    text: str = ""

    def __str__(self) -> str:
        what = {"table_write": "gfn", "invlpg": "va", "page_fault": "va", "cr3_load": "cr3"}.get(self.kind, "value")
        place = f" at {self.rip:#x}" if self.rip else ""
        return f"#{self.index} {self.kind} {what}={self.value:#x}{place}{f'  {self.text}' if self.text else ''}"


class EventLog:
    """Counts every event and keeps the last ones. counts: kind -> how many."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._recent: deque[tuple[str, int, int, str]] = deque(maxlen=KEPT)  # an Event is made when one is shown

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, kind: str, rip: int, value: int, text: str = "") -> None:
        self._recent.append((kind, rip, value, text))
        self.counts[kind] += 1

    def last(self, count: int = KEPT) -> list[Event]:
        """The last `count` events, oldest first."""
        recent = list(self._recent)[-count:]
        return [Event(index, *fields) for index, fields in enumerate(recent, self.total - len(recent))]

    def recent(self, count: int = 16) -> list[str]:
        """The last `count` events as text, oldest first."""
        return [str(event) for event in self.last(count)]
