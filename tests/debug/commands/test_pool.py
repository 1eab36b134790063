"""`pool` and its mark."""

from __future__ import annotations

import pytest

from harness.debug.commands.table import run_command
from harness.debug.scene import CommandError
from tests.debug.commands.broken import marked, silent
from tests.debug.commands.golden import check_commands
from tests.debug.commands.scene import long4, nopae
from tests.xi.domain import Domain


def test_the_pool() -> None:
    guest = long4()
    assert "<--" not in check_commands("pool-long4", guest.scene(), "pool")
    assert "<--" not in check_commands("pool-nopae", nopae().scene(), "pool")


def test_before_the_first_event() -> None:
    guest = long4()
    guest.domain = Domain("long4")
    guest.domain.engine.pool_memory.unclean.append(guest.domain.engine.pool_memory.clean.pop())
    output = run_command(guest.scene(), "pool")
    assert "root in use: none yet" in output and "no SPTI is in use" in output
    assert "free 64: 63 zeroed and 1 not yet" in output


def test_an_spti_that_is_lost_is_marked() -> None:
    guest = long4()
    guest.domain.engine.pool_memory.clean.pop()
    assert marked(guest, "pool") == ["pool-conservation: 32 SPTIs, on lists: 31"]


def test_what_is_said_to_be_zero_and_is_not_is_marked() -> None:
    guest = long4()
    free = guest.domain.engine.pool_memory.clean[0]
    guest.domain.engine.sptis[free].spt[7] = 1
    assert marked(guest, "pool") == [f"zeroed-is-zero: SPTI {free} is on the zeroed free list and is not zero"]


def test_what_cannot_be_told() -> None:
    with pytest.raises(CommandError, match="one word too many"):
        run_command(long4().scene(), "pool 1")
    with pytest.raises(CommandError, match="does not tell of its insides"):
        run_command(silent(long4()), "pool")
