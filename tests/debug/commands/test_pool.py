"""`pool` and its mark."""

from __future__ import annotations

import pytest

from harness.debug.commands.table import run_command
from harness.debug.scene import CommandError
from harness.xi.shared_pool import SharedPool
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


def test_a_pool_that_others_use_too() -> None:
    guest = long4()
    pool = SharedPool(12 * 4, 2048)
    guest.domain, neighbour = (Domain("long4", options={"pool": "shared"}, shared_pool=pool) for _ in range(2))
    neighbour.map(0x1000, 300)
    neighbour.start()
    output = run_command(guest.scene(), "pool")
    assert "in use 0, by 1 other domain 4, free 8" in output
    assert "taken_by_others 0, taken_from_others 0" in output
    assert run_command(guest.scene(), "spti 0") == "SPTI 0: another domain's, SPT at mfn 0x800"
    neighbour.engine.pool_memory.lru.popitem()
    assert {line.split(":")[0] for line in marked(guest, "pool")} == {"pool-conservation", "pool-owner"}


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
