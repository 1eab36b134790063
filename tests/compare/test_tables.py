"""What stands beside what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.compare.measurement import FAULT, FILL, Comparison, Measurement
from harness.compare.tables import focus, growths, home, operation_rows, ratio, row_of, short, whole_rows
from tests.compare.made import POLICY, RIVAL, XI, comparison, measurement, operation


def with_more(*more: Measurement) -> Comparison:
    made = comparison()
    return replace(made, measurements=(*made.measurements, *more))


def test_operations_have_short_names_in_figures() -> None:
    assert [short(name) for name in ("shadow_fault", FILL, "shadow_resync_all", "spti_make_shadow", "gva_to_gpa")] == [
        *("fault", "fault.fill", "resync_all", "make_shadow", "gva_to_gpa")
    ]


def test_what_a_workload_is_about() -> None:
    assert focus("promote") == focus("promote:tables=3") == "write_protect"
    assert focus("trace:churn/long4") == FAULT


def test_a_ratio_needs_both_and_something_to_divide_by() -> None:
    assert ratio(6.0, 3.0) == 2.0
    assert ratio(None, 3.0) is None and ratio(6.0, None) is None and ratio(6.0, 0) is None


def test_rows_are_in_the_order_of_the_operations_and_in_the_standard_size() -> None:
    rows = operation_rows(comparison(), ["xi", "xen302"])
    assert [row.operation for row in rows] == ["shadow_fault", "write_protect"]
    cell = rows[0].cells["xen302"]
    assert cell is not None and cell.words_per_call == 80
    assert rows[0].ratio("xen302", "xi", "total_us") == pytest.approx(10)
    assert rows[0].ratio("xen302", "xi", "words") == pytest.approx(8)
    assert rows[0].ratio("kvm", "xi", "words") is None


def test_what_faults_came_to_stands_below_them() -> None:
    one = measurement(XI, 1000, 10, 5.0, 4096)
    told = replace(one, operations={**one.operations, FILL: operation(60, 10, 5.0)})
    made = replace(comparison(), measurements=(told,))
    assert [row.operation for row in operation_rows(made, ["xi"])][:2] == [FAULT, FILL]
    assert FILL not in [row.operation for row in operation_rows(made, ["xi"], kinds=False)]


def test_an_operation_is_shown_on_the_workload_that_is_about_it() -> None:
    made = with_more(measurement(XI, 1000, 3, 5.0, 4096, "promote"), measurement(RIVAL, 1000, 3, 5.0, 4096, "promote"))
    assert home(made, "write_protect", ["xi"]) == "promote"
    assert home(made, FAULT, ["xi"]) == "faults"  # though it was called as often on the other
    assert home(comparison(), "write_protect", ["xi"]) == "faults"  # where else
    assert home(made, "divide_large_page", ["xi"]) is None
    assert home(made, "write_protect", ["xi backlinks=none"]) == "faults"  # it was not measured on the other


def test_faults_are_shown_on_the_headlines_workload_wherever_else_they_were_more_work() -> None:
    assert home(with_more(measurement(XI, 1000, 9999, 5.0, 4096, "mappings")), FAULT, ["xi"]) == "faults"


def test_what_was_not_measured_is_an_empty_cell() -> None:
    row = row_of(comparison(), FAULT, "faults", ["xi", "kvm"])
    assert row.cells["kvm"] is None
    (whole,) = whole_rows(comparison(), ["xi", "kvm"])
    assert whole.cells["kvm"] is None and whole.cells["xi"] is not None


def test_growth() -> None:
    (growth,) = growths(comparison(), ["xi", "xen302", "xi backlinks=none"])
    assert (growth.workload, growth.knob, growth.operation, growth.sizes) == ("faults", "pages", FAULT, [100, 1000])
    assert growth.factor("xi", "words_per_call") == 1
    assert growth.factor("xen302", "words_per_call") == 2
    assert growth.ratio("xen302", "xi", 100, "total_us") == pytest.approx(5)
    assert growth.factor(POLICY.label, "words") is None  # it has one size only
    assert growth.cell(POLICY.label, 100) is None


def test_one_size_is_no_growth() -> None:
    assert growths(replace(comparison(), measurements=(measurement(XI, 1000, 1, 1.0, 1),)), ["xi"]) == []
