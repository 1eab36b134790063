"""The JUnit report, as continuous-integration servers read it: one test case per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as Xml

from harness.report.failure import failure_block
from harness.report.live_run import exits
from harness.report.output_file import write_atomic
from harness.report.record import RunRecord
from harness.report.text import one_line, printable


def _outcome(record: RunRecord) -> str:
    """The element that a test case of this record holds: failure, error, skipped, or none when it passed."""
    if record.verdict == "skip":
        return "skipped"
    if record.as_expected:
        return ""
    return "error" if record.verdict == "error" else "failure"


def document(records: Sequence[RunRecord], name: str = "xi-harness") -> str:
    """The report as XML text. A run that ended as its catalogue entry says it must is a passed case."""
    outcomes = [_outcome(record) for record in records]
    totals = {
        "tests": str(len(records)),
        "failures": str(outcomes.count("failure")),
        "errors": str(outcomes.count("error")),
        "skipped": str(outcomes.count("skipped")),
        "time": f"{sum(record.seconds for record in records):.3f}",
    }
    root = Xml.Element("testsuites", totals, name=name)
    suite = Xml.SubElement(root, "testsuite", totals, name=name)
    for record, outcome in zip(records, outcomes, strict=True):
        case = Xml.SubElement(
            suite,
            "testcase",
            classname=f"{printable(record.guest)}.{record.mode}",
            name=printable(record.paging),
            time=f"{record.seconds:.3f}",
        )
        properties = Xml.SubElement(case, "properties")
        for key, value in _properties(record).items():
            Xml.SubElement(properties, "property", name=key, value=printable(value))
        if outcome:
            message = one_line(record.reason or f"{record.verdict}, expected {record.expected}")
            element = Xml.SubElement(case, outcome, message=message)
            if outcome != "skipped":
                element.set("type", record.verdict)
                element.text = printable(failure_block(record))
        if record.log_dir:
            Xml.SubElement(case, "system-out").text = printable(f"logs: {record.log_dir}")
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=False)


def _properties(record: RunRecord) -> dict[str, str]:
    fixed = {
        "mode": record.mode,
        "engine": record.engine,
        "seed": str(record.seed),
        "verdict": record.verdict,
        "expected": record.expected,
        "events": str(record.intercepted),
        "checks": str(sum(record.checks.values())),
        "mismatches": str(record.mismatches),
        "audit_failures": str(record.audit_failures),
        "interception_misses": str(record.interception_misses),
    }
    kinds = {f"events.{kind}": str(count) for kind, count in record.events.items() if count}
    live = {f"live.{name}": str(value) for name, value in record.live.items() if not isinstance(value, Mapping)}
    if record.live:
        live["live.exits"] = str(exits(record.live))
    return fixed | kinds | live


def write(path: Path, records: Sequence[RunRecord]) -> None:
    """Writes the JUnit file in one step. Raises OSError."""
    write_atomic(path, '<?xml version="1.0" encoding="utf-8"?>\n' + document(records) + "\n")
