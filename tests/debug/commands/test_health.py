"""`audit`, `stats` and `dirty`, and their marks."""

from __future__ import annotations

from typing import Any

import pytest

from harness.debug.commands.table import run_command
from harness.debug.scene import CommandError
from harness.x86.access import Access
from harness.x86.bits import PTE_RW
from tests.debug.commands.broken import Silent, marked, silent, word_of
from tests.debug.commands.golden import check_commands
from tests.debug.commands.scene import CODE, DATA, KERNEL, long4


def test_nothing_is_wrong() -> None:
    assert run_command(long4().scene(), "audit") == "every invariant of the engine holds"


def test_every_broken_invariant_is_marked() -> None:
    guest = long4()
    guest.domain.engine.q[word_of(guest, CODE)] |= PTE_RW
    guest.domain.engine.pool_memory.clean.pop()
    output = check_commands("audit-broken", guest.scene(), "audit")
    assert output.startswith("3 failures of F5, F8, pool-conservation") and output.count("<--") == 3


def test_an_audit_of_any_engine() -> None:
    assert run_command(silent(long4()), "audit") == "every invariant of the engine holds"


def test_stats() -> None:
    scene = long4().scene()
    output = run_command(scene, "stats")
    words = output.split()
    for name, count in scene.engine.stats().items():
        assert words[words.index(name) + 1] == str(count)
    lines = output.split("\n")
    assert lines[0] == "engine xi, after 15 events" and lines[1].split() == ["what", "count"] * 3
    assert max(map(len, lines)) <= 120


def test_an_engine_that_counts_nothing() -> None:
    class Blank(Silent):
        def stats(self) -> dict[str, Any]:
            return {}

    scene = long4().scene()
    scene.engine = Blank(scene.engine)
    with pytest.raises(CommandError, match="counts nothing"):
        run_command(scene, "stats")


def test_the_dirty_log() -> None:
    guest = long4()
    engine = guest.domain.engine
    assert "no dirty logging" in run_command(guest.scene(), "dirty")
    engine.dirty_log_start()
    assert run_command(guest.scene(), "dirty") == "round 1: 0 frames in the log"
    for va in (DATA, DATA + 0x1000, KERNEL + 0x20_8000):
        guest.touch(va, Access.STORE)
    before = engine.stats()
    output = check_commands("dirty", guest.scene(), "dirty")
    assert "<--" not in output and "gfn 0x102-0x103" in output
    assert engine.stats() == before and marked(guest, "dirty") == []
    read = engine.dirty_log_read().nonzero()[0].tolist()
    assert {0x102, 0x103, 0x208} <= set(read)
    assert run_command(guest.scene(), "dirty") == "round 2: 0 frames in the log"


def test_what_could_be_stored_to_unlogged_is_marked() -> None:
    guest = long4()
    guest.domain.engine.dirty_log_start()
    for va in (CODE, CODE + 0x1000):
        guest.domain.engine.q[word_of(guest, va)] |= PTE_RW
    assert marked(guest, "dirty") == ["gfn 0x100-0x101: not in the log, and an SPTE is writable"]


@pytest.mark.parametrize("line", ["audit 1", "stats all", "dirty 1"])
def test_none_takes_arguments(line: str) -> None:
    with pytest.raises(CommandError, match="one word too many"):
        run_command(long4().scene(), line)


def test_an_engine_that_does_not_tell() -> None:
    with pytest.raises(CommandError, match="does not tell of its insides"):
        run_command(silent(long4()), "dirty")
