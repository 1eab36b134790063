"""Records of runs that never happened, for the tests of the reports."""

from __future__ import annotations

from typing import Any

from harness.check.target import Mismatch
from harness.report.record import RunRecord


def passed(guest: str = "basic", paging: str = "long4", **fields: Any) -> RunRecord:
    record = RunRecord(guest, paging, verdict="pass", seconds=1.5, seed=7, checkpoints=3)
    record.events["cr3_load"] = 1200
    record.events["page_fault"] = 9
    record.checks["probe"] = 34_567
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def ran_live(guest: str = "basic", paging: str = "long4", **fields: Any) -> RunRecord:
    """A live run, with kinds of events that only live mode has."""
    record = passed(guest, paging, mode="live", **fields)
    record.events |= {"cpuid": 12, "mmio": 3}
    record.live = {
        "exits": {"exception_pf": 12_000, "cpuid": 12, "write_cr3": 333},
        "exits_per_second": 45_000,
        "faults_injected": 21,
        "moved": 9,
        "taken": 7,
        "given": 6,
        "dirty_rounds": 4,
        "zeroed_idle": 40,
        "zeroed_inline": 2,
        "recycled": 1,
        "pool_sptis": 102,
        "pool_share": 0.05,
        "pinned": "",
    }
    return record


def ran_both(**fields: Any) -> RunRecord:
    """A native and a live run that were compared and differ."""
    record = ran_live(verdict="fail", reason="2 differences from the native run", **fields)
    record.mode = "both"
    record.twin = {
        "differences": [
            {"field": "fault", "checkpoint": "3 mapped", "where": "number 7", "native": "#PF 0x3", "live": "#PF 0x7"},
            {"field": "ending", "checkpoint": "the end", "where": "", "native": "status \x1b[2J", "live": "shutdown"},
        ],
        "counts": {"fault": 40, "ending": 1},
        "allowed": {},
        "compared": {"checkpoints": 9, "faults": 4321},
    }
    return record


def failed(guest: str = "perm", paging: str = "pae") -> RunRecord:
    """A run with one mismatch, one broken invariant, one miss, one failed TAP line and a hostile console."""
    record = passed(guest, paging, verdict="fail", reason="1 mismatch \x1b[2J of 34,567")
    record.mismatches, record.failures = 1, [mismatch()]
    record.audit_failures, record.audit = 1, ["at mapped: F8: s.RW without g.RW"]
    record.interception_misses, record.misses = 1, ["gfn 0x42 changed unseen"]
    record.tap = [(True, "mapped"), (False, "remapped \x00\x1b]0;owned\x07")]
    record.recent_events = [f"event {number}" for number in range(40)]
    record.log_dir = "/tmp/logs/perm.pae"
    return record


def mismatch() -> Mismatch:
    return Mismatch(
        oracle="probe",
        field="code",
        checkpoint="mapped",
        va=0x40_1000,
        access="store ring 3",
        guest="#PF 7",
        shadow="#PF 7",
        hardware="gfn 0x42",
    )
