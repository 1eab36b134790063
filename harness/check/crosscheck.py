"""The cross-check of one machine: at each checkpoint, guest walk, shadow and processor answer the same questions.

    plan -> guest walk -> choose probes -> shadow (walk all, then faults to the engine) -> run on the processor
         -> compare answers -> restore -> compare A and D bits -> second opinions (where there are any)

The guest walk (`harness.x86.walk`), the shadow walk (`harness.check.shadow_walk`) and the processor share no code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.check.accessed_dirty import Difference, Marks, compare_bits
from harness.check.compare import disagreements, field_of, silicon_codes, wrong_cr2
from harness.check.guest_walks import GuestWalks, TableCopy, ambient_frames, ram_reader
from harness.check.layout import Layout
from harness.check.memory import CheckedMemory
from harness.check.plan import BUDGET_DEFAULT, Plan, Planner
from harness.check.probes import ProbeRun, ProbeSet
from harness.check.ranges import Ranges, find_ranges
from harness.check.second_opinion import SecondOpinion
from harness.check.shadow_answers import shadow_answers, shadow_view
from harness.check.shadow_walk import describe_shadow
from harness.check.tags import FrameKinds, TagBoard
from harness.check.target import OPINIONS, ORACLES, CheckReport, CheckTarget, Mismatch, Stop
from harness.check.verdict import DEVICE, FRAME, NO_FRAME, Answers, Frames
from harness.engine import ShadowEngine
from harness.x86.access import Access
from harness.x86.bits import PAGE_SHIFT, PTE_A
from harness.x86.modes import PAE, PHYS_BITS_DEFAULT
from harness.x86.walk import MAPPED, Path, describe

IN_FULL: Final = 16
"""How many mismatches of a checkpoint carry their walks; of the rest only the answers are kept."""
TABLES_COPIED: Final = 2048


@dataclass(slots=True)
class _Checkpoint:
    """What one checkpoint works with."""

    stop: Stop
    ranges: Ranges
    plan: Plan
    guest: GuestWalks
    ambient: GuestWalks
    tables: npt.NDArray[np.int64]
    report: CheckReport
    exceptions: Counter[str]


class CrossCheck:
    """Checks one run. `memory` shows `target.ram`, and the bits that `engine` sets in it.

    budget: probes per checkpoint. image: gfns of the guest's own code and data, where only zero bytes are borrowed for
    tags (a guest that does not run while probes do needs none of that). All addresses and `phys_bits` are the guest's;
    only the shadow's frames are the machine's. `spent` sums seconds by phase over the run. Raises ValueError for a
    budget below one page's accesses and for more RAM than the layout knows.
    """

    def __init__(
        self,
        engine: ShadowEngine,
        memory: CheckedMemory,
        target: CheckTarget,
        seed: int,
        budget: int = BUDGET_DEFAULT,
        image: Collection[int] = (),
        phys_bits: int = PHYS_BITS_DEFAULT,
    ) -> None:
        self.engine = engine
        self.memory = memory
        self.target = target
        self.planner = Planner(seed, budget, target.can_probe)
        self.layout = Layout(memory.frames, memory.p2m)
        self.image = frozenset(image)
        self.phys_bits = phys_bits
        self.spent: dict[str, float] = {}
        self._read = ram_reader(memory.ram)
        self.second = SecondOpinion(target, self.layout, budget)
        self._coherent: TableCopy | None = None
        self._tokens = 0

    def take_over(self, other: CrossCheck) -> None:
        """Goes on where `other`, the check of this guest on another machine, stopped."""
        self.planner = other.planner
        self._coherent, self._tokens, self.spent = other._coherent, other._tokens, other.spent

    def checkpoint(self, stop: Stop) -> CheckReport:
        """Runs the whole check at `stop`. What the target raises (a lost guest) passes through."""
        started = perf_counter()
        asked = [oracle for oracle in ORACLES if oracle not in OPINIONS or oracle in self.target.opinions]
        report = CheckReport(dict.fromkeys(asked, 0), [], {})
        if stop.state.pke:
            self.engine.set_pkru(stop.state.pkru)
        check = self._survey(stop, report)
        clock = self._clock("survey", started)
        run, old = self._choose(check)
        if not self.target.can_probe:
            run.drop(self._without_side_effects(check, run.probes))
        before = TableCopy.take(check.tables, self.memory.words)
        self.memory.begin()
        clock = self._clock("choose", clock)
        probes = run.probes
        state = stop.state
        shadow = shadow_answers(self.engine, state.pkru, probes.va, probes.access, self.phys_bits, self._to_guest)
        clock = self._clock("shadow", clock)
        hardware = None
        if self.target.can_probe:
            hardware = run.execute(self.target, devices=not self.target.architectural)
            report.checks["probe"] += len(probes)
            if self.target.architectural:
                self._announce(run.written)
        clock = self._clock("hardware", clock)
        self._compare(check, run, shadow, hardware, old)
        clock = self._clock("compare", clock)
        if hardware is not None and not stop.stale:
            self._compare_bits(check, probes, before)
        clock = self._clock("bits", clock)
        if self.target.opinions:
            self._second_opinions(check, probes, shadow)
        self._clock("second opinions", clock)
        self.memory.clear()
        if not stop.stale:
            self._coherent = TableCopy.take(check.tables, self.memory.words)
        report.exceptions = {name: count for name, count in sorted(check.exceptions.items()) if count}
        report.seconds = perf_counter() - started
        return report

    def _clock(self, phase: str, since: float) -> float:
        now = perf_counter()
        self.spent[phase] = self.spent.get(phase, 0.0) + now - since
        return now

    def _to_guest(self, mfns: Frames) -> Frames:
        """gfns of `mfns`, NO_FRAME for what is not the guest's."""
        m2p = self.memory.m2p
        if m2p is None:
            return np.where(self.layout.ram(mfns), mfns, NO_FRAME)
        inside = (mfns >= 0) & (mfns < len(m2p))
        return np.where(inside, m2p[np.where(inside, mfns, 0)], NO_FRAME)

    def _announce(self, written: set[int]) -> None:
        """Tells the engine of tables in which the check has written. Every byte is back in its place, but the engine
        may have synchronised one while it served a probe, and must not take it for unchanged since."""
        tables = self.engine.guest_tables()
        for gfn in sorted(written & tables.keys()):
            self.engine.table_written(gfn)

    def _survey(self, stop: Stop, report: CheckReport) -> _Checkpoint:
        """Ranges, plan and guest walks, from RAM alone."""
        state, ram = stop.state, self.memory.ram
        ranges = find_ranges(state, ram, self.layout, self.planner.rng(stop.index, 1), self.phys_bits)
        plan = self.planner.plan(state.mode, ranges, stop.index)
        guest = GuestWalks.of(state, plan.pages, self._read, self.layout, self.phys_bits)
        pages = np.asarray([page for page, _ in stop.ambient], np.uint64)
        ambient = GuestWalks.of(state, pages, self._read, self.layout, self.phys_bits)
        walked = {step.table for path in (*guest.paths, *ambient.paths) for step in path.steps}
        known = np.union1d(ranges.tables, np.fromiter(self.engine.guest_tables(), np.int64))
        if len(known) > TABLES_COPIED:
            known = known[:TABLES_COPIED]
        tables = np.union1d(known, np.fromiter(walked, np.int64, len(walked)))
        tables = tables[self.layout.mapped(tables)]
        return _Checkpoint(stop, ranges, plan, guest, ambient, tables, report, Counter())

    def _choose(self, check: _Checkpoint) -> tuple[ProbeRun, GuestWalks | None]:
        """The probes of this checkpoint, with the bytes they aim at."""
        stop, old = check.stop, None
        if stop.stale and self._coherent is not None:
            read = self._coherent.reader(self._read)
            old = GuestWalks.of(stop.state, check.plan.pages, read, self.layout, self.phys_bits)
        kinds = FrameKinds(
            tables=frozenset(check.tables.tolist()),
            kept=self.image,
            closed=ambient_frames(check.ambient),
            entry_bytes=stop.state.mode.entry_bytes,
        )
        board = TagBoard(self.memory.ram, self.layout, self.target.plant, kinds)
        run = ProbeRun(check.plan, check.guest, old, board, self.layout, self._tokens, check.exceptions)
        self._tokens += len(run.probes)
        return run, old

    def _without_side_effects(self, check: _Checkpoint, probes: ProbeSet) -> npt.NDArray[np.intp]:
        """Nothing runs on the processor: the engine may not be asked where it would set an A bit that nobody sets."""
        modes_with_a = [row.has_ad for row in check.stop.state.mode.levels]
        quiet = [
            path.outcome != MAPPED
            or all(step.entry & PTE_A or not has for step, has in zip(path.steps, modes_with_a, strict=False))
            for path in check.guest.paths
        ]
        return np.flatnonzero(np.asarray(quiet, np.bool_)[probes.page])

    def _compare(
        self,
        check: _Checkpoint,
        run: ProbeRun,
        shadow: Answers,
        hardware: Answers | None,
        old: GuestWalks | None,
    ) -> None:
        probes, state = run.probes, check.stop.state
        seen = hardware
        if hardware is not None:
            predictions = [probes.guest, shadow] + ([probes.old] if probes.old else [])
            if not self.target.architectural:
                seen = silicon_codes(hardware, predictions, probes, state, check.exceptions)
        reread = np.zeros(len(probes), np.bool_)
        if old is not None and state.mode is PAE and not self.target.architectural:
            changed = [
                (ours.steps[0].entry ^ theirs.steps[0].entry) & ~PTE_A != 0
                for ours, theirs in zip(check.guest.paths, old.paths, strict=True)
            ]
            reread = np.asarray(changed, np.bool_)[probes.page]
        wrong = disagreements(probes, shadow, seen, reread, check.exceptions)
        cr2 = np.zeros(len(probes), np.bool_)
        if hardware is not None:
            cr2 = wrong_cr2(probes, hardware, run.cr2, state)
        answers = [probes.guest, shadow, *([] if seen is None else [seen])]
        oracle = "guest walk" if hardware is None else "probe"  # who it is that the shadow disagrees with
        for at in np.flatnonzero(wrong | cr2).tolist():
            text = "not run" if hardware is None else hardware.text(at)
            if cr2[at]:
                text += f", CR2 {int(run.cr2[at]):#x}"
            field = field_of(at, answers) if wrong[at] else "cr2"
            path = check.guest.paths[int(probes.page[at])]
            guest = probes.guest.text(at)
            if probes.old is not None and not probes.old.same(probes.guest)[at]:
                guest += f" (before: {probes.old.text(at)})"
            self._mismatch(
                check, path, oracle, field, int(probes.va[at]), Access(probes.access[at]), guest, shadow.text(at), text
            )

    def _compare_bits(self, check: _Checkpoint, probes: ProbeSet, before: TableCopy) -> None:
        marks = Marks(check.stop.state.mode)
        completes = np.isin(probes.guest.codes, (FRAME, DEVICE))
        paths = check.guest.paths
        kinds = np.zeros((len(paths), 3), np.bool_)  # any completed, any completed store, any fault
        kinds[probes.page[completes], 0] = True
        kinds[probes.page[completes & probes.stores], 1] = True
        kinds[probes.page[~completes], 2] = True
        for path, (completed, stored, faulted) in zip(paths, kinds.tolist(), strict=True):
            if completed:
                marks.completed(path, stored)
            if faulted:
                marks.faulted(path)
        check.report.checks["ad_bits"] += len(marks.entries)
        for path, (_, access) in zip(check.ambient.paths, check.stop.ambient, strict=True):
            marks.served(path, access.is_store)
        stored_to = {
            path.gfn
            for path, (_, access) in zip(check.ambient.paths, check.stop.ambient, strict=True)
            if access.is_store
        }
        found = compare_bits(before, self.memory, marks, check.exceptions, not self.target.architectural)
        found = [one for one in found if one.entry >> PAGE_SHIFT not in stored_to]  # the server writes there itself
        if found:
            self._report_bits(check, found)
        for address in self.memory.strays():
            path = Path(address, (), "not walked")
            engine = f"bits set at machine address {address:#x}"
            self._mismatch(check, path, "ad_bits", "place", 0, None, "none outside the guest", engine, "not asked")

    def _report_bits(self, check: _Checkpoint, found: list[Difference]) -> None:
        through = {step.address: path for path in reversed(check.guest.paths) for step in path.steps}
        for one in found:
            path = through.get(one.entry, Path(one.entry, (), "not walked"))
            guest, shadow = (f"{one.field}={bit} in the entry at {one.entry:#x}" for bit in (one.guest, one.shadow))
            seen = f"{one.field}={one.hardware} in RAM"
            self._mismatch(check, path, "ad_bits", one.field, path.va, None, guest, shadow, seen)

    def _second_opinions(self, check: _Checkpoint, probes: ProbeSet, shadow: Answers) -> None:
        """About loads from ring 0. While changes are pending, about those whose answer is the current tables': the
        debug walk knows nothing of an older one. Else about all: a wrong shadow is theirs to refute, too."""
        state, checks = check.stop.state, check.report.checks
        asked = probes.access == Access.LOAD
        if check.stop.stale:
            asked &= shadow.same(probes.guest)
        at = np.flatnonzero(asked)
        va, answers = probes.va[at], Answers(shadow.codes[at], shadow.frames[at])
        rng = self.planner.rng(check.stop.index, 2)
        opinions = self.second.ask(va, answers, rng, checks)
        opinions += self.second.ask_tlb(state.mode, check.ranges.leaves, va, answers, checks, check.exceptions)
        for one in opinions:
            probe = int(at[one.at])
            path = check.guest.paths[int(probes.page[probe])]
            guest, own = probes.guest.text(probe), shadow.text(probe)
            self._mismatch(
                check, path, one.oracle, one.field, int(probes.va[probe]), Access.LOAD, guest, own, one.answer
            )

    def _mismatch(
        self,
        check: _Checkpoint,
        path: Path,
        oracle: str,
        field: str,
        va: int,
        access: Access | None,
        guest: str,
        shadow: str,
        hardware: str,
    ) -> None:
        stop, found = check.stop, check.report.mismatches
        where = f"{stop.index} {stop.name}".rstrip()
        text = access.text if access is not None else "page walk"
        mismatch = Mismatch(oracle, field, where, va, text, guest, shadow, hardware)
        if len(found) < IN_FULL:
            view = shadow_view(self.engine, stop.state.pkru, self.phys_bits)
            mismatch.guest_walk = describe(path)
            mismatch.shadow_walk = self._with_gfn(describe_shadow(view, va))
            mismatch.spti = self._spti(path)
        found.append(mismatch)

    def _with_gfn(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of a shadow walk, with the guest frame that its last one leads to: the guest's walk has those."""
        mfn, m2p = rows[-1]["mfn"], self.memory.m2p
        if mfn >= 0:
            rows[-1]["gfn"] = mfn if m2p is None else int(m2p[mfn]) if mfn < len(m2p) else NO_FRAME
        return rows

    def _spti(self, path: Path) -> dict[str, Any]:
        """What the engine says of the table where the guest walk ended, and of the frame that it found."""
        told: dict[str, Any] = {}
        if path.steps:
            told["table"] = self.engine.describe_gfn(path.steps[-1].table)
        if path.gfn >= 0:
            told["frame"] = self.engine.describe_gfn(path.gfn)
        return told
