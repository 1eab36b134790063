"""The record of one run: what every report (terminal, JSON, JUnit, pytest) is made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from harness.check.target import ORACLES, Mismatch

SCHEMA: Final = 1
VERDICTS: Final = ("pass", "fail", "crash", "timeout", "error", "skip")
EVENTS: Final = ("cr3_load", "table_write", "invlpg", "control", "page_fault")


@dataclass(slots=True)
class RunRecord:
    """One guest, one paging mode, one run.

    mode: observe, live, or both (two runs of the guest that were compared).
    verdict: pass (TAP plan complete, nothing failed), fail (a check, an audit, a TAP line or the interception),
    crash (triple fault), timeout (deadline), error (the machine could not be run or was lost), skip.
    expected: the catalogue's verdict. reason: one line that says why the verdict is what it is.
    events: by kind, EVENTS always and others where they came (live mode: cpuid, msr, mmio, hlt ...). `page_fault` are
    the faults on the shadow that the engine handled, in observe mode those of the checker's accesses, in live mode the
    guest's; all others are what the guest did.
    live: live mode's figures, empty otherwise: exits (a count for each kind), exits_per_second, faults_injected, moved
    (frames given another machine frame), taken and given (frames taken away, given back), dirty_rounds (of the dirty
    log), zeroed_idle and zeroed_inline (shadow tables), recycled, pool_sptis, pool_share (of the guest's RAM), pinned
    (empty, or why the guest and Python do not have a core each).
    twin: mode both's comparison of the two legs, empty otherwise: differences (the first, in full), counts by field,
    allowed (name -> count), compared (what, how much).
    exceptions: named differences that were allowed, with counts. stats: the engine's counters.
    tap: (ok, text) lines. log_dir: where console and QEMU output were kept, if anywhere.
    trace: the file that the run's trace was kept in, if any; trace_lost: why it could not be.
    repro: commands to paste. recent_events: the last events before the end, as text.
    """

    guest: str
    paging: str
    mode: str = "observe"
    engine: str = "xi"
    verdict: str = "error"
    expected: str = "pass"
    reason: str = ""
    seconds: float = 0.0
    seed: int = 0
    checkpoints: int = 0
    events: dict[str, int] = field(default_factory=lambda: dict.fromkeys(EVENTS, 0))
    checks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ORACLES, 0))
    mismatches: int = 0
    audit_failures: int = 0
    interception_misses: int = 0
    exceptions: dict[str, int] = field(default_factory=dict)
    failures: list[Mismatch] = field(default_factory=list)  # the first few, in full
    audit: list[str] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)
    tap: list[tuple[bool, str]] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    live: dict[str, Any] = field(default_factory=dict)
    twin: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    repro: list[str] = field(default_factory=list)
    recent_events: list[str] = field(default_factory=list)
    log_dir: str = ""
    trace: str = ""
    trace_lost: str = ""

    @property
    def intercepted(self) -> int:
        """Events that the interception took from the guest: all kinds but `page_fault`."""
        return sum(count for kind, count in self.events.items() if kind != "page_fault")

    @property
    def troubled(self) -> bool:
        """Whether anything was found wrong with the engine or the interception."""
        return bool(self.mismatches or self.audit_failures or self.interception_misses)

    @property
    def as_expected(self) -> bool:
        return self.verdict in (self.expected, "skip")

    def to_json(self) -> dict[str, Any]:
        """The run's object in the report file (`mismatches` is a count; `failures` holds the first in full)."""
        return asdict(self)
