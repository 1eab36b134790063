"""The probes of one checkpoint: which accesses run, at which byte of the page, and what comes back.

A probe that is expected to complete aims at the tag of the frame behind it. One that is not expected to complete
aims at the same bytes, so that a wrong prediction does no harm and still tells where it went.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.check.exceptions import TABLE_NOT_VISIBLE, UNTAGGED
from harness.check.guest_walks import GuestWalks
from harness.check.layout import Layout
from harness.check.plan import Plan
from harness.check.shadow_walk import Accesses
from harness.check.tags import (
    NO_SLOT,
    SLOT_PART,
    STORE_AT,
    Ints,
    TagBoard,
    decode_code,
    decode_load,
)
from harness.check.target import NO_MEMORY, ProbeServer
from harness.check.verdict import (
    DEVICE,
    FRAME,
    GP,
    NO_FRAME,
    NOT_RUN,
    VECTOR_BASE,
    Answers,
    Mask,
)
from harness.engine import Words
from harness.machine.mailbox import PROBE, PROBE_MAX, TAG_OFFSET, Status

Indices = npt.NDArray[np.intp]

TOKEN_BASE: Final = 0x3600_0000
TOKEN_COUNT: Final = 1 << 24
_AD_BITS: Final = np.uint32(0x60)


@dataclass(slots=True)
class ProbeSet:
    """Probes in the order in which they run; every array has one element per probe.

    page: index into the plan's pages. place: byte offset in the page. token: what a store writes. tagged: the frame
    is proven by a tag. guest, old: the guest walk's answers by the tables as of now and, at a stale checkpoint, as
    of the last coherent one.
    """

    page: Indices
    access: Accesses
    va: Words
    place: Ints
    token: npt.NDArray[np.uint32]
    tagged: Mask
    guest: Answers
    old: Answers | None
    code_frames: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.page)

    @property
    def stores(self) -> Mask:
        mask: Mask = self.access & 3 == 1
        return mask


class ProbeRun:
    """Chooses the probes of a checkpoint and runs them. Use once."""

    def __init__(
        self,
        plan: Plan,
        guest: GuestWalks,
        old: GuestWalks | None,
        board: TagBoard,
        layout: Layout,
        first_token: int,
        exceptions: Counter[str],
    ) -> None:
        self.plan = plan
        self.board = board
        self.layout = layout
        self.exceptions = exceptions
        self._guest, self._old = guest, old
        self._first_token = first_token
        self.records = np.zeros(0, PROBE)  # as they came back, one per probe
        self.cr2 = np.zeros(0, np.uint64)
        self.probes = self._choose()

    def _choose(self) -> ProbeSet:
        count, kinds = len(self.plan.pages), np.asarray(self.plan.accesses, np.uint8)
        page = np.repeat(np.arange(count), len(kinds))
        access = np.tile(kinds, count)
        guest = self._guest.answers(page, access)
        old = self._old.answers(page, access) if self._old else None
        leaf = self._guest.leaf
        other = self._old.leaf if self._old else leaf
        slots = self.board.slots(np.where(leaf >= 0, leaf, other))
        keep = self._visible()[page]
        for frames in (leaf, other):  # no store, fetch or device access outside RAM, whatever is predicted
            outside = ((frames >= 0) & ~self.layout.ram(frames))[page]
            keep &= ~outside | ((access & 3 == 0) & self.layout.quiet(frames)[page])
        translates = guest.codes == FRAME
        if old:
            translates = translates | (old.codes == FRAME)
        offset = slots.offset[page]
        tagged = offset != NO_SLOT
        loose = np.zeros(len(page), np.bool_)
        loose |= translates & ~tagged
        loose |= translates & (access & 3 == 2) & ~slots.executable[page]
        loose |= self._unprovable(slots.offset)[page] & translates
        drop = loose & ((access & 3 != 0) | (leaf != other)[page])
        self.exceptions[UNTAGGED.name] += int((loose & keep).sum())
        place = np.where(tagged, offset, TAG_OFFSET) + SLOT_PART[access & 3]
        chosen = np.flatnonzero(keep & ~drop)
        probes = ProbeSet(
            page[chosen],
            access[chosen],
            np.zeros(0, np.uint64),
            place[chosen],
            np.zeros(len(chosen), np.uint32),
            tagged[chosen],
            _take(guest, chosen),
            _take(old, chosen) if old else None,
        )
        probes = self._place_stores(probes, offset[chosen])
        probes.va = self.plan.pages[probes.page] | probes.place.astype(np.uint64)
        probes.code_frames = self._code_frames(probes)
        return probes

    def _visible(self) -> Mask:
        """Pages whose walk the RAM map shows."""
        odd = self._guest.odd | self._old.odd if self._old else self._guest.odd
        if odd.any():
            self.exceptions[TABLE_NOT_VISIBLE.name] += int(odd.sum()) * len(self.plan.accesses)
        return ~odd

    def _unprovable(self, offsets: Ints) -> Mask:
        """Stale pages that may lead to two frames, the second of which cannot have a tag at the same place."""
        bad = np.zeros(len(offsets), np.bool_)
        if self._old:
            new, old = self._guest.leaf, self._old.leaf
            for at in np.flatnonzero((new >= 0) & (old >= 0) & (new != old)).tolist():
                bad[at] = not self.board.also(int(old[at]), int(offsets[at]))
        return bad

    def _place_stores(self, probes: ProbeSet, slot: Ints) -> ProbeSet:
        """Gives each store that may complete a word of its own, and drops those for which there is none."""
        guest, old = probes.guest, probes.old
        target = np.where(guest.codes == FRAME, guest.frames, NO_FRAME)
        if old:
            target = np.where((target == NO_FRAME) & (old.codes == FRAME), old.frames, target)
        at = np.flatnonzero(probes.stores & (target >= 0))
        if not len(at):
            return self._with_tokens(probes)
        places = self.board.store_places(target[at], slot[at])
        if old:  # the word must be free in the other frame too
            second = np.where(old.codes[at] == FRAME, old.frames[at], target[at])
            two = second != target[at]
            used = target[at] << 10 | places >> 2
            crowded = two & np.isin(second << 10 | places >> 2, used)
            narrow = np.fromiter(self.board.kinds.tables | self.board.kinds.kept, np.int64)
            crowded |= two & (places != slot[at] + STORE_AT) & np.isin(second, narrow)
            places[crowded] = NO_SLOT
        probes.place[at] = places
        lost = at[places == NO_SLOT]
        if len(lost):
            self.exceptions[UNTAGGED.name] += len(lost)
            stay = np.ones(len(probes), np.bool_)
            stay[lost] = False
            probes = _subset(probes, np.flatnonzero(stay))
        return self._with_tokens(probes)

    def _with_tokens(self, probes: ProbeSet) -> ProbeSet:
        serial = (self._first_token + np.arange(len(probes))) % TOKEN_COUNT
        probes.token = np.where(probes.stores, TOKEN_BASE + 2 * serial, 0).astype(np.uint32)
        return probes

    def _code_frames(self, probes: ProbeSet) -> set[int]:
        """Frames in which a fetch may find itself."""
        fetch = probes.access & 3 == 2
        frames: set[int] = set()
        for answers in (probes.guest, probes.old):
            if answers:
                frames.update(answers.frames[fetch & (answers.codes == FRAME)].tolist())
        return frames

    def drop(self, keep: Indices) -> None:
        """Keeps only the probes `keep`."""
        self.probes = _subset(self.probes, keep)

    def execute(self, target: ProbeServer, devices: bool = True) -> Answers:
        """Plants, runs all probes in batches, reads the answers, restores. Sets `records` and `cr2`.

        devices: a load where there is no RAM completes, and nothing can be said of what it reads.
        """
        probes, board = self.probes, self.board
        raw = np.zeros(len(probes), PROBE)
        raw["va"], raw["op"], raw["value"] = probes.va, probes.access, probes.token
        places = self._watched()
        before = self._untagged_values()
        board.plant(probes.code_frames, places)
        try:
            done = [target.run_probes(raw[at : at + PROBE_MAX]) for at in range(0, len(raw), PROBE_MAX)]
            result = np.concatenate(done) if done else raw
            answers = self._read(result, before, devices)
        finally:
            board.restore()
        self.records = result
        self.cr2 = result["cr2"].astype(np.uint64)
        return answers

    def _watched(self) -> Ints:
        """Dwords of RAM where a store may land: behind every store probe, whether it should complete or not."""
        probes = self.probes
        found = []
        for walks in (self._guest, self._old):
            if walks:
                leaf = walks.leaf[probes.page]
                at = probes.stores & probes.tagged & self.layout.ram(leaf)
                found.append(leaf[at] << 10 | probes.place[at] >> 2)
        return np.concatenate(found)

    def _untagged_values(self) -> npt.NDArray[np.uint32]:
        """What loads without a tag should read, by RAM; only meaningful where `_weak` says so."""
        frames = np.where(self.probes.guest.frames >= 0, self.probes.guest.frames, 0)
        frames = np.where(self.layout.mapped(frames), frames, 0)
        values: npt.NDArray[np.uint32] = self.board.dwords[frames << 10 | self.probes.place >> 2]
        return values

    @property
    def written(self) -> set[int]:
        """gfns in which something was planted, or where a probe may have stored: what the engine did not hear of."""
        return self.board.planted | set((self._watched() >> 10).tolist())

    def _read(self, result: npt.NDArray[np.void], before: npt.NDArray[np.uint32], devices: bool) -> Answers:
        """The processor's answers from the records that came back; devices: see `execute`."""
        probes, frames = self.probes, self.layout.frames
        answers = Answers.empty(len(probes))
        status, value = result["status"], result["value"].astype(np.uint32)
        kind = probes.access & 3
        fault = status == Status.FAULT
        other = status == Status.EXCEPTION
        code = result["code"].astype(np.int64)
        answers.codes[fault] = code[fault]
        answers.codes[other] = np.where(code[other] == 13, GP, VECTOR_BASE - code[other])
        done = status == Status.DONE
        answers.codes[done] = FRAME
        answers.frames[:] = np.where(kind == 2, decode_code(value, frames), decode_load(value, frames))
        self._where_stored(answers, np.flatnonzero(done & (kind == 1)))
        loose = done & (kind == 0) & ~probes.tagged
        outside = probes.guest.codes == DEVICE
        if devices:
            answers.codes[loose & outside] = DEVICE
        self._weigh_untagged(answers, loose if devices else loose & ~outside, value, before)
        nothing = status == NO_MEMORY
        answers.codes[nothing] = DEVICE
        answers.frames[~done] = NO_FRAME
        answers.codes[~(fault | other | done | nothing)] = NOT_RUN
        return answers

    def _where_stored(self, answers: Answers, at: Indices) -> None:
        """Finds each completed store's token in RAM."""
        probes, dwords = self.probes, self.board.dwords
        found = np.full(len(at), NO_FRAME, np.int64)
        for predicted in (probes.old, probes.guest):
            if predicted:
                frames = predicted.frames[at]
                there = np.where(self.layout.mapped(frames), frames, 0)
                hit = (frames >= 0) & (dwords[there << 10 | probes.place[at] >> 2] == probes.token[at])
                found[hit] = frames[hit]
        for miss in np.flatnonzero(found == NO_FRAME).tolist():
            found[miss] = self.board.where(int(probes.token[at[miss]]), int(probes.place[at[miss]]))
        answers.frames[at] = found

    def _weigh_untagged(
        self, answers: Answers, at: Mask, value: npt.NDArray[np.uint32], before: npt.NDArray[np.uint32]
    ) -> None:
        """Loads without a tag: nothing to see outside RAM and in the server's own pages, else the value counts."""
        guest = self.probes.guest
        closed = np.fromiter(self.board.kinds.closed, np.int64, len(self.board.kinds.closed))
        visible = self.layout.ram(guest.frames) & ~np.isin(guest.frames, closed)
        same = ~visible | ((value ^ before) & ~_AD_BITS == 0)
        answers.frames[at] = np.where(same, guest.frames, NO_FRAME)[at]


def _take(answers: Answers, at: Indices) -> Answers:
    return Answers(answers.codes[at], answers.frames[at])


def _subset(probes: ProbeSet, at: Indices) -> ProbeSet:
    return ProbeSet(
        probes.page[at],
        probes.access[at],
        probes.va[at] if len(probes.va) else probes.va,
        probes.place[at],
        probes.token[at],
        probes.tagged[at],
        _take(probes.guest, at),
        _take(probes.old, at) if probes.old else None,
        probes.code_frames,
    )
