"""What was measured: engines' operations on workloads, as plain records that go into JSON as they are.

Two kinds of numbers stand in them. Counts (calls, words of tables touched, pages) come out the same each time that the
same workload is run through the same engine: they are the primary result. Times are those of this machine at that
moment, in microseconds of Python, and mean something only beside another engine's in the same `Comparison`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.work import Held, Work

SCHEMA: Final = 1

FAULT: Final = "shadow_fault"
# What a fault came to. Each is an operation of its own beside `shadow_fault`, which is all of them.
FILL: Final = "shadow_fault.fill"  # RETRY: the shadow was filled
TABLE_WRITE: Final = "shadow_fault.table_write"  # RETRY, after a first store to a table that was in sync
INJECT: Final = "shadow_fault.inject"  # the guest gets a fault
OTHER: Final = "shadow_fault.other"  # MMIO, #GP, or a frame that was taken away
FAULT_KINDS: Final = (FILL, TABLE_WRITE, INJECT, OTHER)

# Where a distribution is told, in percent.
PERCENTS: Final = (0.0, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)
P50, P99, MOST = PERCENTS.index(50.0), PERCENTS.index(99.0), PERCENTS.index(100.0)


def distribution(values: npt.NDArray[Any] | Sequence[float]) -> tuple[float, ...]:
    """`values` at PERCENTS, each one that occurs (no interpolation); empty when there are none."""
    if not len(values):
        return ()
    found = np.percentile(np.asarray(values), PERCENTS, method="inverted_cdf")
    return tuple(float(value) for value in found)


@dataclass(frozen=True, slots=True)
class OperationFigures:
    """One operation of one engine on one workload.

    calls: how many. work: of all together; None where the engine does not tell. words_at: words of tables touched by a
    call, at PERCENTS. us_at: microseconds of a call at PERCENTS; empty when no time was taken. total_us: of all calls
    together; None when no time was taken. Of the rounds each call's fastest counts, since it is the same call in each.
    rounds_us: all calls together, round by round. inside: measured within the engine, from the begin of one of its own
    methods to its end, what it called in turn included; otherwise by who called it. told: calls that work and times are
    of, if those are not all: an engine may do many at once in a way of its own.
    """

    calls: int
    work: Work | None = None
    words_at: tuple[float, ...] = ()
    us_at: tuple[float, ...] = ()
    total_us: float | None = None
    rounds_us: tuple[float, ...] = ()
    inside: bool = False
    told: int | None = None

    @property
    def words(self) -> int | None:
        """Words of tables touched by all calls: visited, compared, written and copied. None: not told."""
        return None if self.work is None else self.work.words

    @property
    def words_per_call(self) -> float | None:
        return self._per_call(self.words)

    @property
    def pages_per_call(self) -> float | None:
        return None if self.work is None else self._per_call(self.work.pages_allocated)

    def _per_call(self, amount: float | None) -> float | None:
        calls = self.calls if self.told is None else self.told
        return None if amount is None or not calls else amount / calls

    @property
    def first_us(self) -> float | None:
        """All calls together in the first round, which all subjects have."""
        return self.rounds_us[0] if self.rounds_us else None

    @property
    def us_per_call(self) -> float | None:
        return self._per_call(self.total_us)

    @property
    def p50_us(self) -> float | None:
        return self.us_at[P50] if self.us_at else None

    @property
    def p99_us(self) -> float | None:
        return self.us_at[P99] if self.us_at else None

    @property
    def most_words(self) -> float | None:
        """Words touched by the call that touched most."""
        return self.words_at[MOST] if self.words_at else None

    @property
    def spread(self) -> float | None:
        """The slowest round by the fastest. None with fewer than two."""
        return max(self.rounds_us) / min(self.rounds_us) if len(self.rounds_us) > 1 and min(self.rounds_us) else None

    def to_json(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in _TOLD}
        return {"calls": self.calls, **(self.work._asdict() if self.work else {}), **told}


_TOLD: Final = (
    *("words", "words_per_call", "most_words", "words_at", "p50_us", "p99_us", "total_us", "us_per_call", "us_at"),
    *("rounds_us", "spread", "inside", "told"),
)


def _held_json(held: Held | None) -> dict[str, int] | None:
    return None if held is None else {**held._asdict(), "used": held.used}


@dataclass(frozen=True, slots=True)
class Subject:
    """An engine with the policies that it is compared under. policies: those that are not its defaults."""

    engine: str
    policies: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """``xi``, ``xi backlinks=none``: the name of a column, and the last part of a figure's."""
        return " ".join([self.engine, *(f"{name}={value}" for name, value in self.policies)])


