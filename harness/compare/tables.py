"""A comparison arranged: what stands beside what, for the terminal, the page, the figures and the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.compare.measurement import FAULT, FAULT_KINDS, Comparison, Measurement, OperationFigures
from harness.work import OPERATIONS

# What each family of workloads is there to show; any other shows faults, but not first. An operation is shown as it
# came out on a family of its own, if one was measured.
FOCUS: Final[Mapping[str, str]] = {
    "faults": "shadow_fault",
    "spaces": "shadow_resync_all",
    "writes": "shadow_resync_all",
    "fork": "spti_make_shadow",
    "promote": "write_protect",
    "remap": "xi_invld_mfn",
    "large": "divide_large_page",
    "dirty": "dirty_start",
}
SHORT: Final[Mapping[str, str]] = {"spti_make_shadow": "make_shadow"}


def short(operation: str) -> str:
    """The operation's name as figures have it: `shadow_fault` is ``fault``."""
    return SHORT.get(operation, operation.removeprefix("shadow_"))


def focus(workload: str) -> str:
    """The operation that a workload is about."""
    return FOCUS.get(workload.partition(":")[0], FAULT)


def ratio(one: float | None, other: float | None) -> float | None:
    """`one` by `other`; None when either is not known, or there is nothing to divide by."""
    return one / other if one is not None and other else None


@dataclass(frozen=True, slots=True)
class Row:
    """One operation on one workload, all subjects. cells: by label, None where it was not called or not measured."""

    operation: str
    workload: str
    cells: Mapping[str, OperationFigures | None]

    def ratio(self, label: str, base: str, amount: str) -> float | None:
        """`amount` (an attribute of `OperationFigures`) of `label` by that of `base`."""
        one, other = self.cells.get(label), self.cells.get(base)
        return None if one is None or other is None else ratio(getattr(one, amount), getattr(other, amount))


def operation_rows(comparison: Comparison, labels: Sequence[str], kinds: bool = True) -> list[Row]:
    """A row for each operation of `harness.work.OPERATIONS` that any of `labels` did, in their order, each on the
    workload that shows it; with `kinds`, below `shadow_fault` what the faults came to."""
    rows: list[Row] = []
    for name in OPERATIONS:
        workload = home(comparison, name, labels)
        if workload is None:
            continue
        for operation in (name, *(FAULT_KINDS if name == FAULT and kinds else ())):
            row = row_of(comparison, operation, workload, labels)
            if any(row.cells.values()):
                rows.append(row)
    return rows


def home(comparison: Comparison, operation: str, labels: Sequence[str]) -> str | None:
    """The workload on which `operation` is shown: of those that are there to show it, else of all, that on which it was
    most work, or was called most; None when nobody called it."""
    amounts: dict[str, tuple[bool, int, int]] = {}
    for workload in comparison.workloads:
        cells = [cell for cell in row_of(comparison, operation, workload, labels).cells.values() if cell is not None]
        if cells:
            about = FOCUS.get(workload.partition(":")[0]) == operation
            amounts[workload] = about, max(cell.words or 0 for cell in cells), max(cell.calls for cell in cells)
    return max(amounts, key=lambda workload: amounts[workload], default=None)


def row_of(comparison: Comparison, operation: str, workload: str, labels: Sequence[str]) -> Row:
    """`operation` on the standard size of `workload`."""
    cells = {label: comparison.find(label, workload) for label in labels}
    return Row(operation, workload, {label: one.operation(operation) if one else None for label, one in cells.items()})


def whole_rows(comparison: Comparison, labels: Sequence[str]) -> list[Row]:
    """All that was asked of the engines, for each workload in its standard size."""
    rows = []
    for workload in comparison.workloads:
        cells = {label: comparison.find(label, workload) for label in labels}
        rows.append(Row("whole", workload, {label: one.whole if one else None for label, one in cells.items()}))
    return rows


@dataclass(frozen=True, slots=True)
class Growth:
    """How an operation grows with the guest. sizes: values of `knob`, ascending; cells: by label and size, as far as
    measured."""

    workload: str
    knob: str
    operation: str
    sizes: Sequence[float]
    cells: Mapping[str, Mapping[float, Measurement]]

    def cell(self, label: str, size: float) -> OperationFigures | None:
        one = self.cells[label].get(size)
        return one.operation(self.operation) if one else None

    def factor(self, label: str, amount: str) -> float | None:
        """`amount` (an attribute of `OperationFigures`) at the largest size by that at the smallest."""
        first, last = self.cell(label, self.sizes[0]), self.cell(label, self.sizes[-1])
        return None if first is None or last is None else ratio(getattr(last, amount), getattr(first, amount))

    def ratio(self, label: str, base: str, size: float, amount: str) -> float | None:
        """`amount` of `label` by that of `base`, at `size`."""
        one, other = self.cell(label, size), self.cell(base, size)
        return None if one is None or other is None else ratio(getattr(one, amount), getattr(other, amount))


def growths(comparison: Comparison, labels: Sequence[str]) -> list[Growth]:
    """For each workload that was measured in several sizes."""
    out = []
    for workload in comparison.workloads:
        cells = {label: {one.size: one for one in comparison.series(label, workload)} for label in labels}
        sizes = sorted({size for each in cells.values() for size in each})
        knob = next((one.knob for each in cells.values() for one in each.values()), "")
        if len(sizes) > 1:
            out.append(Growth(workload, knob, focus(workload), sizes, cells))
    return out
