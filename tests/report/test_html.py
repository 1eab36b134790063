"""The HTML report is one page that escapes what guests say."""

from __future__ import annotations

from harness.report import html
from tests.report.records import failed, passed, ran_both, ran_live


def test_the_page_shows_runs_picture_and_failures() -> None:
    record = failed()
    record.reason = "<script>alert(1)</script>"
    page = html.document([passed(), record])
    assert "<script>" not in page
    assert "<svg" in page
    assert "F8: s.RW without g.RW" in page


def test_a_page_without_runs_is_still_a_page() -> None:
    assert "0 runs" in html.document([])


def test_live_mode_has_a_table_of_its_own_and_its_kinds_of_events_are_drawn() -> None:
    page = html.document([passed(), ran_live("<b>")])
    assert "<h2>Live mode</h2>" in page
    assert "<b>" not in page
    assert "exception_pf 12,000, write_cr3 333, cpuid 12" in page
    assert html.picture([passed(), ran_live()]).count(">mmio<") == 1
    assert "Live mode" not in html.document([passed()])


def test_what_was_compared_with_a_native_run() -> None:
    page = html.document([ran_both()])
    assert "<p>compared with native runs: 9 checkpoints, 4,321 faults; 41 differences.</p>" in page
    assert "native #PF 0x3, live #PF 0x7" in page
    assert "compared with" not in html.document([passed(), ran_live()])
