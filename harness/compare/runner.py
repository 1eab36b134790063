"""Runs workloads through engines in turns, and makes `Measurement`s of what the passes noted."""

from __future__ import annotations

import gc
import traceback
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from harness.compare.clock import CALLS, FAULT_CODE, IDLE_CODE, WORDS, Inside, InsideTimes, Make, Outside, Pass, Tally
from harness.compare.measurement import FAULT_KINDS, Left, Measurement, OperationFigures, Subject, distribution
from harness.engines import engine_class
from harness.work import OPERATIONS, Work
from harness.workload.workload import DONE, MEASURED, WorkloadError

if TYPE_CHECKING:
    from harness.engine import EngineConfig, MachineMemory, ShadowEngine
    from harness.workload.workload import Workload

NS: Final = 1000.0  # in a microsecond
TELLS_WORK: Final = ("operations", "work", "done", "held")  # what makes an engine's class a `harness.work.Counted`

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Tell = Callable[[str, str], None]
"""Told before each run of a workload: the subject's label, and the case's title."""


@dataclass(frozen=True, slots=True)
class Case:
    """One workload of one size, and who is compared on it. name: of the workload; knob, size, standard: see
    `Measurement`. rounds: how often each
    subject's time is taken. inside: the operations inside the engine are timed too."""

    workload: Workload
    name: str
    knob: str
    size: float
    standard: bool
    subjects: Sequence[Subject]
    rounds: int
    inside: Sequence[Subject] = ()
    once: Sequence[Subject] = ()

    @property
    def title(self) -> str:
        return f"{self.name} {self.knob}={self.size:g}" if self.knob else self.name

    @property
    def runs(self) -> int:
        """How often the workload is run, at most: some engines tell nothing of their inside."""
        return len(self.subjects) * self.rounds - len(self.once) * (self.rounds - 1) + 2 * len(self.inside)


class Broken(Exception):
    """A subject cannot be measured: what it answered is wrong, or it raised."""


class Maker:
    """The factory of one subject's engines, as a `Workload` takes it. engine: the last that it made."""

    def __init__(self, subject: Subject, measured: Pass) -> None:
        """Raises ValueError for an engine that there is none of."""
        made: Any = engine_class(subject.engine)
        if hasattr(made, "frames_per_table"):
            self.frames_per_table = made.frames_per_table
        self._options = dict(subject.policies)
        self._make: Make = measured.make(made)
        self._measured = measured
        self.engine: ShadowEngine | None = None

    def __call__(self, config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
        self.engine = self._make(replace(config, options=config.options | self._options), memory)
        return self.engine

    def mark(self, part: str) -> None:
        """The workload has come to `part`."""
        assert self.engine is not None, "a part of a workload begins when its engine was made"
        if part == MEASURED:
            self._measured.begin(self.engine)
        else:
            self._measured.end(self.engine, part == DONE)


@dataclass(slots=True)
class _Passes:
    """What was noted of one subject on one case."""

    outside: list[Outside]
    inside: Inside | None = None
    times: InsideTimes | None = None


def measure(case: Case, cost: float, tell: Tell) -> tuple[list[Measurement], list[Left]]:
    """Each subject's measurement, and those that could not be measured. cost: see `InsideTimes`.

    The subjects take turns, every second round in the opposite order: so a machine whose speed changes shows as a
    spread of the rounds, and not as a ratio of the subjects. Raises ValueError for an engine that there is none of.
    """
    passes = {subject: _Passes([]) for subject in case.subjects}
    left: dict[Subject, str] = {}

    def in_turn(subjects: Iterable[Subject], note: Callable[[Subject], None]) -> None:
        for subject in subjects:
            if subject not in left:
                tell(subject.label, case.title)
                try:
                    note(subject)
                except Broken as error:
                    left[subject] = str(error)

    def outside(subject: Subject) -> None:
        noted = Outside(_tells_work(subject))
        _run(case, subject, noted)
        _must_be_the_same(noted.codes, passes[subject].outside)
        passes[subject].outside.append(noted)

    def inside(subject: Subject) -> None:
        passes[subject].inside = noted = Inside(_inner(subject) if _tells_work(subject) else {})
        _run(case, subject, noted)
        _must_be_the_same(noted.codes, passes[subject].outside)

    def times(subject: Subject) -> None:
        noted = InsideTimes(_inner(subject), cost)
        _run(case, subject, noted)
        passes[subject].times = noted

    for turn in range(case.rounds):
        turns = [each for each in case.subjects if not turn or each not in case.once]
        in_turn(turns[:: -1 if turn % 2 else 1], outside)
    in_turn(case.inside, inside)
    in_turn(filter(_tells_work, case.inside), times)
    measured = [_measurement(case, subject, noted) for subject, noted in passes.items() if subject not in left]
    return measured, [Left(subject.label, case.title, why, True) for subject, why in left.items()]


def _must_be_the_same(codes: array[int], others: Sequence[Outside]) -> None:
    for other in others:
        if other.codes != codes:
            raise Broken(f"it was called {len(other.codes)} times in one run and {len(codes)} times in another")


def _tells_work(subject: Subject) -> bool:
    return all(hasattr(engine_class(subject.engine), name) for name in TELLS_WORK)


def _inner(subject: Subject) -> Mapping[str, str]:
    made: Any = engine_class(subject.engine)
    inner: Mapping[str, str] = made.operations
    return inner


def check_operations(subject: Subject) -> None:
    """Raises ValueError, one line, where an engine tells of methods that it has not, or of operations that there are
    not."""
    if not _tells_work(subject):
        return
    made, inner = engine_class(subject.engine), _inner(subject)
    unknown = sorted(set(inner) - set(OPERATIONS))
    if unknown:
        known = ", ".join(OPERATIONS)
        raise ValueError(f"engine {subject.engine}: its operations name {', '.join(unknown)} (known: {known})")
    missing = sorted(method for method in inner.values() if not hasattr(made, method))
    if missing:
        raise ValueError(f"engine {subject.engine}: its operations name methods that it has not: {', '.join(missing)}")


def _run(case: Case, subject: Subject, measured: Pass) -> None:
    """Raises Broken with one line that says what is wrong with the subject."""
    maker = Maker(subject, measured)
    collects = gc.isenabled()
    gc.collect()
    gc.disable()  # nothing here makes cycles, and a full collection takes some 25 ms
    try:
        case.workload.run(maker, maker.mark)
    except WorkloadError as error:
        raise Broken(str(error)) from error
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}"
        raise Broken(f"{type(error).__name__}: {error} ({where})") from error
    finally:
        if collects:
            gc.enable()


