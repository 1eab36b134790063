"""The figures of a comparison by name, flat, as `xi-harness bench` has them.

LABEL is an engine (``xi``, ``xen302``), OPERATION one of `harness.work.OPERATIONS` with `shadow_fault` as ``fault``,
`shadow_resync_all` as ``resync_all`` and `spti_make_shadow` as ``make_shadow``, and the kinds of a fault as
``fault.fill``; ``whole`` is all that was asked of an engine. Ratios are those of totals on the same workload, to the
base, which is ``xi``: ``fault.time_ratio.xen302`` is the time of xen302 ÷ the time of xi.

- ``OPERATION.calls|words|pages|p50_us|p99_us|total_us.LABEL``, ``OPERATION.time_ratio|work_ratio|calls_ratio.LABEL``:
  on the workload that shows the operation; words and pages are those of one call.
- ``on.WORKLOAD.OPERATION.time_ratio|work_ratio.LABEL``: on each workload, for the operation that it shows, the fault,
  and ``whole``.
- ``growth.WORKLOAD.words|us|p50_us.LABEL.SIZE``: one call of the operation that the workload shows; ``…_factor.LABEL``:
  the largest size by the smallest. ``growth.WORKLOAD.time_ratio|work_ratio.LABEL.SIZE``.
- ``memory.WORKLOAD.used|reserved.LABEL.SIZE``: bytes, when most was in use.
- ``policy.NAME=VALUE.WORKLOAD.OPERATION.time_ratio|work_ratio``: a policy to the default; ``….used_ratio``: memory.
- ``domain.POOL.NEIGHBOUR.calls|words|total_us``: a quiet domain's faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.compare.measurement import FAULT, Comparison, Measurement, OperationFigures
from harness.compare.tables import (
    Growth,
    Row,
    focus,
    growths,
    operation_rows,
    ratio,
    row_of,
    short,
    whole_rows,
)
from harness.compare.verdicts import verdicts

Figure = tuple[str, float | None]


def document(comparison: Comparison) -> dict[str, Any]:
    """The JSON document: figures by name, the verdicts, and all that they were made of."""
    content = comparison.to_json()
    told = [verdict.to_json() for verdict in verdicts(comparison)]
    return {"schema": content.pop("schema"), "figures": figures(comparison), "verdicts": told, **content}


_AMOUNTS = (
    *(("calls", "calls"), ("words", "words_per_call"), ("pages", "pages_per_call")),
    *(("p50_us", "p50_us"), ("p99_us", "p99_us"), ("total_us", "total_us")),
)
_RATIOS = (("time_ratio", "total_us"), ("work_ratio", "words"), ("calls_ratio", "calls"))
_OF_POLICIES = (("time_ratio", "first_us"), ("work_ratio", "words"), ("calls_ratio", "calls"))
_GROWN = (("words", "words_per_call"), ("us", "us_per_call"), ("p50_us", "p50_us"))


def figures(comparison: Comparison) -> dict[str, float]:
    """All of them. What was not measured, or was not told, is missing."""
    found = [
        *_operations(comparison),
        *_workloads(comparison),
        *(figure for growth in growths(comparison, comparison.labels) for figure in _growth(comparison, growth)),
        *_memory(comparison),
        *_policies(comparison),
        *_domains(comparison),
    ]
    return {name: float(value) for name, value in found if value is not None}


def _operations(comparison: Comparison) -> Iterator[Figure]:
    for row in operation_rows(comparison, comparison.engines):
        name = short(row.operation)
        for label, cell in row.cells.items():
            if cell is not None:
                for amount, attribute in _AMOUNTS:
                    yield f"{name}.{amount}.{label}", getattr(cell, attribute)
        yield from _ratios(comparison, row, name)


def _ratios(comparison: Comparison, row: Row, name: str) -> Iterator[Figure]:
    for label in row.cells:
        if label != comparison.base:
            for amount, attribute in _RATIOS:
                yield f"{name}.{amount}.{label}", row.ratio(label, comparison.base, attribute)


def _workloads(comparison: Comparison) -> Iterator[Figure]:
    engines = comparison.engines
    for row in whole_rows(comparison, engines):
        yield from _ratios(comparison, row, f"on.{row.workload}.whole")
        for operation in dict.fromkeys((FAULT, focus(row.workload))):
            focused = row_of(comparison, operation, row.workload, engines)
            yield from _ratios(comparison, focused, f"on.{row.workload}.{short(operation)}")


def _growth(comparison: Comparison, growth: Growth) -> Iterator[Figure]:
    name = f"growth.{growth.workload}"
    for label in growth.cells:
        for size in growth.sizes:
            cell = growth.cell(label, size)
            if cell is not None:
                for amount, attribute in _GROWN:
                    yield f"{name}.{amount}.{label}.{size:g}", getattr(cell, attribute)
                if label != comparison.base:
                    for amount, attribute in _RATIOS:
                        value = growth.ratio(label, comparison.base, size, attribute)
                        yield f"{name}.{amount}.{label}.{size:g}", value
        for amount, attribute in _GROWN:
            yield f"{name}.{amount}_factor.{label}", growth.factor(label, attribute)


def _memory(comparison: Comparison) -> Iterator[Figure]:
    for one in comparison.measurements:
        if one.peak is not None:
            name = f"memory.{one.workload}"
            yield f"{name}.used.{one.label}.{one.size:g}", one.peak.used
            yield f"{name}.reserved.{one.label}.{one.size:g}", one.peak.reserved


def _policies(comparison: Comparison) -> Iterator[Figure]:
    for one in comparison.measurements:
        default = policy_base(comparison, one)
        if default is None:
            continue
        name = f"policy.{policy_name(one)}.{one.workload}"
        pairs: list[tuple[str, OperationFigures | None, OperationFigures | None]] = [
            ("whole", one.whole, default.whole),
            *((operation, one.operation(operation), default.operation(operation)) for operation in one.operations),
        ]
        for operation, changed, usual in pairs:
            if changed is not None and usual is not None:
                for amount, attribute in _OF_POLICIES:
                    value = ratio(getattr(changed, attribute), getattr(usual, attribute))
                    yield f"{name}.{short(operation)}.{amount}", value
        if one.peak is not None and default.peak is not None:
            yield f"{name}.used_ratio", ratio(one.peak.used, default.peak.used)
            yield f"{name}.reserved_ratio", ratio(one.peak.reserved, default.peak.reserved)


def policy_base(comparison: Comparison, one: Measurement) -> Measurement | None:
    """The same engine with its defaults on the same workload, of a standard one that has another policy; else None."""
    if not one.subject.policies or not one.standard:
        return None
    return comparison.find(one.subject.engine, one.workload)


def policy_name(one: Measurement) -> str:
    """``backlinks=none``; with the engine's name before it for another than XI."""
    return one.label.removeprefix("xi ")


def _domains(comparison: Comparison) -> Iterator[Figure]:
    for one in comparison.domains:
        name = f"domain.{one.pool}.{one.neighbour}"
        for amount in ("calls", "words", "total_us", "p50_us", "p99_us"):
            yield f"{name}.{amount}", getattr(one.faults, amount)
