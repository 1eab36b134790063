"""What is compared with what: engines, policies and workloads as they were asked for, and as they are by default."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.compare.measurement import Subject
from harness.compare.runner import Case, check_operations
from harness.compare.tables import focus
from harness.engines import check_policies, engine_class, find_engine
from harness.options import parse_policies
from harness.work import OPERATIONS
from harness.workload import SYNTHETIC

if TYPE_CHECKING:
    from harness.workload import Family, Knobs

BASE: Final = "xi"
ENGINES: Final = ("xi", "xen302", "kvm", "eager")
ROUNDS: Final = 2
QUICK_ROUNDS: Final = 1
HEADLINE: Final = "faults"  # the family that all operations are looked at on, and whose faults are told apart
DOMAINS: Final = "domains"
TRACE: Final = "trace"
# What shows what a policy changes: all operations, and the memory.
POLICY_FAMILIES: Final = ("faults", "fork", "promote", "remap", "large", "dirty")
# What half a minute is enough for.
QUICK_POLICIES: Final = ("fork", "promote", "remap")
GROWN: Final = ("mappings", "promote")  # families that are measured in all their sizes, whatever is asked for
QUICK_GROWN: Final = ("faults", "mappings", "promote")  # of these families in more than one size
QUICK_FAMILIES: Final = ("faults", "mappings", "spaces", "fork", "promote", "remap", "large", "dirty")
SMALL_ONLY: Final = frozenset({"eager"})  # engines that take minutes where the guest is larger than usual
RECORDED: Final = "churn/long4"  # the run that is recorded when nothing is asked for
DOMAIN_RUNS: Final = 6
SHARED: Final = ("pool", "shared")  # a policy of several domains: see `harness.workload.domains`


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for. workloads, policies: the words of the command line; without workloads, all there are, and
    with them the policies that XI knows. rounds: None for the usual number."""

    engines: Sequence[str] = ENGINES
    workloads: Sequence[str] = ()
    policies: Sequence[str] = ()
    rounds: int | None = None
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """A guest of the catalogue that is recorded before its trace is measured."""

    name: str
    guest: str
    paging: str
    subjects: Sequence[Subject]
    rounds: int

    @property
    def runs(self) -> int:
        return len(self.subjects) * self.rounds

    def case(self, trace: Path) -> Case:
        """With the `trace` that was recorded. Raises TraceError."""
        from harness.workload.traces import TraceWorkload  # noqa: PLC0415 - the engines' own modules

        return Case(TraceWorkload(trace), self.name, "", 0, True, self.subjects, self.rounds)


@dataclass(frozen=True, slots=True)
class Plan:
    """base: the label that ratios are taken to. domains: whether a quiet domain is measured beside others."""

    base: str
    rounds: int
    quick: bool
    cases: Sequence[Case | Recorded]
    domains: bool

    @property
    def runs(self) -> int:
        """Runs of workloads, at most."""
        return sum(case.runs for case in self.cases) + self.domains * self.rounds * DOMAIN_RUNS


def make_plan(request: Request) -> Plan:
    """Raises ValueError, one line that says what there is, for an engine, a policy, a workload or a knob that there is
    not."""
    engines = [Subject(name) for name in dict.fromkeys(request.engines)]
    if not engines:
        raise ValueError("no engine is named")
    for subject in engines:
        find_engine(subject.engine)
        check_operations(subject)
    base = next((each for each in engines if each.engine == BASE), engines[0])
    rounds = request.rounds or (QUICK_ROUNDS if request.quick else ROUNDS)
    varied = [subject for word in request.policies for subject in _with_policies(word, engines)]
    words = list(dict.fromkeys(request.workloads))
    cases: list[Case | Recorded]
    if words:
        ask = _Asked(engines, varied, rounds, request.quick)
        cases = [case for word in words if word != DOMAINS for case in ask.cases(word)]
        return Plan(base.label, rounds, request.quick, cases, DOMAINS in words)
    varied = varied or _usual(base)
    cases = []
    for family in SYNTHETIC.values():
        if not request.quick or family.name in QUICK_FAMILIES:
            others = varied if family.name in (QUICK_POLICIES if request.quick else POLICY_FAMILIES) else []
            series = _Asked(engines, others, rounds, request.quick, every=False).series(family)
            all_sizes = not request.quick or family.name in QUICK_GROWN
            cases += [case for case in series if all_sizes or case.standard]
    if not request.quick:
        cases += _Asked(engines, [], 1, False).cases(f"{TRACE}:{RECORDED}")
    return Plan(base.label, rounds, request.quick, cases, base.engine == BASE)


# Engines and policies.


def _with_policies(word: str, engines: Sequence[Subject]) -> list[Subject]:
    """The engines that know all policies of ``NAME=VALUE[,NAME=VALUE…]``, with them."""
    chosen = parse_policies(word.split(","))
    found = []
    wrong = ""
    for subject in engines:
        try:
            check_policies(subject.engine, chosen)
            found.append(Subject(subject.engine, chosen))
        except ValueError as error:
            wrong = wrong or str(error)
    if not found:
        raise ValueError(wrong)
    return found


def _usual(base: Subject) -> list[Subject]:
    """`base` with each policy that is not its default, one at a time."""
    known: Mapping[str, Sequence[str]] = getattr(engine_class(base.engine), "policies", {})
    pairs = [(name, value) for name, values in known.items() for value in values[1:]]
    return [Subject(base.engine, (pair,)) for pair in pairs if pair != SHARED]


