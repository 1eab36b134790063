"""A recorded engine is the engine, and its calls are in the trace in their order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.engine import RETRY, AuditFailure, PlainMemory
from harness.engine_views import Explains
from harness.trace import records as r
from harness.trace.reader import Trace, open_trace
from harness.trace.recorder import Recorder
from harness.x86.access import Access
from harness.x86.bits import CR0_PE, PTE_A
from harness.x86.control import ControlState
from harness.xi.engine import XiEngine
from tests.trace.guest import PAGES, RecordedGuest
from tests.trace.test_recorded_memory import HEADER
from tests.xi.domain import USED

CALLS = (r.Fault, r.Faults, r.Control, r.LoadCr3, r.Invlpg, r.TableWritten, r.InvalidateMfn, r.Idle, r.Audit, r.Raised)


def calls(trace: Trace) -> list[r.Record]:
    """What the engine was told since the guest was ready."""
    records = list(trace.records())
    last = max(index for index, record in enumerate(records) if isinstance(record, r.Control))
    return [record for record in records[last + 1 :] if isinstance(record, CALLS)]


def test_what_is_not_recorded_is_there_all_the_same(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    assert isinstance(guest.recorder.engine, Explains)
    engine: Any = guest.domain.engine
    assert not isinstance(engine, XiEngine)
    assert engine.name == "xi"
    assert engine.stats()["sptis"] == 64
    assert engine.root.mode.name == "long4"
    assert engine.describe_gfn(3)["gfn"] == 3
    assert engine.p2m.frames == engine.config.frames
    with pytest.raises(AttributeError, match="no_such_thing"):
        engine.no_such_thing  # noqa: B018 - looking is what raises


def test_idle_calls_are_counted_and_stand_where_they_were(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    va = PAGES[0]
    guest.domain.engine.shadow_fault(va, Access.LOAD)
    for _ in range(3):
        guest.domain.engine.idle()
    guest.domain.engine.shadow_fault(va, Access.STORE)
    guest.domain.engine.idle()
    guest.domain.engine.invlpg(va)
    guest.domain.engine.idle()
    told = calls(guest.save())
    assert [type(call).__name__ for call in told] == ["Fault", "Idle", "Fault", "Idle", "Invlpg", "Idle"]
    assert [call for call in told if isinstance(call, r.Idle)] == [r.Idle(3), r.Idle(1), r.Idle(1)]


def test_the_faults_of_exits_are_held_back_and_stay_in_their_place(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    engine, log = guest.recorder.engine, guest.recorder.log
    gfn, va = guest.others[0], PAGES[0]
    guest.flush()

    def fault(access: Access, times: int = 1) -> None:
        for _ in range(times):
            log.add("page_fault", 0x1000, va)
            engine.shadow_fault(va, access)

    fault(Access.LOAD)  # reads the tables for the first time
    fault(Access.STORE, 3)
    assert len(guest.recorder._writer.run) == 9
    engine.idle()
    fault(Access.LOAD)
    log.add("cpuid", 0x1004, 0)
    fault(Access.LOAD)
    guest.store(va, gfn, USED)
    fault(Access.LOAD)  # reads what was stored
    guest.domain.take(gfn)
    fault(Access.LOAD)  # is answered with AWAY
    engine.shadow_fault(va, Access.LOAD)  # no exit of the guest's
    guest.domain.give(gfn)
    fault(Access.LOAD, 5000)

    records = list(guest.save().records())
    kinds = [type(record).__name__ for record in records]
    text = " ".join(kinds[kinds.index("LoadCr3") + 1 :]).replace("Words Words Words Words Words", "Words")
    event = "Intercepted"
    parts = [f"{event} Words Fault", *[f"{event} Fault"] * 3, f"{event} Idle Fault", event, f"{event} Fault"]
    parts += ["TableWritten", f"{event} Words Fault", "InvalidateMfn", f"{event} Fault", "Fault", "InvalidateMfn"]
    parts += [f"{event} Fault"] * 5000 + ["End"]
    assert text == " ".join(parts)
    assert [record.away for record in records if isinstance(record, r.Fault)][7:10] == [gfn, gfn, -1]
    assert [record.number for record in records if isinstance(record, r.Intercepted)] == list(range(log.total))


def test_a_refused_call_says_that_it_raised(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    root = guest.domain.state.root_gpa >> 12
    with pytest.raises(ValueError, match="root table in use") as caught:
        guest.domain.engine.xi_invld_mfn(root, -1)
    assert calls(guest.save()) == [r.Raised(f"ValueError: {caught.value}"), r.InvalidateMfn(root, -1)]


def test_an_engine_that_breaks_leaves_the_call_that_broke_it(tmp_path: Path) -> None:
    class Breaks(XiEngine):
        def shadow_fault(self, va: int, access: int) -> int:
            raise KeyError(va)

        def shadow_faults(self, addresses: Any, accesses: Any) -> list[int]:
            raise RuntimeError("many")

        def audit(self) -> list[AuditFailure]:
            raise IndexError("audit")

    guest = RecordedGuest(tmp_path, engine=Breaks)
    engine = guest.domain.engine
    for broken in (
        lambda: engine.shadow_fault(0x5000, 0),
        lambda: engine.shadow_faults([0x5000, 0x6000], [0, 1]),
        engine.audit,
    ):
        with pytest.raises((KeyError, RuntimeError, IndexError)):
            broken()
    fails = r.RAISED_RESULT
    assert calls(guest.save()) == [
        r.Raised("KeyError: 20480"),
        r.Fault(0x5000, 0, fails, -1),
        r.Raised("RuntimeError: many"),
        r.Faults((0x5000, 0x6000), (0, 1), (fails, fails), -1),
        r.Raised("IndexError: audit"),
        r.Audit(1),
    ]


def test_a_frame_that_is_away_is_named(tmp_path: Path) -> None:
    guest = RecordedGuest(tmp_path)
    gfn = guest.others[0]
    guest.store(PAGES[0], gfn, USED)
    guest.domain.take(gfn)
    guest.domain.engine.shadow_fault(PAGES[0], Access.LOAD)
    guest.domain.engine.shadow_faults([PAGES[0]], [Access.LOAD])
    faults = [call for call in calls(guest.save()) if isinstance(call, r.Fault | r.Faults)]
    assert [fault.away for fault in faults] == [gfn, gfn]


def test_what_the_processor_writes_into_the_shadow_is_recorded(tmp_path: Path) -> None:
    pool = np.zeros(64 << 12, np.uint8)
    header = replace(HEADER, config=replace(HEADER.config, pool_memory=pool, fill="demand"))
    recorder = Recorder(tmp_path, header, XiEngine, PlainMemory(np.zeros(header.memory_frames << 12, np.uint8)))
    engine = recorder.engine
    base = header.config.pool_base_mfn

    def run() -> int:
        """The guest runs on the shadow. The pool's word that the processor sets A in: the first PDPTE."""
        at = (engine.root.root >> 3) - (base << 9)
        pool.view(np.uint64)[at] |= np.uint64(PTE_A)
        return at

    engine.control(ControlState(CR0_PE))
    assert engine.shadow_fault(0x1000, Access.LOAD) == RETRY
    at = run()
    engine.idle()
    run()  # after an exit that the engine is not told of
    assert engine.shadow_fault(0x2000, Access.LOAD) == RETRY
    recorder.finish("pass", "")
    recorder.keep(tmp_path / "trace")

    records = list(open_trace(tmp_path / "trace").records())
    kinds = [type(record).__name__ for record in records]
    assert kinds[kinds.index("Fault") + 1 :] == ["Idle", "ShadowWords", "Fault", "End"]
    written = records[kinds.index("ShadowWords")]
    assert isinstance(written, r.ShadowWords)
    assert (written.mfn, written.indices[0]) == (base + (at >> 9), at & 511)
    assert written.values[0] & PTE_A
