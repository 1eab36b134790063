"""The hardware beside the engine, asked by a debugger: `harness.debug.scene.Hardware` for both ways to run a guest.

What is asked are probes of the cross-check, of one page: accesses that really run, aimed at tags that prove which frame
they reached. Everything that was planted or stored is put back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.check.compare import silicon_codes
from harness.check.guest_walks import GuestWalks, ambient_frames, ram_reader
from harness.check.layout import Layout
from harness.check.plan import Plan
from harness.check.probes import ProbeRun
from harness.check.shadow_answers import shadow_view
from harness.check.shadow_walk import shadow_walk
from harness.check.tags import FrameKinds, TagBoard
from harness.check.target import CheckTarget, ProbeServer, Stop
from harness.check.verdict import DEVICE, ESCAPED, FRAME, GP, NO_FRAME, Answers, answer_text
from harness.debug.commands.views import gfns_by, shadow_frame
from harness.debug.debuggee import Refused
from harness.debug.observed import ObservedGuest
from harness.debug.scene import CommandError
from harness.engine import ShadowEngine
from harness.intercept.live import Live
from harness.intercept.observe import Observer
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.bits import PAGE_SHIFT, PAGE_SIZE, PTE_A, PTE_D, PTE_P
from harness.x86.control import ControlState
from harness.x86.modes import PHYS_BITS_DEFAULT
from harness.x86.walk import MAPPED, Path

FLUSHED: Final = "flush asked for in the debugger"
_FAR: Final = 8  # frames that are away which one access may meet


class Prober:
    """Probes of one page. image: gfns of the guest's own code and data. p2m: mfn of each gfn, live; None: itself."""

    def __init__(
        self, target: CheckTarget, engine: ShadowEngine, image: Collection[int], p2m: npt.NDArray[np.int64] | None
    ) -> None:
        self._target, self._engine = target, engine
        self._image = frozenset(image)
        self.layout = Layout(target.ram.nbytes >> PAGE_SHIFT, p2m)
        self._read = ram_reader(target.ram)

    def by_guest(self, state: ControlState, pages: Sequence[int]) -> GuestWalks:
        """What the guest's tables predict."""
        return GuestWalks.of(state, np.asarray(pages, np.uint64), self._read, self.layout)

    def by_shadow(self, state: ControlState, page: int) -> GuestWalks:
        """What the shadow as it stands predicts, frames as gfns. Where it does not translate yet, the frame is the one
        that the engine holds ready, if it says so: it may be in a TLB."""
        view = shadow_view(self._engine, state.pkru, PHYS_BITS_DEFAULT)
        count = len(ALL_ACCESSES)
        answers = shadow_walk(view, np.full(count, page, np.uint64), np.asarray(ALL_ACCESSES, np.uint8))
        codes = np.full((1, 8), GP, np.int32)
        codes[0, list(ALL_ACCESSES)] = answers.codes
        leaf = gfns_by(self.layout.p2m, self.layout.frames, np.asarray([shadow_frame(view, page)], np.int64))
        if leaf[0] < 0 and not (codes == FRAME).any():
            leaf[0] = self._held_ready(page)
        return GuestWalks(state, [], codes, leaf, np.zeros(1, np.bool_))

    def _held_ready(self, page: int) -> int:
        try:
            return next((int(row["gfn"]) for row in self._engine.describe_walk(page) if "gfn" in row), NO_FRAME)
        except Exception:  # it follows SPTEs, and those may be what is broken: then nothing is known
            return NO_FRAME

    def ask(
        self,
        server: ProbeServer,
        page: int,
        accesses: Sequence[Access],
        predicted: GuestWalks,
        other: GuestWalks | None,
        stop: Stop | None,
    ) -> tuple[ProbeRun, Answers]:
        """Has `server` run the `accesses`. predicted, other: where they may lead. stop: the checkpoint at which the
        guest runs them itself. The run holds those that could be tried: see `ProbeRun`."""
        state, engine, ram = predicted.control, self._engine, self._target.ram
        tables = set(engine.guest_tables()) | {step.table for path in predicted.paths for step in path.steps}
        closed: frozenset[int] = frozenset()
        if stop is not None:
            closed = ambient_frames(self.by_guest(state, [ambient for ambient, _ in stop.ambient]))
        kinds = FrameKinds(
            frozenset(gfn for gfn in tables if gfn < self.layout.frames), self._image, closed, state.mode.entry_bytes
        )
        board = TagBoard(ram, self.layout, self._target.plant, kinds)
        plan = Plan(np.asarray([page], np.uint64), tuple(accesses), 0)
        run = ProbeRun(plan, predicted, other, board, self.layout, 0, Counter())
        strays = _Strays(run)
        architectural = self._target.architectural
        try:
            answers = run.execute(server, devices=not architectural)
        finally:
            strays.put_back()
        if architectural:  # the engine may have synchronised a table while a tag stood in it
            for gfn in run.written & engine.guest_tables().keys():
                engine.table_written(gfn)
        else:
            answers = silicon_codes(answers, [run.probes.guest], run.probes, state, Counter())
        return run, answers

    def told(self, run: ProbeRun, answers: Answers, va: int) -> str:
        """The answer of the only probe of `run`, about `va`."""
        if not len(run.probes):
            raise CommandError("it would reach a device, or a frame that has no room for a tag: it cannot be tried")
        code, frame, tried = int(answers.codes[0]), int(answers.frames[0]), int(run.probes.va[0])
        text = answer_text(code, frame)
        if code == FRAME and frame >= 0:
            return f"{text} + {va & (PAGE_SIZE - 1):#x}"
        return f"{text} cr2={int(run.cr2[0]):#x} (tried at {tried:#x})" if code >= 0 else text


