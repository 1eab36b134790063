"""A trace through an engine, call by call as it was recorded: the engine that it was recorded with, set up alike."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.check.verdict import NO_FRAME, answer_text
from harness.engine import AWAY, MMIO, RETRY
from harness.trace import records as r
from harness.trace.reader import Trace
from harness.trace.running import MakeEngine, Running
from harness.trace.tally import ANSWERS, AUDITS, DIRTY_LOG, POOL, QUEUES, UNEXPLAINED, WALKS
from harness.trace.walks import hold_against_guest
from harness.x86.access import Access
from harness.x86.bits import CR0_PG, CR4_PGE, ENTRIES, PAGE_SHIFT, PAGE_SIZE
from harness.x86.control import ControlState
from harness.x86.walk import judge


@dataclass(slots=True)
class Recorded:
    """What the trace says that the run itself found. misses: stores to tables that no event announced."""

    checks: int = 0
    mismatches: int = 0
    audit_failures: int = 0
    misses: int = 0


class Replay(Running):
    """See `Running`. Each call is made as it was recorded, whatever the engine answers.

    pool: whether the pool's words are held against the recording. checking: whether audits and walks are made too.
    recorded: see there. checkpoint: name of the last one. away: gfns whose frames were taken away. late: see
    `harness.trace.neutral`.
    """

    def __init__(
        self,
        trace: Trace,
        make_engine: MakeEngine,
        options: dict[str, str],
        pool: bool = False,
        checking: bool = True,
        follow: bool = False,
    ) -> None:
        """Raises what `Running` does."""
        super().__init__(trace, make_engine, options, follow)
        self.recorded = Recorded()
        self.checkpoint = ""
        self.away: set[int] = set()
        self.late = 0
        self._pool = pool
        self._checking = checking
        self._audited = False
        self._used: dict[int, None] = {}  # pages to compare: faulted, flushed, pending

    def handlers(self) -> dict[type, Callable[[Any], None]]:
        return {
            r.Control: self._control,
            r.LoadCr3: self._load_cr3,
            r.Invlpg: self._invlpg,
            r.TableWritten: self._table_written,
            r.Fault: self._fault,
            r.Faults: self._faults,
            r.Pkru: self._pkru,
            r.InvalidateMfn: self._invalidate_mfn,
            r.Pdptes: self._pdptes,
            r.DirtyStart: self._dirty_start,
            r.DirtyRead: self._dirty_read,
            r.DirtyStop: self._dirty_stop,
            r.ResyncAll: self._resync_all,
            r.Unexplained: self._unexplained,
            r.WatchChanges: self._watch_changes,
            r.ExecutableChanges: self._executable_changes,
            r.Idle: self._idle,
            r.Audit: self._audit,
            r.Words: self._words,
            r.Page: self._page,
            r.ShadowWords: self._shadow_words,
            r.Checkpoint: self._arrive,
            r.Checked: self._checked,
        }

    # ---- what the guest did

    def _control(self, record: r.Control) -> None:
        old, state = self.state, record.state
        self.engine.control(state)
        if self.raises:
            return
        self.state = state
        self.pending.enter(state.mode)
        if state.cr3 != old.cr3 or (state.cr0 ^ old.cr0) & CR0_PG or (state.cr4 ^ old.cr4) & CR4_PGE:
            self.pending.flush()

    def _load_cr3(self, record: r.LoadCr3) -> None:
        self.engine.load_cr3(record.cr3)
        if self.raises:
            return
        old = self.state
        self.state = ControlState(old.cr0, record.cr3, old.cr4, old.efer, old.pkru)
        self.pending.flush()

    def _invlpg(self, record: r.Invlpg) -> None:
        self.engine.invlpg(record.va)
        self.pending.invlpg(record.va)
        self._used[record.va >> PAGE_SHIFT] = None

    def _table_written(self, record: r.TableWritten) -> None:
        self.engine.table_written(record.gfn)

    def _pkru(self, record: r.Pkru) -> None:
        self.engine.set_pkru(record.pkru)
        old = self.state
        self.state = ControlState(old.cr0, old.cr3, old.cr4, old.efer, record.pkru)

    def _pdptes(self, record: r.Pdptes) -> None:
        self.engine.restore_pdptes(record.pdptes)

    def _invalidate_mfn(self, record: r.InvalidateMfn) -> None:
        self.engine.xi_invld_mfn(record.gfn, record.mfn)
        if self.raises:
            return
        self.memory.remap(record.gfn, record.mfn)
        if record.mfn < 0:
            self.away.add(record.gfn)
        else:
            self.away.discard(record.gfn)

    def _resync_all(self, _: r.ResyncAll) -> None:
        self.engine.resync_all()
        self.synchronised()

    def synchronised(self) -> None:
        """Nothing is pending: the engine was asked to synchronise all there is."""
        root = self.state.root_gpa
        mfn = self.memory.mfn(root >> PAGE_SHIFT)
        self.pending.synchronise(self.state.mode, mfn << PAGE_SHIFT | root & 0xFFF if mfn >= 0 else -1)

    def _idle(self, record: r.Idle) -> None:
        idle = self.engine.idle
        for _ in range(record.calls):
            if not idle():  # nor would the calls that follow find anything to do
                break

    # ---- memory

    def _words(self, record: r.Words) -> None:
        mfn, indices, values = record
        memory, pending = self.memory, self.pending
        self.must_fit(0 <= mfn < memory.frames and max(indices) < ENTRIES)
        memory.touched.add(mfn)
        q, first, present = memory.q, mfn << 9, pending.present
        for index, value in zip(indices, values, strict=True):
            word = first + index
            if q[word] & present:
                pending.change(word, q[word], value)
            q[word] = value

    def _page(self, record: r.Page) -> None:
        memory = self.memory
        self.must_fit(0 <= record.mfn < memory.frames and len(record.content) == PAGE_SIZE)
        memory.touched.add(record.mfn)
        old, new = memory.page(record.mfn), np.frombuffer(record.content, np.uint64)
        self.pending.change_page(record.mfn, old, new)
        old[:] = new

    def _shadow_words(self, record: r.ShadowWords) -> None:
        """What the processor itself wrote into the shadow."""
        base, pool = self.engine.pool
        self.must_fit(0 <= record.mfn - base < len(pool) and max(record.indices) < ENTRIES)
        pool[record.mfn - base][list(record.indices)] = record.values

    # ---- what the engine answers

    def _fault(self, record: r.Fault) -> None:
        va, access, result, away = record
        self._used[va >> PAGE_SHIFT] = None
        answer = self.engine.shadow_fault(va, access)
        if self.raises:
            return
        self.tally.compared[ANSWERS] += 1
        if answer != result or (result == AWAY and self.engine.away_gfn != away):
            self.wrong_answer(va, access, result, answer, away)

    def _faults(self, record: r.Faults) -> None:
        addresses, accesses, results, away = record
        self._used |= dict.fromkeys(va >> PAGE_SHIFT for va in addresses)
        answers = self.engine.shadow_faults(addresses, accesses)
        if self.raises:
            return
        self.tally.compared[ANSWERS] += len(results)
        if tuple(answers) != results:
            for va, access, result, answer in zip(addresses, accesses, results, answers, strict=True):
                if result != answer:
                    self.wrong_answer(va, access, result, answer, away)
        elif AWAY in results and self.engine.away_gfn != away:
            self.wrong_answer(addresses[results.index(AWAY)], accesses[results.index(AWAY)], AWAY, AWAY, away)

    def wrong_answer(self, va: int, access: int, recorded: int, replayed: int, away: int) -> None:
        """A fault came to something else than it must."""
        path = self.path(va)
        verdict = judge(path, Access(access), self.state)
        answers = [
            ("recorded", self._answer_text(recorded, away)),
            ("replayed", self._answer_text(replayed, self.engine.away_gfn)),
            ("guest walk", verdict.text),
        ]
        self.differs(ANSWERS, f"{Access(access).text} to {va:#x}", answers, va)

    def _answer_text(self, result: int, away: int) -> str:
        if result == AWAY:
            return f"needs gfn {away:#x}, which was taken away"
        if result == RETRY:
            return "resolved"
        return "no memory of the guest's" if result == MMIO else answer_text(result, NO_FRAME)

    def _unexplained(self, record: r.Unexplained) -> None:
        self.recorded.misses += len(record.gfns)
        gfns = tuple(self.engine.unexplained_changes())
        self.tally.compared[UNEXPLAINED] += 1
        if gfns != record.gfns:
            answers = [("recorded", _gfns(record.gfns)), ("replayed", _gfns(gfns))]
            self.differs(UNEXPLAINED, "tables that changed unannounced", answers)

    def _dirty_start(self, _: r.DirtyStart) -> None:
        self.engine.dirty_log_start()

    def _dirty_stop(self, _: r.DirtyStop) -> None:
        self.engine.dirty_log_stop()

    def _dirty_read(self, record: r.DirtyRead) -> None:
        log = self.engine.dirty_log_read()
        self.tally.compared[DIRTY_LOG] += 1
        logged = int((log != 0).sum())
        if zlib.crc32(log.data) != record.crc:
            same = ", but not the same" if logged == record.logged else ""
            answers = [("recorded", f"{record.logged} frames"), ("replayed", f"{logged} frames{same}")]
            self.differs(DIRTY_LOG, "the log as it was read", answers)

    def _watch_changes(self, record: r.WatchChanges) -> None:
        self._drained("frames to watch", record.size, len(self.engine.watch_changes()))

    def _executable_changes(self, record: r.ExecutableChanges) -> None:
        self._drained("frames to scan for code", record.size, len(self.engine.executable_changes()))

    def _drained(self, what: str, recorded: int, replayed: int) -> None:
        self.tally.compared[QUEUES] += 1
        if recorded != replayed:
            self.differs(QUEUES, what, [("recorded", str(recorded)), ("replayed", str(replayed))])

    # ---- checks

    def _audit(self, record: r.Audit) -> None:
        self._audited = True
        if not self._checking:
            self.raises = ""
            return
        found = self.look()
        if self.exact and found != record.failures:
            answers = [("recorded", f"{record.failures} failures"), ("replayed", f"{found} failures")]
            self.differs(AUDITS, "how many invariants are broken", answers)

    def look(self) -> int:
        """Audits the engine. Returns how many failures there were."""
        failures = self.engine.audit()
        self.tally.compared[AUDITS] += 1
        for one in failures:
            self.differs(AUDITS, f"{one.invariant}: {one.detail}", [])
        return len(failures)

    def _arrive(self, record: r.Checkpoint) -> None:
        self.checkpoint = record.name
        if not self._audited and self._checking:
            self.look()
        self._audited = False
        self._compare(record.crc)

    def _checked(self, record: r.Checked) -> None:
        told = self.recorded
        told.checks += record.checks
        told.mismatches += record.mismatches
        told.audit_failures += record.audit_failures
        self._compare(record.crc)

    def _compare(self, crc: int) -> None:
        """All that can be compared where the run looked at its guest."""
        if self._pool:
            self.tally.compared[POOL] += 1
            found = zlib.crc32(self.engine.pool[1].data)
            if found != crc:
                answers = [("recorded", f"CRC-32 {crc:#010x}"), ("replayed", f"CRC-32 {found:#010x}")]
                self.differs(POOL, f"the pool's words at checkpoint {self.checkpoint!r}", answers)
        if not self._checking:
            self._used.clear()
            return
        held = hold_against_guest(self, list(self._used))
        self._used = dict.fromkeys(held.pending)
        self.tally.compared[WALKS] += held.compared
        for va, access, guest, shadow in held.wider:
            self.differs(WALKS, f"{access.text} to {va:#x}", [("guest walk", guest), ("shadow", shadow)], va)


def _gfns(gfns: tuple[int, ...]) -> str:
    return ", ".join(f"gfn {gfn:#x}" for gfn in gfns) or "none"
