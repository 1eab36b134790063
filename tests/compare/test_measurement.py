"""The records of a comparison: what follows from their numbers, and that they go into JSON as they are."""

from __future__ import annotations

import json

import pytest

from harness.compare.measurement import PERCENTS, OperationFigures, Subject, distribution
from harness.report import json_file
from harness.work import Work
from tests.compare.made import POLICY, XI, comparison, operation


def test_a_distribution_holds_values_that_occur() -> None:
    values = distribution([5.0, 1.0, 2.0, 4.0, 3.0])
    assert len(values) == len(PERCENTS)
    assert values[0] == 1.0 and values[-1] == 5.0
    assert values[PERCENTS.index(50.0)] == 3.0
    assert set(values) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert distribution([]) == ()


def test_words_are_all_that_was_touched_and_not_the_pages() -> None:
    figures = OperationFigures(4, Work(1, 20, 300, 4000, 50000))
    assert figures.words == 4321
    assert figures.words_per_call == pytest.approx(4321 / 4)
    assert figures.pages_per_call == 12500


def test_an_engine_that_tells_nothing_has_calls_and_times() -> None:
    figures = OperationFigures(2, us_at=(1.0,) * len(PERCENTS), total_us=2.0, rounds_us=(2.0, 3.0))
    assert figures.words is None and figures.words_per_call is None and figures.pages_per_call is None
    assert figures.most_words is None
    assert (figures.p50_us, figures.p99_us, figures.us_per_call, figures.spread) == (1.0, 1.0, 1.0, 1.5)


def test_what_is_told_of_some_calls_only_is_divided_by_those() -> None:
    figures = OperationFigures(100, Work(60, 0, 0, 0, 0), total_us=30.0, told=20)
    assert figures.words_per_call == 3
    assert figures.us_per_call == 1.5


def test_no_call_has_no_share() -> None:
    figures = OperationFigures(0, Work(0, 0, 0, 0, 0))
    assert figures.words_per_call is None and figures.us_per_call is None and figures.spread is None


def test_a_label_names_engine_and_policies() -> None:
    assert XI.label == "xi"
    assert POLICY.label == "xi backlinks=none"
    assert Subject("xi", (("snapshots", "dynamic"), ("zeroing", "critical-path"))).label.count("=") == 2


def test_what_a_comparison_holds() -> None:
    made = comparison()
    assert made.labels == ["xi", "xen302", "xi backlinks=none"]
    assert made.engines == ["xi", "xen302"]
    assert made.workloads == ["faults"]
    assert [one.size for one in made.series("xi", "faults")] == [100, 1000]
    standard, small = made.find("xi", "faults"), made.find("xi", "faults", 100)
    assert standard is not None and standard.size == 1000
    assert small is not None and small.size == 100
    assert made.find("xi", "fork") is None and made.find("kvm", "faults") is None


def test_the_document_is_plain_json() -> None:
    text = json.dumps(json_file.plain(comparison().to_json()), allow_nan=False)
    document = json.loads(text)
    assert document["schema"] == 1 and document["percents"] == list(PERCENTS)
    first = document["measurements"][0]
    assert (first["label"], first["workload"], first["size"], first["standard"]) == ("xi", "faults", 100, False)
    assert first["operations"]["shadow_fault"]["sptes_visited"] == 1000
    assert first["operations"]["shadow_fault"]["words_per_call"] == 10
    assert first["peak"] == {"tables": 4096, "snapshots": 4096, "reverse": 4096, "reserved": 16384, "used": 12288}
    assert first["held"] is None
    assert operation(1, 2, 3.0).to_json()["total_us"] == 3.0
