"""Engines that translate nothing and count exactly, and workloads that only call them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np

from harness.compare.clock import Make
from harness.engine import MMIO, RETRY, EngineConfig, MachineMemory, PlainMemory, ShadowEngine
from harness.work import Held, Work
from harness.workload.workload import DONE, MEASURED, WARM_UP, Mark, Value, WorkloadError, unmarked

STORE_TO_TABLE, NOT_THERE, A_DEVICE = 1, 2, 3  # what a fault at page 1, 2, 3 (modulo 4) of `Plain` comes to
TABLE = 0x100  # bytes that a table of `Counting` holds


class Plain:
    """An engine that tells nothing of its work. A fault's answer hangs on its address alone."""

    name = "plain"

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        self.config = config
        self.memory = memory
        self.asked: Counter[str] = Counter()

    def shadow_fault(self, va: int, access: int) -> int:
        self.asked["shadow_fault"] += 1
        self.walk(va)
        kind = va >> 12 & 3
        if kind == STORE_TO_TABLE:
            self.table_written(va >> 12)
        elif kind == NOT_THERE:
            return access
        elif kind == A_DEVICE:
            return MMIO
        return RETRY

    def walk(self, va: int) -> int:
        return va

    def table_written(self, gfn: int) -> None:
        self.asked["table_written"] += 1

    def load_cr3(self, cr3: int) -> None:
        self.asked["load_cr3"] += 1

    def idle(self) -> bool:
        self.asked["idle"] += 1
        return False

    def stats(self) -> dict[str, Any]:
        return dict(self.asked) | {"name": self.name}


class Counting(Plain):
    """One that tells: a walk compares `depth` entries, a fault writes an SPTE after it, and a load of CR3 synchronises
    the number of entries that its address says, two at once and each of those by looking at three SPTEs."""

    name = "counting"
    frames_per_table = 2
    depth = 4
    operations: ClassVar[Mapping[str, str]] = {
        "gva_to_gpa": "walk",
        "resync_spte": "two",
        "shadow_resync_all": "resync",
        "table_written": "open",
    }

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        super().__init__(config, memory)
        self.visited = self.compared = self.written = self.pages = 0

    def shadow_fault(self, va: int, access: int) -> int:
        answer = super().shadow_fault(va, access)
        self.written += 1
        self.pages += va >> 12 == 8
        return answer

    def walk(self, va: int) -> int:
        self.compared += self.depth
        return va

    def table_written(self, gfn: int) -> None:
        super().table_written(gfn)
        self.open(gfn)

    def open(self, gfn: int) -> None:
        self.visited += 10

    def load_cr3(self, cr3: int) -> None:
        super().load_cr3(cr3)
        self.resync(cr3)

    def resync(self, entries: int) -> None:
        """Recursive, as a resynchronisation of tables below tables is."""
        if entries:
            self.two()
            self.resync(entries - 2)

    def two(self) -> None:
        self.visited += 6
        self.asked["resync_spte"] += 2

    def work(self) -> Work:
        return Work(self.visited, self.compared, self.written, 0, self.pages)

    def done(self) -> Mapping[str, int]:
        return {"resync_spte": self.asked["resync_spte"]}

    def held(self) -> Held:
        faults = self.asked["shadow_fault"]
        return Held(TABLE * (faults if faults < 10 else 5), 0, 16, 0x1000)


Script = Sequence[tuple[str, tuple[int, ...]]]


class Scripted:
    """A workload that makes the calls of `warm_up`, and then those of `script`. wrong: it finds the engines of these
    names to be wrong. made: the engines that ran it."""

    description = "what a test says"
    facts: Mapping[str, int] = {"pages": 4, "tables": 2}

    def __init__(
        self, script: Script, warm_up: Script = (), name: str = "faults", wrong: Sequence[str] = (), size: int = 1
    ) -> None:
        self.name = name
        self.knobs: Mapping[str, Value] = {"size": size}
        self._script, self._warm_up, self._wrong = script, warm_up, wrong
        self.made: list[Any] = []
        self.given: list[EngineConfig] = []

    def run(self, make: Make, mark: Mark = unmarked) -> None:
        memory = PlainMemory(np.zeros(4096, np.uint8))
        config = EngineConfig(1, 8 * int(getattr(make, "frames_per_table", 4)), 0x1000, options={"mode": "quick"})
        engine = make(config, memory)
        self.made.append(engine)
        self.given.append(config)
        mark(WARM_UP)
        _call(engine, self._warm_up)
        mark(MEASURED)
        _call(engine, self._script)
        mark(DONE)
        _call(engine, [("load_cr3", (64,))])
        if engine.name in self._wrong:
            raise WorkloadError(f"{engine.name} is wrong at 0x1000")


def _call(engine: ShadowEngine, script: Script) -> None:
    for name, arguments in script:
        getattr(engine, name)(*arguments)


def faults(*pages: int) -> Script:
    """Stores to pages, by their numbers."""
    return [("shadow_fault", (page << 12, 1)) for page in pages]


def as_engine(made: type[Plain]) -> Make:
    return cast("Make", made)


def engines(**known: Callable[..., Any]) -> Callable[[str], Any]:
    """What `harness.engines.engine_class` would be if `known` were installed."""

    def engine_class(name: str) -> Any:
        if name not in known:
            raise ValueError(f"unknown engine {name!r} (installed: {', '.join(known)})")
        return known[name]

    return engine_class
