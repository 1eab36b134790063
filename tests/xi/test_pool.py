"""The pool: reserved at once, conserved, zeroed before use, recycled in LRU order."""

from __future__ import annotations

import numpy as np
import pytest

from harness.engine import EngineConfig, PlainMemory
from harness.x86.access import Access
from harness.xi.engine import XiEngine
from harness.xi.pool import PAGES_AT_ONCE, Pool, PoolFrames, minimum_sptis, pool_frames_for
from tests.xi.domain import Domain


def test_five_per_cent_is_reserved_but_never_less_than_a_path() -> None:
    assert pool_frames_for(100_000) == 5000
    assert pool_frames_for(100) == minimum_sptis(pages=PAGES_AT_ONCE) * 4
    assert pool_frames_for(32768, 0.1) % 4 == 0


def test_a_pool_too_small_for_a_path_is_refused_with_the_minimum() -> None:
    with pytest.raises(ValueError, match=f"at least {minimum_sptis() * 4} frames"):
        PoolFrames(16, 0)


def test_memory_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="pool memory"):
        PoolFrames(48, 0, np.zeros(4096, np.uint8))


def test_memory_given_is_used_and_cleared() -> None:
    memory = np.full(48 * 4096, 0xAA, np.uint8)
    pool = Pool(PoolFrames(48, 0, memory), "idle")
    assert not memory.any()
    pool.q[3] = 0x1122
    assert memory.view(np.uint64)[3] == 0x1122


def test_an_spti_is_on_exactly_one_list() -> None:
    pool = Pool(PoolFrames(48, 100), "idle")
    taken = pool.take()
    assert taken is not None
    spti, inline = taken
    assert not inline
    assert (len(pool.clean), len(pool.unclean), list(pool.lru)) == (11, 0, [spti.index])
    pool.give_back(spti)
    assert (len(pool.clean), list(pool.unclean), list(pool.lru)) == (11, [spti.index], [])
    assert pool.free == 12


def test_idle_zeroing_spares_the_critical_path() -> None:
    pool = Pool(PoolFrames(48, 0), "idle")
    for _ in range(12):
        taken = pool.take()
        assert taken is not None
        taken[0].spt[:] = 7
    assert pool.take() is None
    for k in range(3):
        pool.give_back(pool.sptis[k])
    assert pool.idle_zero(2) == 2
    assert [pool.take()[1] for _ in range(3)] == [False, False, True]  # type: ignore[index]
    assert not pool.sptis[0].spt.any()
    assert not pool.sptis[2].spt.any()


def test_critical_path_zeroing_zeroes_when_one_is_taken() -> None:
    pool = Pool(PoolFrames(48, 0), "critical-path")
    assert pool.idle_zero(5) == 0
    taken = pool.take()
    assert taken is not None
    assert taken[1]


@pytest.mark.parametrize("zeroing", ["idle", "critical-path"])
def test_both_zeroing_policies_serve_a_guest(zeroing: str) -> None:
    domain = Domain("pae", options={"zeroing": zeroing})
    domain.map(0x400000, 300)
    domain.start()
    domain.audit()
    inline = domain.engine.stats()["zeroed_inline"]
    assert (inline > 0) == (zeroing == "critical-path")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"options": {"zeroing": "never"}}, "policies are idle, critical-path"),
        ({"options": {"snapshots": "none"}}, "policies are reserved, dynamic"),
        ({"options": {"snapshot": "none"}}, "options are backlinks, fault-resync, pool, snapshots, zeroing"),
        ({"fill": "lazy"}, "one of eager, demand"),
        ({"pool_base_mfn": 1 << 20}, "below 4 GiB"),
        ({"pool_base_mfn": 50}, "shadow pool"),
        ({"frames": 300}, "the machine has"),
        ({"p2m": np.array([1] * 100)}, "two guest frames"),
        ({"p2m": np.arange(5)}, "shape"),
    ],
)
def test_a_configuration_that_cannot_work_says_why(config: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"frames": 100, "pool_frames": 48, "pool_base_mfn": 200} | config
    with pytest.raises(ValueError, match=message):
        XiEngine(EngineConfig(**arguments), PlainMemory(np.zeros(200 * 4096, np.uint8)))  # type: ignore[arg-type]


def test_the_least_recently_used_goes_first_and_never_the_current_root() -> None:
    domain = Domain("long4", "demand", sptis=12)
    roots = [domain.root] + [domain.new_root() for _ in range(5)]
    for number, root in enumerate(roots):
        domain.map(0x400000, 300 + number, root=root)
    domain.start()
    for root in roots:
        domain.switch(root)
        domain.check(0x400000, Access.LOAD)
        domain.check(0x400000, Access.STORE)
        domain.audit()
        assert domain.engine.root_spti is not None
        assert domain.engine.root_spti.gfn == root
    assert domain.engine.stats()["recycled"] > 0
    assert roots[0] not in domain.engine.gpts, "the oldest address space is still shadowed"
    assert roots[-1] in domain.engine.gpts


def test_an_eager_shadow_gives_up_entries_before_tables_in_use() -> None:
    domain = Domain("long4", "eager", sptis=12)
    for number in range(20):
        domain.map(number << 21, 300 + number)
    domain.start()
    assert domain.engine.stats()["eager_truncated"] > 0
    domain.audit()
    for number in range(20):
        for access in Access:
            domain.check(number << 21, access)
    domain.audit()
