"""What follows from a comparison for each claim and each debate of the XI discussion, in sentences with their numbers.

Nothing here knows how it will come out: every sentence is put together from what was measured, and one that could not
be measured is not said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from harness.compare.measurement import FAULT, Comparison, Domain, Measurement, OperationFigures
from harness.compare.tables import Growth, Row, growths, home, operation_rows, ratio, row_of, whole_rows

CLAIMED: Final = 4.0  # times faster
PREDECESSOR: Final = "xen302"  # than this, as the thread has it
SIZES: Final = frozenset({"pages", "leaves", "spaces"})  # knobs that make a guest large
FLAT: Final = 1.2  # grows less than this: flat
SEARCH: Final = 2.0  # an operation that touches so many times the words has become a search
SAME: Final = 1.05  # within this: the same


@dataclass(frozen=True, slots=True)
class Verdict:
    """topic: a word; claim: what was said or asked; holds: whether it came out so, None where that is no question of
    yes or no. text: the sentences."""

    topic: str
    claim: str
    holds: bool | None
    text: str

    def to_json(self) -> dict[str, str | bool | None]:
        return {"topic": self.topic, "claim": self.claim, "holds": self.holds, "text": self.text}


def verdicts(comparison: Comparison) -> list[Verdict]:
    """In the order in which they are read; those that were not measured are missing."""
    found = [*_headline(comparison), *_growth(comparison), *_policies(comparison), _shared(comparison)]
    return [one for one in found if one is not None]


# Numbers in sentences.


def number(value: float) -> str:
    """A few digits: ``0.042``, ``0.48``, ``3.1``, ``42``, ``12,300``."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def size(count: float) -> str:
    """Bytes: ``512 KiB``, ``3.1 MiB``."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _from_to(first: float | None, last: float | None) -> str:
    return "" if first is None or last is None else f"{number(first)} → {number(last)}"


# The headline.


def _headline(comparison: Comparison) -> Iterator[Verdict]:
    base = comparison.base
    workload = home(comparison, FAULT, [base])
    if workload is None:
        return
    row = row_of(comparison, FAULT, workload, comparison.engines)
    everything = next(each for each in whole_rows(comparison, comparison.engines) if each.workload == workload)
    for rival in comparison.engines:
        time = row.ratio(rival, base, "total_us")
        if rival == base or time is None:
            continue
        measured = comparison.find(base, workload)
        pages = measured.facts.get("pages") if measured is not None else None
        where = f"{workload} ({pages:,} pages mapped)" if pages else workload
        times_faster = CLAIMED if rival == PREDECESSOR else 1.0
        text = [
            f"On {where} {rival} takes {number(time)} times the time of {base} for its shadow faults"
            f"{_and_work(row, rival, base)}.",
            _all_together(everything, rival, base),
            _where(comparison, rival),
            _sizes(comparison, rival),
        ]
        faster = f"{CLAIMED:g} times faster" if rival == PREDECESSOR else "faster"
        claim = f"a page fault is {faster} with {base} than with {rival}"
        yield Verdict("headline", claim, time >= times_faster, " ".join(filter(None, text)))


def _and_work(row: Row, rival: str, base: str) -> str:
    work, theirs, own = row.ratio(rival, base, "words"), row.cells[rival], row.cells[base]
    if work is None or theirs is None or own is None:
        return " (it tells nothing of its work)"
    each = f"{number(theirs.words_per_call or 0)} words a fault against {number(own.words_per_call or 0)}"
    count = "" if theirs.calls == own.calls else f", in {theirs.calls:,} faults against {own.calls:,}"
    return f" and touches {number(work)} times the words of tables ({each}{count})"


def _all_together(row: Row, rival: str, base: str) -> str:
    time, work = row.ratio(rival, base, "total_us"), row.ratio(rival, base, "words")
    if time is None:
        return ""
    and_work = f" and {number(work)} times the work" if work is not None else ""
    return f"With CR3 loads, INVLPG and all else there it is {number(time)} times the time{and_work}."


def _where(comparison: Comparison, rival: str) -> str:
    """On which of the operations, each on the workload that shows it, the claimed ratio is reached."""
    reached: list[str] = []
    missed: list[str] = []
    for row in operation_rows(comparison, comparison.engines, kinds=False):
        time = row.ratio(rival, comparison.base, "total_us")
        if time is not None:
            (reached if time >= CLAIMED else missed).append(f"{row.operation} ({number(time)})")
    if not reached:
        return f"By operation it is below {CLAIMED:g} times in time in all: {_listed(missed)}." if missed else ""
    text = f"By operation it is {CLAIMED:g} times or more in time in {_listed(reached)}"
    return f"{text}, and less in {_listed(missed)}." if missed else f"{text}."


def _sizes(comparison: Comparison, rival: str) -> str:
    """How the ratios for a fault change as the guest grows."""
    parts = []
    for growth in growths(comparison, comparison.engines):
        if growth.operation != FAULT or growth.knob not in SIZES:
            continue
        measured = [each for each in growth.sizes if growth.ratio(rival, comparison.base, each, "total_us") is not None]
        if len(measured) > 1:
            ends = measured[0], measured[-1]
            time, work = (
                _from_to(*(growth.ratio(rival, comparison.base, end, amount) for end in ends))
                for amount in ("total_us", "words")
            )
            and_work = f", in work {work}" if work else ""
            parts.append(f"{growth.workload} from {ends[0]:,g} to {ends[1]:,g} {growth.knob}: in time {time}{and_work}")
    return f"As the guest grows ({'; '.join(parts)})." if parts else ""


# How it grows.


def _growth(comparison: Comparison) -> Iterator[Verdict]:
    """One for each operation that was measured in several sizes."""
    base = comparison.base
    by_operation: dict[str, list[Growth]] = {}
    for growth in growths(comparison, comparison.engines):
        if any(growth.cell(base, each) is not None for each in growth.sizes):
            by_operation.setdefault(growth.operation, []).append(growth)
    for operation, found in by_operation.items():
        factors = [factor for growth in found if growth.knob in SIZES for factor in _factor(growth, base)]
        claim = f"{operation} costs {base} the same, however large the guest" if factors else f"how {operation} grows"
        text = " ".join(_series(growth, comparison.engines) for growth in found)
        yield Verdict("growth", claim, max(factors) <= FLAT if factors else None, f"Words of one call: {text}")


def _factor(growth: Growth, label: str) -> Iterator[float]:
    """Words of a call at the largest size by those at the smallest, where both are known."""
    cells = growth.cell(label, growth.sizes[0]), growth.cell(label, growth.sizes[-1])
    first, last = (None if cell is None else cell.words_per_call for cell in cells)
    if first is not None and last is not None:
        yield last / first if first else math.inf if last else 1.0


def _series(growth: Growth, labels: Sequence[str]) -> str:
    parts = []
    for label in labels:
        sizes = [each for each in growth.sizes if growth.cell(label, each) is not None]
        cells = [growth.cell(label, each) for each in sizes]
        words = [cell.words_per_call for cell in cells if cell is not None]
        if len(words) > 1:
            short_of = "" if sizes[-1] == growth.sizes[-1] else f" (up to {sizes[-1]:,g})"
            parts.append(f"{label} {_from_to(words[0], words[-1])}{_in_time(growth, label, sizes)}{short_of}")
    where = f"{growth.workload}, {growth.sizes[0]:,g} → {growth.sizes[-1]:,g} {growth.knob}"
    return f"{where}: {', '.join(parts)}."


def _in_time(growth: Growth, label: str, sizes: Sequence[float]) -> str:
    first, last = growth.cell(label, sizes[0]), growth.cell(label, sizes[-1])
    if first is None or last is None or first.p50_us is None or last.p50_us is None:
        return ""
    return f" ({_from_to(first.p50_us, last.p50_us)} µs)"


# Policies.


@dataclass(frozen=True, slots=True)
class Change:
    """What a policy does to an operation, on the workload that shows it: before and after."""

    operation: str
    workload: str
    before: OperationFigures
    after: OperationFigures

    @property
    def work(self) -> float | None:
        """Of all calls together; None also where neither did any."""
        return ratio(self.after.words, self.before.words)

    @property
    def time(self) -> float | None:
        return ratio(self.after.first_us, self.before.first_us)

    @property
    def is_search(self) -> bool:
        """Whether the policy made a search of it: many more words, and all of them looked at."""
        before, after = self.before.work, self.after.work
        if before is None or after is None:
            return False
        more = after.sptes_visited - before.sptes_visited
        return more > (SEARCH - 1) * max(before.words, 1) and self.after.calls > 0

    def __str__(self) -> str:
        before, after = self.before.words_per_call, self.after.words_per_call
        time = f", {number(self.time)} times the time" if self.time is not None else ""
        if before is None or after is None:
            return f"{self.operation}{time}"
        return f"{self.operation} {number(before)} → {number(after)} words a call{time}"


def changes(comparison: Comparison, label: str, engine: str) -> list[Change]:
    """What the policies of `label` do to each operation that both it and the default did."""
    out = []
    for row in operation_rows(comparison, [label], kinds=False):
        usual = row_of(comparison, row.operation, row.workload, [engine]).cells[engine]
        changed = row.cells[label]
        if usual is not None and changed is not None:
            out.append(Change(row.operation, row.workload, usual, changed))
    return out


def _policies(comparison: Comparison) -> Iterator[Verdict]:
    for label in comparison.labels:
        one = next(each for each in comparison.measurements if each.label == label)
        if not one.subject.policies:
            continue
        found = changes(comparison, label, one.subject.engine)
        memory = _memory(comparison, label, one.subject.engine)
        if not found and not memory:
            continue
        claim, tell = _DEBATES.get(one.subject.policies[0] if len(one.subject.policies) == 1 else ("", ""), _OTHER)
        yield Verdict(label, claim, None, " ".join(filter(None, [memory, tell(found)])))


def _pair(comparison: Comparison, label: str, engine: str) -> tuple[Measurement, Measurement] | None:
    """(default, changed) on the workload of the headline, else on the first that both were measured on."""
    shared = [name for name in comparison.workloads if comparison.find(label, name) and comparison.find(engine, name)]
    name = next((name for name in shared if name.partition(":")[0] == "faults"), next(iter(shared), ""))
    usual, changed = comparison.find(engine, name), comparison.find(label, name)
    return (usual, changed) if usual is not None and changed is not None else None


def _memory(comparison: Comparison, label: str, engine: str) -> str:
    pair = _pair(comparison, label, engine)
    if pair is None or pair[0].peak is None or pair[1].peak is None:
        return ""
    usual, changed = pair[0].peak, pair[1].peak
    used = ratio(changed.used, usual.used)
    if used is None:
        return ""
    difference = (
        "the same memory in use"
        if 1 / SAME < used < SAME
        else f"{abs(100 * (1 - used)):.0f} % {'less' if used < 1 else 'more'} memory in use"
    )
    of = f"{size(changed.used)} against {size(usual.used)}"
    reserved = "" if changed.reserved == usual.reserved else _reserved(changed.reserved, usual.reserved)
    return f"On {pair[0].workload}: {difference} ({of}){reserved}."


def _reserved(now: int, before: int) -> str:
    return f", and {size(now)} reserved instead of {size(before)}"


def _set_apart(found: Sequence[Change], chosen: Callable[[Change], bool]) -> tuple[list[Change], list[Change]]:
    return [one for one in found if chosen(one)], [one for one in found if not chosen(one)]


def _is_same(one: Change) -> bool:
    if one.work is None:
        return not one.after.words and not one.before.words
    return 1 / SAME < one.work < SAME


def _dynamic(found: Sequence[Change]) -> str:
    made, others = _set_apart(found, lambda one: one.operation in _MAKING and not _is_same(one))
    return " ".join(filter(None, [_told("It costs", made), _rest(others)]))


def _searches(found: Sequence[Change]) -> str:
    searches, others = _set_apart(found, lambda one: one.is_search)
    searches.sort(key=lambda one: -(one.work or 0))
    told = _told("It turns into searches", searches) or "It turns nothing into a search."
    return " ".join(filter(None, [told, _rest(others)]))


def _zeroing(found: Sequence[Change]) -> str:
    on_path, others = _set_apart(found, lambda one: one.operation in (*_MAKING, FAULT) and not _is_same(one))
    return " ".join(filter(None, [_told("On the critical path", on_path), _rest(others)]))


def _rest(found: Sequence[Change]) -> str:
    same, changed = _set_apart(found, _is_same)
    told = _told("It changes", changed)
    kept = f"The same work as before: {_listed([one.operation for one in same])}." if same else ""
    return " ".join(filter(None, [told, kept]))


def _told(what: str, found: Sequence[Change]) -> str:
    return f"{what}: {'; '.join(f'{one} (on {one.workload})' for one in found)}." if found else ""


_MAKING: Final = ("spti_make_shadow", "spti_made")
Tell = Callable[[Sequence[Change]], str]
_OTHER: Final[tuple[str, Tell]] = ("what the policy costs and saves", _rest)
_DEBATES: Final[dict[tuple[str, str], tuple[str, Tell]]] = {
    ("snapshots", "dynamic"): (
        "it would be better to manage these snapshot pages dynamically, and sync when spti_make_shadow is invoked",
        _dynamic,
    ),
    ("backlinks", "gpt-only"): ("is it reasonable to implement the back link only for the GPT pages?", _searches),
    ("backlinks", "none"): (
        "one could do without backlinks, if one were willing to put up with linear searching",
        _searches,
    ),
    ("zeroing", "critical-path"): ("the zeroing is irksome: the idle loop should keep SPTIs pre-zeroed", _zeroing),
}


# The shared pool.


def _shared(comparison: Comparison) -> Verdict | None:
    domains = {(one.pool, one.neighbour): one for one in comparison.domains}
    parts = []
    suffered: dict[str, float] = {}  # by pool: the quiet domain's faults beside the worst neighbour, by those alone
    for pool in dict.fromkeys(one.pool for one in comparison.domains):
        alone = domains.get((pool, "none"))
        for neighbour in dict.fromkeys(one.neighbour for one in comparison.domains if one.neighbour != "none"):
            beside = domains.get((pool, neighbour))
            if alone is not None and beside is not None:
                worse = ratio(beside.faults.calls, alone.faults.calls)
                suffered[pool] = max(suffered.get(pool, 0.0), worse or 0.0)
                parts.append(_beside(pool, neighbour, alone, beside))
    if not parts:
        return None
    shared, reserved = suffered.get("shared"), suffered.get("reserved")
    holds = None if shared is None or reserved is None else shared > SAME >= reserved
    claim = "sharing is perilous: each domain's behaviour then depends on the good behaviour of other domains"
    return Verdict("pool=shared", claim, holds, " ".join(parts))


def _beside(pool: str, neighbour: str, alone: Domain, beside: Domain) -> str:
    text = f"With pools {pool}, a quiet domain beside a {neighbour} one has {beside.faults.calls:,} faults, alone "
    text += f"{alone.faults.calls:,}"
    time, work = ratio(beside.whole.total_us, alone.whole.total_us), ratio(beside.whole.words, alone.whole.words)
    costs = [
        f"{number(value)} times the {name}" for name, value in (("work", work), ("time", time)) if value is not None
    ]
    return f"{text}; all it asks costs {_listed(costs)}." if costs else f"{text}."
