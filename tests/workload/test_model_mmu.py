"""The model of the hardware: what it walks, when it asks the engine, and in which order."""

from __future__ import annotations

import numpy as np
import pytest

from harness.check.shadow_walk import ShadowView, shadow_walk
from harness.check.verdict import FRAME
from harness.engine import MMIO, RETRY, ShadowRoot, Words
from harness.workload.model_mmu import STUCK_AFTER, ModelMmu
from harness.workload.workload import WorkloadError
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.bits import PTE_NX, PTE_P, PTE_PS, PTE_RW, PTE_US
from harness.x86.control import ControlState
from harness.x86.modes import LONG4, LONG5, PAE, PagingMode

BASE = 0x100
CODE = 0x15
ALL = PTE_P | PTE_RW | PTE_US


class Scripted:
    """An engine whose shadow is written by hand. answers: of `shadow_fault`, the last for ever; calls: in order."""

    name = "scripted"

    def __init__(self, mode: PagingMode = LONG4, answers: tuple[int, ...] = (CODE,)) -> None:
        self.words: Words = np.zeros((8, 512), np.uint64)
        cr4, efer = {"pae": (0x20, 0x800), "long4": (0x20, 0xD00), "long5": (0x1020, 0xD00)}[mode.name]
        control = ControlState(0x8001_0001, BASE << 12, cr4, efer)
        assert control.mode is mode
        self.shadow_root = ShadowRoot(mode, BASE << 12, control)
        self.answers = list(answers)
        self.calls: list[str] = []
        self.more = False

    @property
    def pool(self) -> tuple[int, Words]:
        return BASE, self.words

    @property
    def root(self) -> ShadowRoot:
        self.calls.append("root")
        return self.shadow_root

    def idle(self) -> bool:
        self.calls.append("idle")
        return self.more

    def shadow_fault(self, va: int, access: int) -> int:
        self.calls.append("shadow_fault")
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def describe_walk(self, va: int) -> list[dict[str, int]]:
        return []

    def map(self, va: int, mfn: int, flags: int = ALL, level: int = 1, above: int = ALL) -> None:
        """`va` leads to `mfn`; tables follow each other in the pool."""
        for table, row in enumerate(self.shadow_root.mode.levels):
            if row.number == level:
                self.words[table, row.index(va)] = mfn << 12 | flags
                return
            self.words[table, row.index(va)] = (BASE + table + 1) << 12 | (above if row.has_rights else PTE_P)


def hardware(engine: Scripted) -> ModelMmu:
    mmu = ModelMmu(engine)  # type: ignore[arg-type]
    mmu.enter()
    engine.calls.clear()
    return mmu


MODES = pytest.mark.parametrize("mode", [PAE, LONG4, LONG5], ids=lambda mode: mode.name)
VA = 0x1234_5000


@MODES
def test_a_page_that_is_there_is_reached_without_the_engine(mode: PagingMode) -> None:
    engine = Scripted(mode)
    engine.map(VA, 0x77)
    mmu = hardware(engine)
    assert mmu.access(VA + 0x123, Access.USER_STORE) == 0x77
    assert engine.calls == []


@MODES
def test_a_large_page_is_reached_at_each_of_its_frames(mode: PagingMode) -> None:
    engine = Scripted(mode)
    engine.map(VA, 0x400, ALL | PTE_PS, level=2)
    assert hardware(engine).access(VA, Access.LOAD) == 0x400 + (VA >> 12 & 511)


@pytest.mark.parametrize("above", [ALL, PTE_P | PTE_RW, PTE_P | PTE_US, ALL | PTE_NX, 0])
@pytest.mark.parametrize("flags", [ALL, PTE_P | PTE_RW, PTE_P | PTE_US, PTE_P, ALL | PTE_NX, ALL | 1 << 45, 0])
@MODES
def test_rights_are_those_of_the_checkers_walk(mode: PagingMode, flags: int, above: int) -> None:
    """Neither walk shares code with the other."""
    engine = Scripted(mode)
    engine.map(VA, 0x77, flags, above=above)
    mmu = hardware(engine)
    view = ShadowView(engine.shadow_root, BASE, engine.words, 0)
    accesses = np.array(ALL_ACCESSES, np.uint8)
    wanted = shadow_walk(view, np.full(len(accesses), VA, np.uint64), accesses)
    for access, code in zip(ALL_ACCESSES, wanted.codes.tolist(), strict=True):
        assert mmu.access(VA, access) == (0x77 if code == FRAME else ~CODE), access.text


def test_after_a_fault_the_root_is_asked_for_and_the_engine_may_be_idle() -> None:
    engine = Scripted(answers=(RETRY, CODE))
    mmu = hardware(engine)
    assert mmu.access(VA, Access.LOAD) == ~CODE
    assert engine.calls == ["shadow_fault", "root", "idle"] * 2
    assert (mmu.retried, mmu.injected) == (1, 1)


def test_a_new_root_is_walked_from_then_on() -> None:
    engine = Scripted()
    engine.map(VA, 0x77)
    mmu = hardware(engine)
    engine.shadow_root = ShadowRoot(LONG4, (BASE + 7) << 12, engine.shadow_root.control)
    assert mmu.access(VA, Access.LOAD) == 0x77
    mmu.enter()
    assert mmu.access(VA, Access.LOAD) == ~CODE


def test_an_engine_that_never_comes_to_anything_is_given_up() -> None:
    engine = Scripted(answers=(RETRY,))
    with pytest.raises(WorkloadError, match="again and again"):
        hardware(engine).access(VA, Access.LOAD)
    assert engine.calls.count("shadow_fault") == STUCK_AFTER


def test_an_access_to_a_device_is_none_of_a_synthetic_guest() -> None:
    with pytest.raises(WorkloadError, match="a device"):
        hardware(Scripted(answers=(MMIO,))).access(VA, Access.LOAD)


@pytest.mark.parametrize("mfn", [0x10, BASE + 8])
def test_a_table_outside_the_pool_is_an_error(mfn: int) -> None:
    engine = Scripted()
    engine.map(VA, mfn, level=2)
    with pytest.raises(WorkloadError, match="outside the pool"):
        hardware(engine).access(VA, Access.LOAD)