# What the passes noted, as figures.


def _measurement(case: Case, subject: Subject, noted: _Passes) -> Measurement:
    workload, last = case.workload, noted.outside[-1]
    held = last.held
    return Measurement(
        subject=subject,
        workload=case.name,
        knob=case.knob,
        size=case.size,
        standard=case.standard,
        knobs=dict(workload.knobs),
        facts=dict(workload.facts),
        operations=_operations(noted),
        whole=Calls(noted.outside).whole(),
        held=held[-1] if held else None,
        peak=max(held, key=lambda one: one.used) if held else None,
        counters=last.counters,
    )


def _operations(noted: _Passes) -> dict[str, OperationFigures]:
    inside = noted.inside
    calls = Calls(noted.outside, inside.kinds if inside is not None else None)
    found: dict[str, OperationFigures] = {}
    for name, operation in OPERATIONS.items():
        if inside is not None and name in inside.tallies:
            times = noted.times.tallies[name] if noted.times is not None else None
            found[name] = _inside_figures(inside.tallies[name], inside.done.get(name), times)
        elif operation.calls:
            found[name] = calls.of(operation.calls)
    if inside is not None:
        for kind, name in enumerate(FAULT_KINDS):
            found[name] = calls.faults(kind)
    for name in CALLS:
        if name not in found:
            found[name] = calls.of([name])
    return {name: figures for name, figures in found.items() if figures.calls}


class Calls:
    """The calls from outside, all rounds of one subject beside one another."""

    def __init__(self, rounds: Sequence[Outside], kinds: array[int] | None = None) -> None:
        """kinds: what the faults came to, if it is known: see `Inside`."""
        first = rounds[0]
        self._codes = np.array(first.codes, np.int64)
        self._kinds = np.array(kinds, np.int64) if kinds is not None else np.zeros_like(self._codes)
        self._work = np.array([list(values) for values in first.work], np.int64)
        self._ns = np.array([list(each.ns) for each in rounds], np.int64)

    def whole(self) -> OperationFigures:
        """Of all calls, but for idle moments."""
        return self._figures(self._codes != IDLE_CODE)

    def of(self, names: Sequence[str]) -> OperationFigures:
        """Of the calls of `names`."""
        return self._figures(np.isin(self._codes, [CALLS.index(name) for name in names]))

    def faults(self, kind: int) -> OperationFigures:
        """Of the faults that came to `kind`."""
        return self._figures((self._codes == FAULT_CODE) & (self._kinds == kind))

    def _figures(self, chosen: Mask) -> OperationFigures:
        work = self._work[:, chosen] if len(self._work) else None
        return OperationFigures(
            calls=int(np.count_nonzero(chosen)),
            work=None if work is None else Work(*work.sum(axis=1).tolist()),
            words_at=() if work is None else distribution(work[:WORDS].sum(axis=0)),
            **_timed(self._ns[:, chosen]),
        )


def _timed(ns: Numbers, whole: Mask | None = None) -> dict[str, Any]:
    """The times of `OperationFigures`. ns: of shape (rounds, calls). whole: the calls that count for totals, if those
    are not all."""
    fastest = ns.min(axis=0) / NS
    chosen = slice(None) if whole is None else whole
    rounds = tuple((ns[:, chosen].sum(axis=1) / NS).tolist())
    return {"us_at": distribution(fastest), "total_us": float(fastest[chosen].sum()), "rounds_us": rounds}


def _inside_figures(counted: Tally, done: int | None, timed: Tally | None) -> OperationFigures:
    times: dict[str, Any] = {}
    if timed is not None:
        times = _timed(np.array([timed.amounts], np.int64), np.array(timed.whole, np.bool_))
    return OperationFigures(
        calls=counted.calls if done is None else done,
        work=Work(*counted.work),
        words_at=distribution(np.array(counted.amounts, np.int64)),
        inside=True,
        told=None if done is None else counted.calls,
        **times,
    )
