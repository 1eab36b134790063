"""The guest cannot tell: its native run and its live run, side by side.

Each difference in what the two runs of a guest testify (`harness.twin.witness`) is either allowed, by a name and for a
reason that is looked into (`harness.twin.rules`), or it is a finding.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any, Final, Protocol

import numpy as np

from harness.catalogue import Guest
from harness.check.guest_walks import ram_reader
from harness.check.target import Stop
from harness.engine import Words
from harness.machine.exception_log import Faults
from harness.machine.mailbox import PROBE, Status
from harness.options import Progress, RunOptions, Watcher
from harness.report.record import RunRecord
from harness.twin.native import NativeLeg
from harness.twin.rules import CONSOLE_OVERRUN, Explainer, overrun
from harness.twin.witness import (
    TIMEOUT,
    Changes,
    Ints,
    Moment,
    Probed,
    Stretch,
    Witness,
    WitnessedMachine,
    take_witness,
)
from harness.x86.access import Access, access_of
from harness.x86.bits import PAGE_SIZE, PTE_A, error_code_text
from harness.x86.control import ControlState
from harness.x86.walk import tracer

KEPT: Final = 32  # differences that a report shows in full
_NOTHING: Final = "nothing"
_CONTROL: Final = ("cr0", "cr3", "cr4", "efer", "pkru")


@dataclass(frozen=True, slots=True)
class Difference:
    """field: console, memory, fault, probe, plan, control, checkpoint, start or ending. checkpoint: its number and
    name. where: the line, the guest-physical address, the access ... native, live: what each run has there."""

    field: str
    checkpoint: str
    where: str
    native: str
    live: str

    def __str__(self) -> str:
        return f"{self.field}, {self.checkpoint}, {self.where}: native {self.native}, live {self.live}"


@dataclass(slots=True)
class TwinReport:
    """differences: the first KEPT in full; counts: how many, by field. allowed: name of an allowed difference -> how
    often. compared: how many checkpoints, faults, probes, words of memory that changed, and lines were compared."""

    differences: list[Difference] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    allowed: Counter[str] = field(default_factory=Counter)
    compared: Counter[str] = field(default_factory=Counter)

    @property
    def identical(self) -> bool:
        """But for what is allowed."""
        return not self.counts

    def found(self, *what: str) -> None:
        difference = Difference(*what)
        self.counts[difference.field] += 1
        if len(self.differences) < KEPT:
            self.differences.append(difference)

    def to_json(self) -> dict[str, Any]:
        return {
            "differences": [asdict(one) for one in self.differences],
            "counts": dict(self.counts),
            "allowed": dict(sorted(self.allowed.items())),
            "compared": dict(self.compared),
        }


def compare(native: Witness, live: Witness) -> TwinReport:
    """Holds the two witnesses of one guest, run with the same seed and RAM, against each other."""
    return _Comparison(native, live).run()


class _Comparison:
    def __init__(self, native: Witness, live: Witness) -> None:
        self.native, self.live = native, live
        self.report = TwinReport()
        self._ours, self._theirs = native.start.copy(), live.start.copy()  # memory as of the moment that is compared
        self._explain = Explainer(native.image, self._ours)
        self._known: dict[int, tuple[int, int]] = {}  # words that are known to differ
        self._where = ""
        self._cut = native.ending == live.ending == TIMEOUT  # both were stopped by the clock, anywhere

    def run(self) -> TwinReport:
        self._start()
        pairs = list(zip_longest(self.native.moments, self.live.moments))
        for ours, theirs in pairs:
            if ours is None or theirs is None:
                if not self._cut:
                    self._at(ours or theirs)
                    self._differ("checkpoint", "order", *(_stop_text(one) for one in (ours, theirs)))
                break
            self._moment(ours, theirs)
        else:
            self._last()
        self._where = "the end"
        if self.native.ending != self.live.ending:
            self._differ("ending", "", self.native.ending, self.live.ending)
        self._console()
        return self.report

    def _at(self, moment: Moment | None) -> None:
        if moment is not None:
            self._where = f"{moment.stop.index} {moment.stop.name}".rstrip()

    def _differ(self, kind: str, where: str, native: str, live: str) -> None:
        self.report.found(kind, self._where, where, native, live)

    # ---- parts

    def _start(self) -> None:
        self._where = "the start"
        if len(self._ours) != len(self._theirs):
            sizes = (f"{len(words) >> 17} MiB" for words in (self._ours, self._theirs))
            self._differ("start", "RAM", *sizes)
            self._theirs = np.resize(self._theirs, len(self._ours))
        at = np.flatnonzero(self._ours != self._theirs)
        self._words("start", at, self._ours[at])

    def _moment(self, ours: Moment, theirs: Moment) -> None:
        self._at(ours)
        self.report.compared["checkpoints"] += 1
        if _stop_text(ours) != _stop_text(theirs):
            self._differ("checkpoint", "name", _stop_text(ours), _stop_text(theirs))
        for name in _CONTROL:
            one, other = (getattr(moment.stop.state, name) for moment in (ours, theirs))
            if one != other:
                self._differ("control", name, f"{one:#x}", f"{other:#x}")
        self._explain.stood(ours.stop.state)
        self._stretch(ours.way, theirs.way)
        if ours.probed and theirs.probed:
            self._probes(ours.probed, theirs.probed, ours.stop.state)
            self._stretch(ours.probed.stretch, theirs.probed.stretch)
            self._completed(ours.probed, ours.stop.state)

    def _last(self) -> None:
        self._where = "after the last checkpoint"
        if self.native.last and self.live.last:
            self._stretch(self.native.last, self.live.last, self._cut)

    def _stretch(self, ours: Stretch, theirs: Stretch, cut: bool = False) -> None:
        for state in ours.states | theirs.states:
            self._explain.stood(state)
        self._faults(ours.faults, theirs.faults, cut)
        self._memory(ours.memory, theirs.memory)

    # ---- faults

    def _faults(self, ours: Faults, theirs: Faults, cut: bool) -> None:
        """In order; behind the first that differs nothing can be said. cut: one list may be the other's beginning."""
        self._explain.faulted(ours)
        both = min(len(ours), len(theirs))
        self.report.compared["faults"] += both
        same = np.ones(both, np.bool_)
        for name in ("rip", "cr2", "code"):
            same &= ours[name][:both] == theirs[name][:both]
        for at in np.flatnonzero(~same).tolist():
            one, other = ours[at], theirs[at]
            names = None
            if one["rip"] == other["rip"] and one["cr2"] == other["cr2"]:
                control = ControlState(*(int(one[name]) for name in ("cr0", "cr3", "cr4", "efer")))
                code = int(one["code"])
                names = self._explain.code(code, int(other["code"]), access_of(code), control)
            if names is None:
                self._differ("fault", f"number {at + 1}", _fault_text(one), _fault_text(other))
                return
            self.report.allowed.update(names)
        if len(ours) != len(theirs) and not cut:
            texts = (_fault_text(faults[both]) if len(faults) > both else _NOTHING for faults in (ours, theirs))
            self._differ("fault", f"number {both + 1} of {len(ours)} and {len(theirs)}", *texts)

    # ---- memory

    def _memory(self, ours: Changes, theirs: Changes) -> None:
        at = np.union1d(ours.at, theirs.at)
        before = self._ours[at]
        self._ours[ours.at] = ours.now
        self._theirs[theirs.at] = theirs.now
        self.report.compared["words"] += len(at)
        self._words("memory", at, before)

    def _words(self, kind: str, at: Ints, before: Words) -> None:
        ours, theirs = self._ours[at], self._theirs[at]
        differs = ours != theirs
        for word in at[~differs].tolist() if self._known else ():
            self._known.pop(word, None)
        rows = zip(*(column[differs].tolist() for column in (at, ours, theirs, before)), strict=True)
        for word, native, live, old in rows:
            if self._known.get(word) == (native, live):
                continue
            self._known[word] = native, live
            names = self._explain.word(word, native, live, old)
            if names is None:
                where = f"gfn {word >> 9:#x} + {word % 512 * 8:#x}"
                self._differ(kind, where, f"{native:#018x}", f"{live:#018x}")
            else:
                self.report.allowed.update(names)

    # ---- probes

    def _probes(self, ours: Probed, theirs: Probed, state: ControlState) -> None:
        one, other = ours.records, theirs.records
        if len(one) != len(other) or any((one[name] != other[name]).any() for name in ("va", "op")):
            self._differ("plan", "the probes", f"{len(one)} probes", f"{len(other)} other probes")
            return
        self.report.compared["probes"] += len(one)
        fields = [name for name in PROBE.names or () if name not in ("va", "op")]
        differs = np.logical_or.reduce([one[name] != other[name] for name in fields])
        for at in np.flatnonzero(differs).tolist():
            native, live = one[at], other[at]
            names = self._probe(native, live, state)
            if names is None:
                access = Access(int(native["op"]))
                self._differ("probe", f"{access.text} of {int(native['va']):#x}", _answer(native), _answer(live))
            else:
                self.report.allowed.update(names)

    def _probe(self, native: np.void, live: np.void, state: ControlState) -> tuple[str, ...] | None:
        if native["status"] != live["status"] or any(native[name] != live[name] for name in ("value", "cr2")):
            return None
        return self._explain.code(int(native["code"]), int(live["code"]), Access(int(native["op"])), state)

    def _completed(self, probed: Probed, state: ControlState) -> None:
        """Where an access has completed A must be set, whatever walk that faulted may have set it natively."""
        if not self._known:
            return
        walk = tracer(state, ram_reader(self._ours.view(np.uint8)))
        records = probed.records
        pages = np.unique(records["va"][records["status"] == Status.DONE] & np.uint64(-PAGE_SIZE & (1 << 64) - 1))
        missing = {
            step.address
            for page in pages.tolist()
            for row, step in zip(state.mode.levels, walk(page).steps, strict=False)
            if row.has_ad and step.address >> 3 in self._known and self._bits_missing(step.address) & PTE_A
        }
        for address in sorted(missing):
            where = f"accessed in the entry at {address:#x}, through which a probe has gone"
            self._differ("memory", where, "1", "0")

    def _bits_missing(self, address: int) -> int:
        """What the live run lacks in the 4 bytes at `address`."""
        native, live = (int(memory[address >> 3]) >> 8 * (address & 4) for memory in (self._ours, self._theirs))
        return native & ~live

    # ---- console

    def _console(self) -> None:
        ours, theirs = self.native.console, self.live.console
        both = min(len(ours), len(theirs)) if self._cut else max(len(ours), len(theirs))
        self.report.compared["lines"] += ours.count("\n")
        if ours[:both] == theirs[:both]:
            return
        if overrun(ours, theirs):
            self.report.allowed[CONSOLE_OVERRUN.name] += 1
            return
        for number, (one, other) in enumerate(zip_longest(ours.splitlines(), theirs.splitlines()), 1):
            if one != other:
                texts = (_NOTHING if text is None else repr(text) for text in (one, other))
                self._differ("console", f"line {number}", *texts)
                return
        self._differ("console", "line ends", repr(ours[-40:]), repr(theirs[-40:]))


