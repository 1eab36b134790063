"""An engine whose calls are written to a trace, with their answers."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from harness.check.memory import Ints
from harness.engine import AWAY, AuditFailure, Bytes, EngineConfig, ShadowEngine, ShadowRoot, Words
from harness.trace.format import MOST_IDLES, PACK, PAGE_FAULT, Kind, tailed, words_tail
from harness.trace.records import RAISED_RESULT
from harness.trace.shadow_watch import ShadowWatch
from harness.trace.writer import TraceWriter
from harness.x86.control import ControlState

Answer = TypeVar("Answer")


class RecordedEngine:
    """`harness.engine.ShadowEngine` that hands every call on to another, `engine`, and writes those that change
    something, or drain something. Everything else of that engine is there too, unwritten.

    What was read while a call ran is in the trace before its record. shadow_fault, idle and what is behind `root` are
    functions of their own: they are called at each exit of a live guest, and `__getattr__` makes every access to an
    attribute of this class a slow one.
    """

    def __init__(self, engine: ShadowEngine, config: EngineConfig, writer: TraceWriter) -> None:
        self._engine, self._writer = engine, writer
        self._put = writer.put
        self._p2m = np.arange(config.frames) if config.p2m is None else config.p2m.copy()
        self._shadow = ShadowWatch(engine.pool) if config.pool_memory is not None else None
        self.shadow_fault = _shadow_fault(engine, writer, self._shadow, self.begin)
        self.idle = _idle(engine, writer)
        self._root = _root(engine, self._shadow, self.begin)
        self.audit_failures = 0  # so far
        for name, _ in inspect.getmembers(type(engine), inspect.isroutine):
            if not (name.startswith("_") or name in self.__dict__ or hasattr(RecordedEngine, name)):
                setattr(self, name, getattr(engine, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    # ---- writing

    def begin(self) -> None:
        """To be called before the engine is: writes what the processor has written into the shadow."""
        if self._shadow is not None and self._shadow.watching:
            written = self._shadow.written()
            if written is not None:
                mfn, first, values = written
                indices = range(first, first + len(values))
                self._put(tailed(Kind.SHADOW_WORDS, mfn, tail=words_tail(indices, values)))

    def _over(self) -> None:
        """To be called once the engine was."""
        if self._shadow is not None and self._shadow.watching:
            self._shadow.look()

    def _told(self, kind: Kind, *fields: int, call: Callable[[], None]) -> None:
        """A call that answers nothing; `fields` are its arguments."""
        self.begin()
        try:
            call()
        except Exception as error:
            self._put(_raised(error))
            raise
        finally:
            self._put(PACK[kind](kind, *fields))
            self._over()

    def _asked(self, call: Callable[[], Answer], record: Callable[[Answer | None], bytes]) -> Answer:
        """A call whose answer, None when it raised, goes into its `record`."""
        self.begin()
        answer = None
        try:
            answer = call()
        except Exception as error:
            self._put(_raised(error))
            raise
        finally:
            self._put(record(answer))
            self._over()
        return answer

    # ---- what the guest did

    def control(self, state: ControlState) -> None:
        fields = state.cr0, state.cr3, state.cr4, state.efer, state.pkru
        self._told(Kind.CONTROL, *fields, call=lambda: self._engine.control(state))

    def load_cr3(self, cr3: int) -> None:
        self._told(Kind.LOAD_CR3, cr3, call=lambda: self._engine.load_cr3(cr3))

    def invlpg(self, va: int) -> None:
        self._told(Kind.INVLPG, va, call=lambda: self._engine.invlpg(va))

    def table_written(self, gfn: int) -> None:
        self._told(Kind.TABLE_WRITTEN, gfn, call=lambda: self._engine.table_written(gfn))

    def set_pkru(self, pkru: int) -> None:
        self._told(Kind.PKRU, pkru, call=lambda: self._engine.set_pkru(pkru))

    def shadow_faults(self, addresses: Sequence[int], accesses: Sequence[int]) -> list[int]:
        def record(results: list[int] | None) -> bytes:
            told = [RAISED_RESULT] * len(addresses) if results is None else results
            away = self._engine.away_gfn if AWAY in told else -1
            columns = np.asarray(addresses, "<u8"), np.asarray(accesses, np.uint8), np.asarray(told, "<i4")
            return tailed(Kind.FAULTS, away, tail=b"".join(column.tobytes() for column in columns))

        return self._asked(lambda: self._engine.shadow_faults(addresses, accesses), record)

    # ---- frames and migration

    def xi_invld_mfn(self, gfn: int, mfn: int) -> None:
        self._told(Kind.INVALIDATE_MFN, gfn, mfn, call=lambda: self._engine.xi_invld_mfn(gfn, mfn))
        self._p2m[gfn] = mfn

    def restore_pdptes(self, pdptes: tuple[int, int, int, int]) -> None:
        self._told(Kind.PDPTES, *pdptes, call=lambda: self._engine.restore_pdptes(pdptes))

    def dirty_log_start(self) -> None:
        self._told(Kind.DIRTY_START, call=self._engine.dirty_log_start)

    def dirty_log_read(self) -> Bytes:
        def record(log: Bytes | None) -> bytes:
            seen = (0, 0) if log is None else (zlib.crc32(log.data), np.count_nonzero(log))
            return PACK[Kind.DIRTY_READ](Kind.DIRTY_READ, *seen)

        return self._asked(self._engine.dirty_log_read, record)

    def dirty_log_stop(self) -> None:
        self._told(Kind.DIRTY_STOP, call=self._engine.dirty_log_stop)

    # ---- what the hardware, the interception and the checker see

    @property
    def root(self) -> ShadowRoot:
        return self._root()

    @property
    def pool(self) -> tuple[int, Words]:
        return self._engine.pool

    def table_mfns(self) -> list[int]:
        """The machine frames of all guest tables that the engine knows."""
        gfns = np.fromiter(self._engine.guest_tables(), np.int64)
        mfns = self._p2m[gfns[gfns < len(self._p2m)]]
        return [int(mfn) for mfn in mfns[mfns >= 0]]

    def watch_changes(self) -> dict[int, frozenset[int]]:
        return self._asked(self._engine.watch_changes, lambda answer: _size(Kind.WATCH_CHANGES, answer))

    def executable_changes(self) -> Ints:
        return self._asked(self._engine.executable_changes, lambda answer: _size(Kind.EXECUTABLE_CHANGES, answer))

    def unexplained_changes(self) -> list[int]:
        def record(gfns: list[int] | None) -> bytes:
            return tailed(Kind.UNEXPLAINED, tail=np.asarray(gfns or [], "<i8").tobytes())

        return self._asked(self._engine.unexplained_changes, record)

    def resync_all(self) -> None:
        self._told(Kind.RESYNC_ALL, call=self._engine.resync_all)

    def audit(self) -> list[AuditFailure]:
        def record(failures: list[AuditFailure] | None) -> bytes:
            found = 1 if failures is None else len(failures)  # not to get through it is a failure too
            self.audit_failures += found
            return PACK[Kind.AUDIT](Kind.AUDIT, found)

        return self._asked(self._engine.audit, record)


def _size(kind: Kind, answer: dict[int, frozenset[int]] | Ints | None) -> bytes:
    return PACK[kind](kind, 0 if answer is None else len(answer))


def _raised(error: Exception) -> bytes:
    return tailed(Kind.RAISED, tail=f"{type(error).__name__}: {error}".encode(errors="replace"))


def _shadow_fault(
    engine: ShadowEngine, writer: TraceWriter, shadow: ShadowWatch | None, begin: Callable[[], None]
) -> Callable[[int, int], int]:
    call, put, run = engine.shadow_fault, writer.put, writer.run

    def shadow_fault(va: int, access: int) -> int:
        if shadow is not None and shadow.watching:
            begin()
        try:
            result = call(va, access)
        except Exception as error:
            put(_raised(error))
            put(PACK[Kind.FAULT](Kind.FAULT, va, access & 0xFF, RAISED_RESULT, -1))
            raise
        finally:
            if shadow is not None and shadow.watching:
                shadow.look()
        event, idles = writer.event, writer.idles
        if (
            event
            and event[2] == va
            and event[0] == PAGE_FAULT
            and not event[3]
            and result != AWAY
            and idles < MOST_IDLES
        ):
            # The fault of a live guest's exit, and nothing was written since: in one piece with its event.
            run.extend((event[1], va, (result & 0xFFFF_FFFF) << 32 | idles << 8 | access))
            writer.event, writer.idles = None, 0
        else:
            put(PACK[Kind.FAULT](Kind.FAULT, va, access, result, engine.away_gfn if result == AWAY else -1))
        return result

    return shadow_fault


def _idle(engine: ShadowEngine, writer: TraceWriter) -> Callable[[], bool]:
    call = engine.idle

    def idle() -> bool:
        more = call()
        writer.idles += 1
        return more

    return idle


def _root(engine: ShadowEngine, shadow: ShadowWatch | None, begin: Callable[[], None]) -> Callable[[], ShadowRoot]:
    def root() -> ShadowRoot:
        now = engine.root
        if shadow is not None and now is not shadow.root:
            begin()
            shadow.runs_on(now)
        return now

    return root