class _Strays:
    """Stores that land elsewhere than where anybody predicted: what they overwrote, to put it back. Use once."""

    def __init__(self, run: ProbeRun) -> None:
        self._dwords = run.board.dwords
        at = np.flatnonzero(run.probes.stores)
        self._tokens = [(int(run.probes.place[i]) >> 2, int(run.probes.token[i])) for i in at.tolist()]
        self._before = [self._dwords[place::1024].copy() for place, _ in self._tokens]

    def put_back(self) -> None:
        for (place, token), before in zip(self._tokens, self._before, strict=True):
            column = self._dwords[place::1024]
            lost = np.flatnonzero((column == np.uint32(token)) & (before != column))
            column[lost] = before[lost]


class ObservedHardware:
    """The processor runs the guest on its own tables, and probes are made by the guest's probe server.

    standing: the checkpoint at which the guest stands, None where it is at none: only there its server listens.
    guest: what the debugger has of it.
    """

    walks = "guest"

    def __init__(
        self,
        target: CheckTarget,
        observer: Observer,
        guest: ObservedGuest,
        image: Collection[int],
        standing: Callable[[], Stop | None],
    ) -> None:
        self._target, self._observer, self._guest = target, observer, guest
        self._prober = Prober(target, observer.engine, image, None)
        self._standing = standing

    def look(self, va: int) -> Answers:
        stop = self._checkpoint(va)
        state, page = self._observer.state, va & -PAGE_SIZE
        predicted = self._prober.by_guest(state, [page])
        accesses = [access for access in ALL_ACCESSES if _harmless(state, predicted.paths[0], access)]
        ram = predicted.leaf[0] < 0 or self._prober.layout.is_ram(int(predicted.leaf[0]))
        if not accesses or not ram or predicted.odd[0]:
            return Answers.empty(len(ALL_ACCESSES))
        with self._observer.lifted():
            run, answers = self._prober.ask(
                self._target, page, accesses, predicted, self._prober.by_shadow(state, page), stop
            )
        return _spread(run, answers)

    def probe(self, va: int, access: Access) -> str:
        stop = self._checkpoint(va)
        state, page = self._observer.state, va & -PAGE_SIZE
        predicted, stale = self._prober.by_guest(state, [page]), self._prober.by_shadow(state, page)
        with self._observer.lifted():
            run, answers = self._prober.ask(self._target, page, [access], predicted, stale, stop)
        return self._prober.told(run, answers, va)

    def _checkpoint(self, va: int) -> Stop:
        stop = self._standing()
        if stop is None or not self._target.can_probe:
            why = "the guest is at no checkpoint" if self._target.can_probe else "this guest has no probe server"
            walk = "not mapped" if (seen := self.translate(va)) is None else f"at {seen:#x}"
            raise CommandError(
                f"{why}, and in observe mode it is the guest that makes probes, there. Rights aside QEMU's debug walk\n"
                f"tells: {walk}"
            )
        return stop

    def translate(self, va: int) -> int | None:
        return self._target.gva2gpa([va])[0]

    def flush(self, va: int | None) -> str:
        try:
            self._guest.flush(va)
        except Refused as error:
            raise CommandError(str(error)) from error
        if va is None:
            return f"CR3 loaded again with {self._observer.state.cr3:#x}: engine synchronised, TLB flushed"
        return (
            f"INVLPG {va:#x}: its entry synchronised; of the processor's TLB all is flushed (QEMU's stub has no INVLPG)"
        )