def _stop_text(moment: Moment | None) -> str:
    if moment is None:
        return _NOTHING
    stop = moment.stop
    flags = [name for name, on in (("stale", stop.stale), ("final", stop.final)) if on]
    return " ".join([repr(stop.name), *flags])


def _fault_text(fault: np.void) -> str:
    return f"#PF {error_code_text(int(fault['code']))} at rip {int(fault['rip']):#x}, CR2 {int(fault['cr2']):#x}"


def _answer(record: np.void) -> str:
    status = int(record["status"])
    if status == Status.FAULT:
        return f"#PF {error_code_text(int(record['code']))}, CR2 {int(record['cr2']):#x}"
    if status == Status.EXCEPTION:
        return f"exception {int(record['code'])}"
    return f"value {int(record['value']):#x}" if status == Status.DONE else "not run"


class Leg(WitnessedMachine, Protocol):
    """A leg with a record of its own in the end."""

    def conclude(self) -> RunRecord:
        """What the leg itself found: how its guest ended, and whether anything else was wrong."""


MOST_PROBES: Final = 240
"""A checkpoint's, in either leg; fewer than a cross-check makes, since the guest's own accesses are compared too."""

MakeLeg = Callable[[Guest, str, RunOptions], AbstractContextManager[Leg]]


def run_twin(
    guest: Guest,
    paging: str,
    options: RunOptions | None = None,
    progress: Watcher | None = None,
    make_live: MakeLeg | None = None,
) -> RunRecord:
    """Runs `guest` natively and then live, with the same seed and RAM, and compares the two.

    The record is the live leg's, with the comparison in `twin`: any difference that is not allowed fails it. make_live:
    another second leg. Raises what the legs raise: MachineError when one is lost, BadImage, ValueError.
    """
    options = options or RunOptions()
    began = time.monotonic()

    def witness(leg: WitnessedMachine) -> Witness:
        def tell(stop: Stop, probes: int) -> None:
            if progress is not None:
                seconds = time.monotonic() - began
                progress(Progress(guest.name, paging, leg.name, stop.name, probes, 0, 0, seconds))

        return take_witness(leg, options.seed, min(options.probe_budget, MOST_PROBES), tell)

    with NativeLeg(guest, paging, options) as leg:
        native = witness(leg)
    with (make_live or _live_leg)(guest, paging, options) as second:
        live = witness(second)
        record = second.conclude()
    compared = time.monotonic()
    report = compare(native, live)
    record.mode = options.mode
    record.twin = report.to_json()
    record.timings |= {"native": native.seconds, "live": live.seconds, "compare": time.monotonic() - compared}
    record.checks["probe"] = record.checks.get("probe", 0) + report.compared["probes"]
    record.exceptions = dict(sorted((Counter(record.exceptions) + report.allowed).items()))
    record.seconds = time.monotonic() - began
    if not report.identical:
        count = sum(report.counts.values())
        what = (
            "1 difference from the native run" if count == 1 else f"{count} differences from the native run, the first"
        )
        first = f"{what}: {report.differences[0]}"
        ended = "" if record.verdict == record.expected else f" (live: {record.verdict}, {record.reason})"
        record.reason = first + ended
        record.verdict = "fail"
    return record


def _live_leg(guest: Guest, paging: str, options: RunOptions) -> AbstractContextManager[Leg]:
    from harness.twin.live_leg import LiveLeg  # noqa: PLC0415 - the monitor's side, only where it is used

    return LiveLeg(guest, paging, options)
