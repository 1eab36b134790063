"""The JUnit report is well-formed whatever a guest prints, and counts as a server would."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from harness.report import junit
from harness.report.record import RunRecord
from tests.report.records import failed, passed, ran_live


def _suite(tmp_path: Path, *records: RunRecord) -> ElementTree.Element:
    junit.write(tmp_path / "r.xml", records)
    suite = ElementTree.parse(tmp_path / "r.xml").getroot().find("testsuite")
    assert suite is not None
    return suite


def test_a_hostile_console_leaves_the_xml_well_formed(tmp_path: Path) -> None:
    failure = _suite(tmp_path, failed()).find("testcase/failure")
    assert failure is not None
    assert "F8: s.RW without g.RW" in (failure.text or "")
    assert "\\x1b]0;owned" in (failure.text or "")


def test_failures_errors_and_skips_are_counted_apart(tmp_path: Path) -> None:
    lost = passed(verdict="error", reason="QEMU ended")
    suite = _suite(tmp_path, passed(), failed(), lost, passed(verdict="skip", reason="no long5"))
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["4", "1", "1", "1"]


def test_a_crash_that_was_expected_is_a_passed_case(tmp_path: Path) -> None:
    case = _suite(tmp_path, passed("hostile-triple", verdict="crash", expected="crash")).find("testcase")
    assert case is not None
    assert case.find("failure") is None
    assert case.find("error") is None


def test_the_same_guest_in_two_modes_is_two_cases(tmp_path: Path) -> None:
    cases = _suite(tmp_path, passed(), ran_live()).findall("testcase")
    assert [(case.get("classname"), case.get("name")) for case in cases] == [
        ("basic.observe", "long4"),
        ("basic.live", "long4"),
    ]
    told = {each.get("name"): each.get("value") for each in cases[1].iter("property")}
    assert (told["mode"], told["live.exits"], told["live.moved"], told["events.mmio"]) == ("live", "12345", "9", "3")
    assert not [each for each in cases[0].iter("property") if str(each.get("name")).startswith("live.")]
