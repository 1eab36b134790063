"""The self-check of observe mode on a real guest: what no event announced is found, told and repaired."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from harness.catalogue import load_catalogue
from harness.options import RunOptions
from harness.session import Session
from harness.x86.bits import PTE_A, PTE_D, PTE_P


@pytest.fixture
def session() -> Iterator[Session]:
    with Session(load_catalogue()["basic"], "long4", RunOptions(probe_budget=60)) as session:
        assert session.run_to_checkpoint("mapped, no flush needed") is not None
        yield session


def some_entry(session: Session) -> int:
    """The word index in RAM of a present entry of an in-sync guest table that no code needs."""
    words = session.target.ram.view(np.uint64)
    for gfn, in_sync in session.engine.guest_tables().items():
        entries = words[gfn << 9 : (gfn + 1) << 9]
        free = np.flatnonzero(entries & np.uint64(PTE_P) == 0)
        if in_sync and 0 < len(free) < 512:
            return (gfn << 9) + int(free[-1])
    raise AssertionError("no in-sync table")


def registers(session: Session) -> dict[str, int]:
    return session.machine.gdb.read_registers()


def test_nothing_is_missed_where_nothing_happened(session: Session) -> None:
    assert session.observer.self_check(registers(session)) == 0


def test_a_store_that_nobody_saw_is_told_and_repaired(session: Session) -> None:
    word = some_entry(session)
    session.target.ram.view(np.uint64)[word] = np.uint64(0x123000)
    assert session.observer.self_check(registers(session)) == 1
    assert f"gfn {word >> 9:#x}" in session.observer.misses[-1]
    assert session.observer.self_check(registers(session)) == 0


def test_accessed_and_dirty_bits_are_the_hardware_s_business(session: Session) -> None:
    words = session.target.ram.view(np.uint64)
    for gfn, in_sync in session.engine.guest_tables().items():
        entries = words[gfn << 9 : (gfn + 1) << 9]
        if in_sync:
            entries[entries & np.uint64(PTE_P) != 0] |= np.uint64(PTE_A | PTE_D)
    assert session.observer.self_check(registers(session)) == 0


def test_a_cr3_that_nobody_announced_is_told_and_taken_over(session: Session) -> None:
    other = registers(session) | {"cr3": session.observer.state.cr3 ^ 0x18}
    assert session.observer.self_check(other) == 1
    assert "control registers changed" in session.observer.misses[-1]
    assert session.observer.state.cr3 == other["cr3"]