# Workloads.


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is made of the words for workloads. varied: subjects beside the engines, with other policies."""

    engines: Sequence[Subject]
    varied: Sequence[Subject]
    rounds: int
    quick: bool
    every: bool = True  # all sizes of each family, and not only the ends and the usual one

    def cases(self, word: str) -> Iterator[Case | Recorded]:
        """What one word names: a family, ``FAMILY:KNOB=VALUE,…``, ``trace:FILE`` or ``trace:GUEST/MODE``."""
        name, colon, rest = word.partition(":")
        if name == TRACE and rest:
            yield self._trace(word, rest)
        elif name not in SYNTHETIC:
            known = f"{', '.join(SYNTHETIC)}, {DOMAINS}, {TRACE}:FILE, {TRACE}:GUEST/MODE"
            raise ValueError(f"unknown workload {word!r} (known: {known})")
        elif colon:
            yield self._chosen(SYNTHETIC[name], word, rest)
        else:
            yield from self.series(SYNTHETIC[name])

    def _chosen(self, family: Family, word: str, rest: str) -> Case:
        subjects = [*self.engines, *self.varied]
        try:
            workload = family.workload(family.knobs.changed(dict(_pairs(rest))))
        except ValueError as error:
            raise ValueError(f"{word}: {error}") from error
        return Case(workload, word, "", 0, True, subjects, self.rounds, subjects)

    def _trace(self, word: str, rest: str) -> Case | Recorded:
        from harness.workload.traces import TraceWorkload  # noqa: PLC0415 - the engines' own modules

        subjects = [*self.engines, *self.varied]
        if Path(rest).exists():
            return Case(TraceWorkload(Path(rest)), word, "", 0, True, subjects, self.rounds)
        guest, slash, paging = rest.partition("/")
        if not slash:
            raise ValueError(f"{word}: there is no such file, nor has it the form {TRACE}:GUEST/MODE")
        _must_be_a_guest(guest, paging)
        return Recorded(word, guest, paging, subjects, self.rounds)

    def series(self, family: Family) -> Iterator[Case]:
        """The family at each of its sizes. The one that stands for it is measured more than once, and under other
        policies too. Inside the engines is looked where the family is about an operation that cannot be seen from
        outside."""
        chosen = (family.quick if self.quick else family.series) or (family.knobs,)
        standard = min(chosen, key=lambda knobs: _apart(family, knobs))
        if self.quick and family.axis == "pages":
            standard = chosen[0]
        if not self.every and len(chosen) > 3 and family.name not in GROWN:
            chosen = tuple(dict.fromkeys((chosen[0], standard, chosen[-1])))
        for knobs in chosen:
            whole = knobs is standard
            large = family.size(knobs) > family.size(standard)
            small = [each for each in self.engines if each.engine not in SMALL_ONLY] or self.engines
            engines = small if large and family.axis != "pool" else self.engines
            varied = self.varied if whole else []
            subjects = [*engines, *varied]
            yield Case(
                workload=family.workload(knobs),
                name=family.name,
                knob=family.axis,
                size=family.size(knobs),
                standard=whole,
                subjects=subjects,
                rounds=self.rounds if whole else 1,
                inside=self._inside(family, subjects, whole),
                once=[*varied, *(each for each in engines if each.engine in SMALL_ONLY and len(engines) > 1)],
            )

    def _inside(self, family: Family, subjects: Sequence[Subject], whole: bool) -> Sequence[Subject]:
        if not OPERATIONS[focus(family.name)].calls:
            return subjects if whole else [each for each in subjects if each.engine not in SMALL_ONLY]
        return self.engines if whole and family.name == HEADLINE else ()


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{part!r} has not the form KNOB=VALUE")
        yield name, value


def _must_be_a_guest(guest: str, paging: str) -> None:
    from harness.catalogue import load_catalogue  # noqa: PLC0415

    catalogue = load_catalogue()
    if guest not in catalogue:
        raise ValueError(f"unknown guest {guest!r} (known: {', '.join(catalogue)})")
    if paging not in catalogue[guest].modes:
        raise ValueError(f"{guest} does not run in {paging!r} (it does in {', '.join(catalogue[guest].modes)})")


def _apart(family: Family, knobs: Knobs) -> float:
    """How far the size of `knobs` is from that which stands for the family."""
    return abs(math.log(family.size(knobs) / family.size(family.knobs)))


def workload_lines() -> list[str]:
    """The families, what each is and the knobs that it has, for people."""
    width = max(map(len, SYNTHETIC))
    lines = []
    for family in SYNTHETIC.values():
        sizes = ", ".join(f"{family.size(knobs):,}" for knobs in family.series)
        lines += [
            f"{family.name:{width}}  {family.description}",
            f"{'':{width}}  {family.axis}: {sizes}",
            f"{'':{width}}  {', '.join(f'{name}={value}' for name, value in family.knobs.flat().items())}",
        ]
    return [
        *lines,
        f"{DOMAINS:{width}}  a quiet domain beside a greedy one, with pools of their own and with one that they share",
        f"{TRACE + ':':{width}}  a recorded run: {TRACE}:FILE as `xi-harness run --record FILE` wrote it, or",
        f"{'':{width}}  {TRACE}:GUEST/MODE, which records that guest of the catalogue first",
    ]
