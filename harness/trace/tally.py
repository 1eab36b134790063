"""What a replay compared, and what did not come out as it must."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from harness.check.render import side_by_side

KEPT: Final = 4  # differences of each check that are kept in full

ANSWERS: Final = "answers"
WALKS: Final = "walks"
AUDITS: Final = "audits"
POOL: Final = "pool"
UNEXPLAINED: Final = "unexplained"
DIRTY_LOG: Final = "dirty log"
QUEUES: Final = "queues"
CHECKS: Final = {
    ANSWERS: "what each fault came to, against the recording",
    WALKS: "shadow against the guest's own tables",
    AUDITS: "the engine's invariants",
    POOL: "every word of the pool, against the recording",
    UNEXPLAINED: "changes that no event explains",
    DIRTY_LOG: "frames stored to, against the log",
    QUEUES: "frames to watch and to scan, against the recording",
}
"""Names of the checks, with what each compares."""


@dataclass(slots=True)
class Difference:
    """One thing that did not come out as it must.

    check: one of CHECKS. event: number of the event that it belongs to, -1 before the first. record: its place in the
    trace. what: one line. answers: (who, what it says) for each side. va: the address that it is about, -1 for none;
    guest_walk, shadow_walk: the walks of it, rows as `harness.check.render.side_by_side` takes them.
    """

    check: str
    event: int
    record: int
    what: str
    answers: list[tuple[str, str]] = field(default_factory=list)
    va: int = -1
    guest_walk: list[dict[str, Any]] = field(default_factory=list)
    shadow_walk: list[dict[str, Any]] = field(default_factory=list)

    def lines(self, command: str) -> list[str]:
        """The block for a reader. command: replays this trace, to paste."""
        place = f"after event {self.event}" if self.event >= 0 else "before the first event"
        lines = [f"DIFFERS  {self.check}: {self.what}", f"  {place} (record {self.record})"]
        width = max((len(who) for who, _ in self.answers), default=0)
        lines += [f"  {who:<{width}}  {answer}" for who, answer in self.answers]
        if self.guest_walk or self.shadow_walk:
            lines += ["", *side_by_side(self.guest_walk, self.shadow_walk)]
        stop = f" --stop-at {self.event}" if self.event >= 0 else ""
        look = f"walk {self.va:#x}" if self.va >= 0 else "audit"
        return [*lines, "", "  look around", f"    {command}{stop} --command '{look}'"]


class Tally:
    """Counts by name of the check. kept: the first differences of each check, in their order."""

    def __init__(self) -> None:
        self.compared: Counter[str] = Counter()
        self.differ: Counter[str] = Counter()
        self.kept: list[Difference] = []

    @property
    def wrong(self) -> int:
        return sum(self.differ.values())

    def full(self, check: str) -> bool:
        """Whether the next difference of `check` is only counted: it need not be worked out in full."""
        return self.differ[check] >= KEPT

    def add(self, difference: Difference) -> None:
        if not self.full(difference.check):
            self.kept.append(difference)
        self.differ[difference.check] += 1

    def first(self, count: int) -> list[Difference]:
        """At most `count` differences to show: the first of each check comes before a second of any."""
        firsts = {one.check: one for one in reversed(self.kept)}
        rest = [one for one in self.kept if one is not firsts[one.check]]
        chosen = [*(one for one in self.kept if one is firsts[one.check]), *rest][:count]
        return sorted(chosen, key=lambda one: one.record)

    def to_json(self) -> dict[str, Any]:
        checks = {name: {"compared": self.compared[name], "differ": self.differ[name]} for name in CHECKS}
        return {"checks": checks, "differences": [asdict(one) for one in self.kept]}
