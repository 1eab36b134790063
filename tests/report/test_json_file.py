"""The JSON report is strict JSON with the fields that programs rely on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from harness.report import json_file
from tests.report.records import failed, passed, ran_live

REQUIRED = {
    "guest",
    "paging",
    "mode",
    "engine",
    "verdict",
    "expected",
    "seconds",
    "events",
    "checks",
    "mismatches",
    "audit_failures",
    "interception_misses",
    "exceptions",
}


def test_every_run_has_the_promised_fields(tmp_path: Path) -> None:
    json_file.write(tmp_path / "r.json", json_file.document([passed(), failed()]))
    read = json.loads((tmp_path / "r.json").read_text())
    assert read["schema"] == 1
    assert [run["guest"] for run in read["runs"]] == ["basic", "perm"]
    for run in read["runs"]:
        assert run.keys() >= REQUIRED
        assert set(run["events"]) == {"cr3_load", "table_write", "invlpg", "control", "page_fault"}
        assert set(run["checks"]) == {"probe", "gva2gpa", "memory", "info_tlb", "ad_bits"}
        assert isinstance(run["mismatches"], int)


def test_live_mode_adds_kinds_of_events_and_figures_and_takes_nothing_away(tmp_path: Path) -> None:
    json_file.write(tmp_path / "r.json", json_file.document([passed(), ran_live()]))
    observed, live = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert live.keys() == observed.keys() >= REQUIRED
    assert live["events"].keys() - observed["events"].keys() == {"cpuid", "mmio"}
    assert (live["mode"], live["live"]["exits"]["write_cr3"]) == ("live", 333)
    assert (observed["mode"], observed["live"]) == ("observe", {})


def test_what_strict_json_lacks_is_made_plain() -> None:
    odd = {1: np.uint64(2**63), "b": b"\x00\xff", "n": float("nan"), "a": np.arange(3), "t": (1,), "s": {2, 1}}
    plain = json_file.plain(odd)
    assert plain == {"1": 2**63, "b": "00ff", "n": None, "a": [0, 1, 2], "t": [1], "s": [1, 2]}
    json.dumps(plain, allow_nan=False)


def test_an_interrupted_batch_says_so() -> None:
    assert json_file.document([], interrupted=True)["interrupted"] is True
