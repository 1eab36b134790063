"""What the calls of an engine cost: each engine is run as a subclass of itself that notes it.

The same work is done several times, so that no measurement is in another's way:

- `Outside`: the calls from outside, by the work that the engine says it has done, and by the clock: nothing but the
  call itself lies between two readings;
- `Inside`: the operations inside the engine, by their work;
- `InsideTimes`: the same by the clock.

An engine is deterministic, so that the n-th call of one pass is the n-th of the others.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from harness.engine import RETRY
from harness.work import Counted, Work

if TYPE_CHECKING:
    from harness.engine import EngineConfig, MachineMemory, ShadowEngine
    from harness.work import Held

Make = Callable[["EngineConfig", "MachineMemory"], "ShadowEngine"]
Method = Callable[..., Any]

# What the guest causes, and what its hypervisor asks: the calls from outside.
CALLS: Final = (
    *("shadow_fault", "shadow_faults", "table_written", "control", "load_cr3", "invlpg", "set_pkru"),
    *("restore_pdptes", "resync_all", "xi_invld_mfn", "dirty_log_start", "dirty_log_read", "dirty_log_stop", "idle"),
)
FAULT_CODE: Final = CALLS.index("shadow_fault")
IDLE_CODE: Final = CALLS.index("idle")  # nobody waits for what is done in idle moments
TABLE_WRITTEN: Final = "table_written"
FILLED, WROTE, INJECTED, OTHERWISE = range(4)  # what a fault came to: see FAULT_KINDS of `measurement`

WORDS: Final = 4  # fields of Work that are words of tables
LOOK_EVERY: Final = 32  # calls from outside between two looks at what the engine holds
CALIBRATION: Final = 20000  # calls

# What a call takes is told by the clock, and at most what the thread has had of the processor around it: that is always
# a little more, unless the processor was given to somebody else in between.
_now = time.perf_counter_ns
_busy = time.thread_time_ns


class Pass:
    """One run of a workload through one engine, of which nothing is noted. off: nothing is noted now."""

    def __init__(self) -> None:
        self.off = True

    def methods(self, engine: type) -> dict[str, Method]:
        """What the subclass has in place of the methods of `engine`."""
        del engine
        return {}

    def make(self, make: Make) -> Make:
        """A factory of engines as `make` gives them, that note what they do here."""
        if isinstance(make, type):
            return self._subclass(make)

        def measured(config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
            engine = make(config, memory)
            engine.__class__ = self._subclass(type(engine))
            return engine

        return measured

    def _subclass(self, engine: type) -> type:
        return type(f"Measured{engine.__name__}", (engine,), {"__slots__": (), **self.methods(engine)})

    def begin(self, engine: ShadowEngine) -> None:
        """What `engine` does from now on is noted."""
        del engine
        self.off = False

    def end(self, engine: ShadowEngine, last: bool) -> None:
        """Nothing of it is any more; `last`: nor will be. May be called when nothing was."""
        del engine, last
        self.off = True


class Outside(Pass):
    """The calls from outside, in their order.

    codes: which of CALLS each was; ns: how long it took; work: an array for each field of `harness.work.Work`, empty
    when the engine does not tell its work. held: what the engine held now and then, at last when the pass ended.
    counters: the numbers of its stats() then.
    """

    def __init__(self, counted: bool) -> None:
        """counted: whether the engine is a `harness.work.Counted`."""
        super().__init__()
        self._counted = counted
        self.codes = array("B")
        self.ns = array("q")
        self.work = tuple(array("q") for _ in Work._fields) if counted else ()
        self.held: list[Held] = []
        self.counters: dict[str, float] = {}

    def end(self, engine: ShadowEngine, last: bool) -> None:
        super().end(engine, last)
        if last:
            if self._counted:
                self.held.append(_counted(engine).held())
            self.counters = {name: value for name, value in engine.stats().items() if isinstance(value, (int, float))}

    def methods(self, engine: type) -> dict[str, Method]:
        wrapped = self._with_work if self._counted else self._timed
        return {name: wrapped(code, getattr(engine, name)) for code, name in _calls_of(engine)}

    def _timed(self, code: int, call: Method) -> Method:
        note_code, note_ns = self.codes.append, self.ns.append

        def timed(engine: object, *arguments: Any) -> Any:
            if self.off:
                return call(engine, *arguments)
            self.off = True  # what the engine asks of itself is part of this call
            try:
                busy = _busy()
                began = _now()
                answer = call(engine, *arguments)
                took = _now() - began
                busy = _busy() - busy
            finally:
                self.off = False
            note_code(code)
            note_ns(min(took, busy))
            return answer

        return timed

    def _with_work(self, code: int, call: Method) -> Method:
        timed = self._timed(code, call)

        def counted(engine: Any, *arguments: Any) -> Any:
            if self.off:
                return call(engine, *arguments)
            before = engine.work()
            answer = timed(engine, *arguments)
            for values, was, now in zip(self.work, before, engine.work(), strict=True):
                values.append(now - was)
            if not len(self.codes) % LOOK_EVERY:
                self.held.append(engine.held())
            return answer

        return counted


class Tally:
    """One operation inside the engine, call by call as they ended. amounts: of each, what it called in turn included.
    whole: whether no other call of the same operation encloses it. work: of those together, in `Inside`. depth: calls
    of it that are not over."""

    __slots__ = ("amounts", "depth", "whole", "work")

    def __init__(self) -> None:
        self.depth = 0
        self.amounts = array("q")
        self.whole = array("B")
        self.work = [0] * len(Work._fields)

    @property
    def calls(self) -> int:
        return len(self.amounts)

    def note(self, amount: int) -> None:
        """A call has ended."""
        self.amounts.append(amount)
        self.whole.append(not self.depth)


class Inside(Pass):
    """The operations inside the engine by their work, and what the faults came to.

    codes: of the calls from outside, which of CALLS; kinds: what it came to, if it was a fault. tallies: by the
    operation's name; done: how often each was done, for those of which the calls of its method do not tell.
    """

    def __init__(self, inner: Mapping[str, str]) -> None:
        """inner: the engine's methods by the operation that they are, none for an engine that is no
        `harness.work.Counted`."""
        super().__init__()
        self._inner = inner
        self._within = False  # a call from outside is not over
        self._wrote = False  # in it a table was written to that was in sync
        self.codes = array("B")
        self.kinds = array("B")
        self.tallies = {name: Tally() for name in inner}
        self.done: Counter[str] = Counter()

    def begin(self, engine: ShadowEngine) -> None:
        if self._inner:
            self.done.subtract(_counted(engine).done())
        super().begin(engine)

    def end(self, engine: ShadowEngine, last: bool) -> None:
        if self._inner and not self.off:
            self.done.update(_counted(engine).done())
        super().end(engine, last)

    def methods(self, engine: type) -> dict[str, Method]:
        out: dict[str, Method] = {}
        for name, method in self._inner.items():
            out[method] = self._counted_inside(self.tallies[name], out.get(method, getattr(engine, method)))
        written = self._inner.get(TABLE_WRITTEN, TABLE_WRITTEN)
        if hasattr(engine, written):
            out[written] = self._noticed(out.get(written, getattr(engine, written)))
        for code, name in _calls_of(engine):
            out[name] = self._call(code, out.get(name, getattr(engine, name)))
        return out

    def _noticed(self, call: Method) -> Method:
        def noticed(engine: object, *arguments: Any, **named: Any) -> Any:
            self._wrote = True
            return call(engine, *arguments, **named)

        return noticed

    def _call(self, code: int, call: Method) -> Method:
        def noted(engine: object, *arguments: Any) -> Any:
            if self.off or self._within:
                return call(engine, *arguments)
            self._within, self._wrote = True, False
            try:
                answer = call(engine, *arguments)
            finally:
                self._within = False
            self.codes.append(code)
            self.kinds.append(self._kind(answer) if code == FAULT_CODE else OTHERWISE)
            return answer

        return noted

    def _kind(self, answer: int) -> int:
        if answer >= 0:
            return INJECTED
        if answer != RETRY:
            return OTHERWISE
        return WROTE if self._wrote else FILLED

    def _counted_inside(self, tally: Tally, call: Method) -> Method:
        def counted(engine: Any, *arguments: Any, **named: Any) -> Any:
            if self.off:
                return call(engine, *arguments, **named)
            before = engine.work()
            tally.depth += 1
            try:
                answer = call(engine, *arguments, **named)
            finally:
                tally.depth -= 1
            done = engine.work().since(before)
            tally.note(done.words)
            if not tally.depth:
                tally.work = [a + b for a, b in zip(tally.work, done, strict=True)]
            return answer

        return counted


class InsideTimes(Pass):
    """The nanoseconds of the operations inside the engine. tallies: by the operation's name.

    What each operation's own clock costs whoever called it, `cost` nanoseconds, is taken off again.
    """

    def __init__(self, inner: Mapping[str, str], cost: float, nested: bool = False) -> None:
        """inner: see `Inside`. nested: every operation is taken as within another."""
        super().__init__()
        self._inner = inner
        self._cost = cost
        self._done = 0  # operations so far, to know how many were within another
        self._depth = int(nested)  # operations that are not over
        self.tallies = {name: Tally() for name in inner}

    def methods(self, engine: type) -> dict[str, Method]:
        out: dict[str, Method] = {}
        for name, method in self._inner.items():
            out[method] = self._timed(self.tallies[name], out.get(method, getattr(engine, method)))
        return out

    def _timed(self, tally: Tally, call: Method) -> Method:
        def timed(engine: object, *arguments: Any, **named: Any) -> Any:
            if self.off:
                return call(engine, *arguments, **named)
            tally.depth += 1
            before, outermost = self._done, not self._depth
            self._depth += 1
            try:
                busy = _busy() if outermost else 0
                began = _now()
                answer = call(engine, *arguments, **named)
                took = _now() - began
                if outermost:
                    took = min(took, _busy() - busy)
            finally:
                tally.depth -= 1
                self._depth -= 1
            took = max(0, took - int((self._done - before) * self._cost))
            self._done += 1
            tally.note(took)
            return answer

        return timed


def _calls_of(engine: type) -> Iterator[tuple[int, str]]:
    """(code, name) of the calls that `engine` has."""
    for code, name in enumerate(CALLS):
        if hasattr(engine, name):
            yield code, name


def _counted(engine: ShadowEngine) -> Counted:
    assert isinstance(engine, Counted)
    return engine


class _Nothing:
    """An engine that does nothing."""

    def __init__(self, config: object, memory: object) -> None:
        pass

    def shadow_fault(self, va: int, access: int) -> int:
        return va - access


def own_costs(calls: int = CALIBRATION) -> tuple[float, float]:
    """(nanoseconds that a call which does nothing is told to take, nanoseconds that a caller loses by the clock of an
    operation inside it): the clock's own part in `Outside`, and the `cost` of `InsideTimes`. At a quiet moment."""
    make: Any = _Nothing
    outside, inside = Outside(False), InsideTimes({"shadow_fault": "shadow_fault"}, 0.0, nested=True)
    bare, seen, clocked = (noted.make(make)(*_NO_DOMAIN) for noted in (Pass(), outside, inside))
    outside.begin(seen)
    inside.begin(clocked)
    tries = [(_of_a_call(bare, calls), _of_a_call(seen, calls), _of_a_call(clocked, calls)) for _ in range(_TRIES)]
    least = [min(times) for times in zip(*tries, strict=True)]
    return float(sorted(outside.ns)[len(outside.ns) // 10]), max(0.0, least[2] - least[0])


_NO_DOMAIN: Final[tuple[Any, Any]] = (None, None)
_TRIES: Final = 20


def _of_a_call(engine: Any, calls: int) -> float:
    """Nanoseconds of one call of those in one try, seen from the caller."""
    count = max(1, calls // _TRIES)
    began = _now()
    for _ in range(count):
        engine.shadow_fault(3, 1)
    return (_now() - began) / count