@dataclass(frozen=True, slots=True)
class Measurement:
    """One subject on one workload.

    workload: the family's name, with what was chosen for it (``faults``, ``faults:spaces=8``, ``trace:churn/long4``);
    knob and size: the knob that is grown and its value here ("" and 0 where none is); knobs: all of them. standard: it
    is this size that stands for the workload where only one is shown. facts: how large the guest is, by name (such as
    pages, tables, spaces).
    operations: by the names of `harness.work.OPERATIONS`, FAULT_KINDS and, for what else was called from outside, the
    names of ShadowEngine's methods. whole: all that was asked of the engine in the measured part, but for its idle
    moments, for which nobody waits. held: at the end; peak: when most was in use, as far as was looked; None where the
    engine does not tell. counters: of the engine's own stats() at the end those that are numbers.
    """

    subject: Subject
    workload: str
    knob: str
    size: float
    standard: bool
    knobs: Mapping[str, Any]
    facts: Mapping[str, int]
    operations: Mapping[str, OperationFigures]
    whole: OperationFigures
    held: Held | None = None
    peak: Held | None = None
    counters: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.subject.label

    @property
    def family(self) -> str:
        """Of the workload, whatever was chosen for it."""
        return self.workload.partition(":")[0]

    def operation(self, name: str) -> OperationFigures | None:
        """None when it was never called."""
        found = self.operations.get(name)
        return found if found is not None and found.calls else None

    def to_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "engine": self.subject.engine,
            "policies": dict(self.subject.policies),
            "workload": self.workload,
            "knob": self.knob,
            "size": self.size,
            "standard": self.standard,
            "knobs": dict(self.knobs),
            "facts": dict(self.facts),
            "operations": {name: figures.to_json() for name, figures in self.operations.items()},
            "whole": self.whole.to_json(),
            "held": _held_json(self.held),
            "peak": _held_json(self.peak),
            "counters": dict(self.counters),
        }


@dataclass(frozen=True, slots=True)
class Domain:
    """A quiet domain's faults beside a neighbour's. pool: ``reserved`` or ``shared``; neighbour: ``none``, or what it
    is, such as ``greedy``. faults, whole: of the quiet domain. counters: of its engine."""

    pool: str
    neighbour: str
    faults: OperationFigures
    whole: OperationFigures
    counters: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "pool": self.pool,
            "neighbour": self.neighbour,
            "faults": self.faults.to_json(),
            "whole": self.whole.to_json(),
            "counters": dict(self.counters),
        }


@dataclass(frozen=True, slots=True)
class Left:
    """What was to be measured and was not. wrong: because the engine's answers were (or it raised); else there was
    nothing to measure it with."""

    label: str
    workload: str
    reason: str
    wrong: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run of `compare`. base: the label that ratios are taken to. machine: facts of where it ran. rounds: how often
    each time was taken. seconds: of the whole. interrupted: it was ended before all was measured."""

    command: str
    base: str
    rounds: int
    quick: bool
    machine: Mapping[str, Any]
    measurements: tuple[Measurement, ...]
    domains: tuple[Domain, ...] = ()
    left: tuple[Left, ...] = ()
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def labels(self) -> list[str]:
        """In the order in which they were asked for."""
        return list(dict.fromkeys(one.label for one in self.measurements))

    @property
    def engines(self) -> list[str]:
        """The labels that are an engine with its default policies."""
        return list(dict.fromkeys(one.label for one in self.measurements if not one.subject.policies))

    @property
    def workloads(self) -> list[str]:
        return list(dict.fromkeys(one.workload for one in self.measurements))

    def series(self, label: str, workload: str) -> list[Measurement]:
        """Of one subject on one workload, in order of their size."""
        found = (one for one in self.measurements if one.label == label and one.workload == workload)
        return sorted(found, key=lambda one: one.size)

    def find(self, label: str, workload: str, size: float | None = None) -> Measurement | None:
        """The one of that size, without it the one that is standard; None when it was not measured."""
        found = (one for one in self.series(label, workload) if (one.standard if size is None else one.size == size))
        return next(found, None)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "command": self.command,
            "base": self.base,
            "rounds": self.rounds,
            "quick": self.quick,
            "seconds": self.seconds,
            "interrupted": self.interrupted,
            "machine": dict(self.machine),
            "percents": list(PERCENTS),
            "measurements": [one.to_json() for one in self.measurements],
            "domains": [one.to_json() for one in self.domains],
            "left": [one.to_json() for one in self.left],
        }
