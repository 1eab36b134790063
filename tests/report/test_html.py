"""The HTML report is one page that escapes what guests say."""

from __future__ import annotations

from harness.report import html
from tests.report.records import failed, passed


def test_the_page_shows_runs_picture_and_failures() -> None:
    record = failed()
    record.reason = "<script>alert(1)</script>"
    page = html.document([passed(), record])
    assert "<script>" not in page
    assert "<svg" in page
    assert "F8: s.RW without g.RW" in page


def test_a_page_without_runs_is_still_a_page() -> None:
    assert "0 runs" in html.document([])
