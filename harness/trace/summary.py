"""What a replay came to: for a terminal, in the manner of a failing run's block, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from harness.report.text import duration, one_line, printable
from harness.trace import records as r
from harness.trace.exact import Replay
from harness.trace.tally import CHECKS

SCHEMA: Final = 1
SHOWN: Final = 3  # differences in full; the JSON document has all that were kept
RECENT: Final = 8
_CALLS: Final[dict[type, str]] = {
    r.Control: "control",
    r.LoadCr3: "load_cr3",
    r.Invlpg: "invlpg",
    r.TableWritten: "table_written",
    r.Fault: "shadow_fault",
    r.Faults: "shadow_faults",
    r.Pkru: "set_pkru",
    r.InvalidateMfn: "xi_invld_mfn",
    r.Pdptes: "restore_pdptes",
    r.DirtyStart: "dirty_log_start",
    r.DirtyRead: "dirty_log_read",
    r.DirtyStop: "dirty_log_stop",
    r.ResyncAll: "resync_all",
    r.Unexplained: "unexplained_changes",
    r.WatchChanges: "watch_changes",
    r.ExecutableChanges: "executable_changes",
    r.Idle: "idle",
    r.Audit: "audit",
}


def passed(replay: Replay) -> bool:
    return not replay.tally.wrong and not replay.broken


def calls(replay: Replay) -> dict[str, int]:
    """How often the engine was called, by the name of the call, the most frequent first. `idle` counts once for calls
    that come one behind the other."""
    return {_CALLS[kind]: count for kind, count in replay.calls.most_common() if kind in _CALLS}


def rate(replay: Replay) -> float:
    """Events a second."""
    return replay.events.total / replay.seconds if replay.seconds else 0.0


def heading(replay: Replay, engine: str) -> list[str]:
    """What was recorded, and what it is replayed through."""
    header = replay.trace.header
    policies = _policies(header.config.options)
    now = _policies(replay.options)
    how = "as recorded" if replay.exact else "by what the guest did: only what the architecture prescribes is compared"
    return [
        f"{_run(replay)}, seed {header.seed}; recorded by {one_line(header.created_by)} with engine "
        f"{one_line(header.engine)}{policies}",
        f"replayed through {one_line(engine)}{now}, {how}",
    ]


def summary(replay: Replay) -> list[str]:
    """The table: events, calls, time; what was checked, and how it came out; how the trace ends."""
    events, told = replay.events, replay.recorded
    made = calls(replay)
    rows = [
        ("events", f"{events.total:,}", _counted(dict(events.counts.most_common()))),
        ("calls", f"{sum(made.values()):,}", _counted(made)),
        ("time", duration(replay.seconds), f"{rate(replay):,.0f} events/s"),
    ]
    width = max(len(count) for _, count, _ in rows)
    lines = [f"{name:<12}{count:>{width}}  {rest}".rstrip() for name, count, rest in rows]
    lines += ["", f"{'check':<12}{'compared':>9}{'differ':>8}"]
    for name, what in CHECKS.items():
        if replay.tally.compared[name] or replay.tally.differ[name]:
            lines.append(f"{name:<12}{replay.tally.compared[name]:>9,}{replay.tally.differ[name]:>8,}  {what}")
    if replay.late:
        lines.append(f"{'late':<12}{replay.late:>9,}{'':>8}  answers by an entry whose change came late")
    lines.append("")
    found = [("mismatch", told.mismatches), ("audit failure", told.audit_failures), ("unseen store", told.misses)]
    if any(count for _, count in found):
        lines.append("the recorded run found " + ", ".join(f"{count} x {what}" for what, count in found if count))
    lines.append(_end(replay))
    return lines


def _end(replay: Replay) -> str:
    trace = replay.trace
    if replay.broken:
        return f"the replay ends after event {replay.event}: {one_line(replay.broken)}"
    if replay.damaged:
        return f"replayed up to event {replay.event}: from there on the trace is damaged"
    if not replay.ended:
        last = replay.events.last(1)
        return f"stopped once event {printable(str(last[0]))} was handled" if last else "stopped before the first event"
    if trace.end is None:
        return f"the trace is incomplete: it breaks off after event {replay.event}"
    reason = f" ({one_line(trace.end.reason)})" if trace.end.reason else ""
    return f"end of the trace: the recorded run's verdict was {one_line(trace.end.verdict)}{reason}"


def failure(replay: Replay, engine: str, command: str) -> list[str]:
    """The block of a replay that found differences. command: the replay's own, to paste."""
    wrong = replay.tally.wrong
    lines = [f"{_run(replay)} (replayed through {one_line(engine)}): fail: {wrong} difference{'s' * (wrong != 1)}"]
    shown = replay.tally.first(SHOWN)
    for one in shown:
        lines += ["", *one.lines(command)]
    if wrong > len(shown):
        lines += ["", f"... and {wrong - len(shown)} more differences; the first is the one to look at"]
    recent = replay.events.recent(RECENT)
    if recent:
        lines += ["", "last events:", *(f"  {event}" for event in recent)]
    return [printable(line) for line in [*lines, "", "reproduce:", f"  {command}"]]


def document(replay: Replay, engine: str, outputs: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """The JSON document. outputs: (command, its output) of those that were run at the end."""
    header, end, told = replay.trace.header, replay.trace.end, replay.recorded
    return {
        "schema": SCHEMA,
        "trace": {
            "path": str(replay.trace.path),
            "guest": header.guest,
            "paging": header.paging,
            "mode": header.mode,
            "seed": header.seed,
            "engine": header.engine,
            "policies": dict(header.config.options),
            "created_by": header.created_by,
            "command": header.command,
            "complete": replay.trace.complete,
            "verdict": None if end is None else end.verdict,
            "found": {
                "checks": told.checks,
                "mismatches": told.mismatches,
                "audit_failures": told.audit_failures,
                "misses": told.misses,
            },
        },
        "engine": engine,
        "policies": dict(replay.options),
        "exact": replay.exact,
        "passed": passed(replay),
        "ended": replay.ended,
        "damaged": replay.damaged,
        "broken": replay.broken,
        "event": replay.event,
        "events": dict(replay.events.counts),
        "calls": calls(replay),
        "records": replay.number,
        "seconds": replay.seconds,
        "events_per_second": rate(replay),
        "late": replay.late,
        **replay.tally.to_json(),
        "commands": [{"command": command, "output": output} for command, output in outputs],
    }


def _run(replay: Replay) -> str:
    header = replay.trace.header
    return one_line(f"{header.guest} {header.paging}, {header.mode}")


def _policies(options: dict[str, str]) -> str:
    chosen = ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
    return f" ({one_line(chosen)})" if chosen else ""


def _counted(counts: dict[str, int]) -> str:
    return one_line(", ".join(f"{name} {count:,}" for name, count in counts.items()))
