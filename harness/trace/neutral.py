"""A trace through another engine than it was recorded with: what the guest did, and what it must have seen.

The recorded engine's shadow had faults that this one's has not, and the other way round; it had other tables in sync.
So a fault is delivered only if the hardware would have faulted on this engine's shadow; a table that this engine has
write-protected is told to be written when the trace says that its words have changed; and of the answers only what the
architecture prescribes is compared.

A trace tells of a change of a table when the recorded engine read it, which may be later than the guest made it: an
engine that would have noticed earlier, and had it flushed, may answer by the old entry until the next flush. Such
answers are no differences: the engine is synchronised, and they are counted (`Replay.late`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from harness.check.shadow_answers import FILL_LIMIT, shadow_answers
from harness.check.verdict import STUCK, Frames
from harness.engine import AWAY, GENERAL_PROTECTION, MMIO, RETRY, ShadowRoot
from harness.trace import records as r
from harness.trace.exact import Replay
from harness.trace.tally import ANSWERS, DIRTY_LOG, UNEXPLAINED
from harness.x86.access import Access
from harness.x86.bits import PAGE_SHIFT
from harness.x86.walk import MAPPED, Path, judge, tracer

_NEVER: Final = -2
_TOLD: Final = 8  # gfns in one difference
_NO_FRAME_THERE: Final = (AWAY, MMIO)


class NeutralReplay(Replay):
    """See `Replay`, and above. late: answers by an entry whose change came to this engine later than it might have."""

    exact = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tables: dict[int, bool] = {}  # the engine's, as of the last record of memory
        self._tables_at = _NEVER  # that record
        self._root: ShadowRoot | None = None
        self._shadow_path: Callable[[int], Path]
        self._logging = False
        self._stored: set[int] = set()  # gfns stored to in this round of the dirty log

    def _same_exception(self, expected: str, said: str) -> bool:
        del said
        return bool(expected)

    # ---- tables that are written

    def _protected(self, gfn: int) -> bool:
        """Whether the engine has the table `gfn` in sync, so that the guest's first store to it is seen."""
        if self._tables_at != self.number - 1:  # the engine was called since
            self._tables = self.engine.guest_tables()
        self._tables_at = self.number
        return self._tables.get(gfn) is True

    def _table_written(self, record: r.TableWritten) -> None:
        if self._protected(record.gfn):
            super()._table_written(record)

    def _invalidate_mfn(self, record: r.InvalidateMfn) -> None:
        """A table that has moved is told of when the recorded engine reads it again, and is unknown until then."""
        super()._invalidate_mfn(record)
        if self.engine.guest_tables().get(record.gfn):
            self._written(record.gfn)

    def _words(self, record: r.Words) -> None:
        gfn = self._gfn(record.mfn)
        if gfn >= 0 and self._protected(gfn):
            q, first, differs = self.memory.q, record.mfn << 9, self.pending.differs
            pairs = zip(record.indices, record.values, strict=True)
            if any(differs(q[first + index], value) for index, value in pairs):
                self._written(gfn)
        super()._words(record)

    def _page(self, record: r.Page) -> None:
        gfn = self._gfn(record.mfn)
        if gfn >= 0 and self._protected(gfn):
            self._written(gfn)
        super()._page(record)

    def _gfn(self, mfn: int) -> int:
        """The guest frame whose machine frame `mfn` is, -1 where it is nobody's."""
        self.must_fit(0 <= mfn < self.memory.frames)
        return self.memory.to_gfn[mfn]

    def _written(self, gfn: int) -> None:
        self._tables_at = _NEVER
        self.engine.table_written(gfn)

    def _shadow_words(self, record: r.ShadowWords) -> None:
        """It was another engine's shadow."""

    # ---- faults

    def _fault(self, record: r.Fault) -> None:
        va, access, recorded, away = record
        self._used[va >> PAGE_SHIFT] = None
        self._judge(va, access, recorded, self._access(va, access), away)

    def _faults(self, record: r.Faults) -> None:
        addresses, accesses, results, away = record
        self._used |= dict.fromkeys(va >> PAGE_SHIFT for va in addresses)
        va, access = np.asarray(addresses, np.uint64), np.asarray(accesses, np.uint8)
        answers = shadow_answers(self.engine, self.state.pkru, va, access, self.phys_bits, _as_they_are)
        for row in zip(addresses, accesses, results, answers.codes.tolist(), strict=True):
            self._judge(*row, away)

    def _access(self, va: int, access: int) -> int:
        """What the guest's access comes to on this engine's shadow: RETRY where it is made."""
        for _ in range(FILL_LIMIT):
            root = self.engine.root
            verdict = judge(self._walk_shadow(root, va), Access(access), root.control)
            if verdict.gpa is not None:
                return RETRY
            if verdict.code is None:
                return GENERAL_PROTECTION
            result = self.engine.shadow_fault(va, access)
            if result != RETRY:
                return result
        return STUCK

    def _walk_shadow(self, root: ShadowRoot, va: int) -> Path:
        """As the hardware would, by the tables in the pool."""
        if root is not self._root and root != self._root:
            base, words = self.engine.pool
            flat, origin = words.reshape(-1), base << PAGE_SHIFT

            def read(address: int, size: int) -> int | None:
                del size  # shadow entries have 8 bytes
                word = (address - origin) >> 3
                return int(flat[word]) if 0 <= word < len(flat) else None

            self._root, self._shadow_path = root, tracer(replace(root.control, cr3=root.root), read, self.phys_bits)
        return self._shadow_path(va)

    def _judge(self, va: int, access: int, recorded: int, answer: int, away: int) -> None:
        self.tally.compared[ANSWERS] += 1
        if answer == RETRY and access & 3 == 1 and self._logging:
            self._stored.add(self.path(va).gfn)
        if recorded in (answer, r.RAISED_RESULT):
            return
        path = self.path(va)
        if self.pending.covers(path, self.memory, self.state.mode):
            self.late += 1
            self.engine.resync_all()
            return
        if AWAY in (answer, recorded) and self._meets_away(path, answer in _NO_FRAME_THERE):
            return
        self.wrong_answer(va, access, recorded, answer, away)

    def _meets_away(self, path: Path, missed: bool) -> bool:
        """Whether `path` leads through a table that was taken away, or (`missed`: the access was not made) to a frame
        that was. An engine need not have a table to translate by what it made of it before."""
        through = any(step.table in self.away for step in path.steps)
        return through or (missed and path.outcome == MAPPED and path.gfn in self.away)

    # ---- checks

    def _unexplained(self, record: r.Unexplained) -> None:
        """Every change was announced to this engine: there can be none."""
        self.recorded.misses += len(record.gfns)
        gfns = self.engine.unexplained_changes()
        self.tally.compared[UNEXPLAINED] += 1
        if gfns:
            answers = [("announced", "every one"), ("replayed", _gfns(gfns))]
            self.differs(UNEXPLAINED, "tables that changed unannounced", answers)

    def _drained(self, what: str, recorded: int, replayed: int) -> None:
        """Which frames an engine watches is its own affair."""

    def _dirty_start(self, record: r.DirtyStart) -> None:
        super()._dirty_start(record)
        self._logging = True
        self._stored.clear()

    def _dirty_stop(self, record: r.DirtyStop) -> None:
        super()._dirty_stop(record)
        self._logging = False

    def _dirty_read(self, record: r.DirtyRead) -> None:
        """What this engine logs may be more than the other did, but not less than the stores that faulted."""
        del record
        log = self.engine.dirty_log_read()
        stored, self._stored = self._stored, set()
        self.tally.compared[DIRTY_LOG] += len(stored)
        lost = sorted(gfn for gfn in stored if 0 <= gfn < len(log) and not log[gfn])
        if lost:
            answers = [("stored to", _gfns(lost)), ("replayed", "not in the log")]
            self.differs(DIRTY_LOG, f"{len(lost)} frames are lost", answers)


def _as_they_are(mfns: Frames) -> Frames:
    return mfns


def _gfns(gfns: Sequence[int]) -> str:
    more = f" and {len(gfns) - _TOLD} more" if len(gfns) > _TOLD else ""
    return ", ".join(f"gfn {gfn:#x}" for gfn in gfns[:_TOLD]) + more
