"""What a migration tells of itself: its rounds, how long the guest stood, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

SHOWN: Final = 8  # frames that differ, by number, in a line of text
_HEADING: Final = ("round", "frames", "copied", "exits", "dirty", "seconds", "SPTEs protected", "protection us")
_WIDTHS: Final = (5, 7, 7, 7, 7, 8, 15, 13)


@dataclass(slots=True)
class Round:
    """One round of copying while the guest runs.

    frames: waiting to be copied when it began. copied: how many of them it came to. exits: of the guest meanwhile.
    dirty: frames that the log named at its end. seconds: of wall time. protected: SPTEs that lost their RW at its
    beginning (all that had it in round 0, those of the logged frames later). protection_us: what that took.
    """

    number: int
    frames: int
    protected: int
    protection_us: float
    copied: int = 0
    exits: int = 0
    dirty: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class MigrationReport:
    """One migration. began: where the guest was when it began, in words. ended: why the guest was stopped for the rest.

    passed: checkpoints that the guest came to while it was copied; nothing was checked there. pulled: times that the
    guest had to be pulled out by an NMI, since it did not leave by itself. last_frames: copied while the guest stood.
    stopped_us: from the exit after which the guest was not let go to its entry on the other machine, without the
    time that `checking_us` tells: for the comparison of all frames, for the end of the source, for pinning.
    compared, unequal: frames. first_unequal: the first few of them. done: whether the guest went on from the copy.
    verdict, reason: of the run as a whole.
    """

    guest: str
    paging: str
    seed: int
    began: str = ""
    ended: str = ""
    rounds: list[Round] = field(default_factory=list)
    passed: int = 0
    pulled: int = 0
    last_frames: int = 0
    stopped_us: float = 0.0
    checking_us: float = 0.0
    compared: int = 0
    unequal: int = 0
    first_unequal: list[int] = field(default_factory=list)
    done: bool = False
    verdict: str = "error"
    reason: str = ""

    @property
    def copied(self) -> int:
        """Frames copied in all, as often as they were."""
        return sum(one.copied for one in self.rounds) + self.last_frames

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """A table with a row for each round, and what came of it."""
        rows = [_row(_HEADING)]
        for one in self.rounds:
            rows.append(
                _row(
                    (
                        str(one.number),
                        f"{one.frames:,}",
                        f"{one.copied:,}",
                        f"{one.exits:,}",
                        f"{one.dirty:,}",
                        f"{one.seconds:.4f}",
                        f"{one.protected:,}",
                        f"{one.protection_us:,.0f}",
                    )
                )
            )
        if self.ended:
            rows.append(_row(("stop", f"{self.last_frames:,}", f"{self.last_frames:,}", "", "", *[""] * 3)).rstrip())
            rows.append(f"began {self.began}; stopped because {self.ended}")
            rows.append(self.outcome)
        return rows

    @property
    def outcome(self) -> str:
        """How the copy compared, and how long it took, on one line."""
        compared = f"{self.compared:,} frames compared, {self.unequal:,} unequal"
        if self.unequal:
            some = ", ".join(f"{gfn:#x}" for gfn in self.first_unequal[:SHOWN])
            return f"{compared} (gfn {some}{', ...' if self.unequal > len(self.first_unequal) else ''})"
        return f"{compared}; the guest stood for {self.stopped_us / 1000:.2f} ms"


def _row(cells: tuple[str, ...]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
