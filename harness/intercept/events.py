"""What the interception tells: one record per event, counted and kept for reports."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

KEPT: Final = 64  # events that a failure report can show


@dataclass(frozen=True, slots=True)
class Event:
    """One intercepted event. kind: cr3_load, table_write, invlpg or control. rip: of the instruction (0 for
    stores: QEMU stops after them). value: new CR3, linear address, or gfn of the table. text: the instruction."""

    index: int
    kind: str
    rip: int
    value: int
    text: str = ""

    def __str__(self) -> str:
        what = {"table_write": "gfn", "invlpg": "va", "cr3_load": "cr3"}.get(self.kind, "value")
        place = f" at {self.rip:#x}" if self.rip else ""
        return f"#{self.index} {self.kind} {what}={self.value:#x}{place}{f'  {self.text}' if self.text else ''}"


class EventLog:
    """Counts every event and keeps the last ones. counts: kind -> how many."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._recent: deque[Event] = deque(maxlen=KEPT)
        self.total = 0

    def add(self, kind: str, rip: int, value: int, text: str = "") -> Event:
        event = Event(self.total, kind, rip, value, text)
        self.total += 1
        self.counts[kind] += 1
        self._recent.append(event)
        return event

    def recent(self, count: int = 16) -> list[str]:
        """The last `count` events as text, oldest first."""
        return [str(event) for event in list(self._recent)[-count:]]
