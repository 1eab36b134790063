"""The figures by name, as a program reads them."""

from __future__ import annotations

import json

import pytest

from harness.compare.figures import document, figures
from harness.report import json_file
from tests.compare.made import comparison

EXPECTED = {
    "fault.calls.xi": 100,
    "fault.words.xen302": 80,
    "fault.p50_us.xi": 5,
    "fault.p99_us.xen302": 50,
    "fault.total_us.xi": 500,
    "fault.pages.xi": 0,
    "fault.time_ratio.xen302": 10,
    "fault.work_ratio.xen302": 8,
    "fault.calls_ratio.xen302": 1,
    "write_protect.work_ratio.xen302": 8,
    "on.faults.whole.time_ratio.xen302": 10,
    "on.faults.fault.work_ratio.xen302": 8,
    "growth.faults.words.xen302.100": 40,
    "growth.faults.us.xen302.1000": 50,
    "growth.faults.words_factor.xi": 1,
    "growth.faults.p50_us_factor.xen302": 2,
    "growth.faults.time_ratio.xen302.100": 5,
    "growth.faults.work_ratio.xen302.100": 4,
    "memory.faults.used.xi.1000": 3 * 8192,
    "memory.faults.reserved.xi.1000": 4 * 8192,
    "policy.backlinks=none.faults.fault.work_ratio": 100,
    "policy.backlinks=none.faults.fault.time_ratio": 4,
    "policy.backlinks=none.faults.whole.work_ratio": 100,
    "policy.backlinks=none.faults.used_ratio": 0.5,
    "policy.backlinks=none.faults.reserved_ratio": 0.5,
    "domain.shared.greedy.calls": 90,
}


def test_the_figures_by_name() -> None:
    found = figures(comparison())
    assert {name: found.get(name) for name in EXPECTED} == pytest.approx(EXPECTED)


def test_the_base_has_no_ratio_to_itself_and_a_policy_is_no_engine() -> None:
    names = figures(comparison()).keys()
    assert not [name for name in names if name.endswith("_ratio.xi")]
    assert not [name for name in names if name.startswith("fault.") and "backlinks" in name]


def test_the_document_holds_figures_verdicts_and_what_they_were_made_of() -> None:
    made = json.loads(json.dumps(json_file.plain(document(comparison())), allow_nan=False))
    assert made["schema"] == 1
    assert made["figures"]["fault.time_ratio.xen302"] == 10
    assert made["verdicts"][0]["topic"] == "headline"
    assert len(made["measurements"]) == 5 and made["base"] == "xi"