class LiveHardware:
    """The processor runs the guest on the shadow, and probes are made beside it, at any time that the guest stands."""

    walks = "shadow"

    def __init__(self, target: CheckTarget, live: Live, image: Collection[int]) -> None:
        self._target, self._live = target, live
        self._prober = Prober(target, live.engine, image, live.domain.view.p2m)

    def look(self, va: int) -> Answers:
        state, page = self._live.state, va & -PAGE_SIZE
        if not state.mode.is_canonical(va):
            return Answers.empty(len(ALL_ACCESSES))
        predicted = self._prober.by_shadow(state, page)
        if _leads_out(predicted):
            return Answers.empty(len(ALL_ACCESSES))
        return _spread(*self._prober.ask(_AsItStands(self._live), page, ALL_ACCESSES, predicted, None, None))

    def probe(self, va: int, access: Access) -> str:
        page, live = va & -PAGE_SIZE, self._live
        for _ in range(_FAR):
            state = live.state
            predicted, stale = self._prober.by_guest(state, [page]), self._prober.by_shadow(state, page)
            if _leads_out(stale):
                raise CommandError(f"the shadow leads out of the guest's memory there, and nobody goes: `walk {va:#x}`")
            run, answers = self._prober.ask(self._target, page, [access], predicted, stale, None)
            if not len(run.probes) or answers.codes[0] != DEVICE or live.engine.away_gfn not in live.domain.away:
                break
            live.domain.give(live.engine.away_gfn)  # as for an access of the guest's
        return self._prober.told(run, answers, va)

    def translate(self, va: int) -> int | None:
        raise CommandError("QEMU's debug walk would walk the monitor's tables, not the guest's")

    def flush(self, va: int | None) -> str:
        live = self._live
        if va is None:
            live.write_control(live.state, "cr3_load", live.state.cr3, FLUSHED)
            return f"CR3 loaded again with {live.state.cr3:#x}: engine synchronised; each entry flushes the TLB"
        live.log.add("invlpg", 0, va, FLUSHED)
        live.engine.invlpg(va)
        return f"INVLPG {va:#x}: its entry synchronised; each entry flushes the TLB"


class _AsItStands:
    """`harness.check.target.ProbeServer` on the shadow as it is: a fault is an answer, and the engine is not asked."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def run_probes(self, probes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return self._live.vcpu.probe(probes, self._live.engine.root, self._live.state.pkru)


def _leads_out(shadow: GuestWalks) -> bool:
    """Whether the shadow is so broken that the processor would reach what is none of the guest's."""
    return bool((shadow.codes == ESCAPED).any() or ((shadow.codes == FRAME).any() and shadow.leaf[0] < 0))


def _harmless(state: ControlState, path: Path, access: Access) -> bool:
    """Whether the processor finds every A, and for a store every D, set that it might set on its way."""
    levels = {level.number: level for level in state.mode.levels}
    on_the_way = [step for step in path.steps if step.entry & PTE_P]
    if not all(step.entry & PTE_A for step in on_the_way if levels[step.level].has_ad):
        return False
    return not access.is_store or path.outcome != MAPPED or not path.steps or bool(path.steps[-1].entry & PTE_D)


def _spread(run: ProbeRun, answers: Answers) -> Answers:
    """The answers in the order of ALL_ACCESSES, NOT_RUN for those that were not tried."""
    out = Answers.empty(len(ALL_ACCESSES))
    at = [ALL_ACCESSES.index(Access(access)) for access in run.probes.access.tolist()]
    out.codes[at], out.frames[at] = answers.codes, answers.frames
    return out
