"""The five uses that the XI thread gives backlinks, each seen to work."""

from __future__ import annotations

import numpy as np
import pytest

from harness.x86.access import Access
from harness.x86.modes import PAGED_MODES
from tests.xi.domain import PS, RW, USED, Domain

MODE_NAMES = [mode.name for mode in PAGED_MODES]
VA = 0x40000000


def leaf_sptes(domain: Domain, gfn: int) -> list[int]:
    return [domain.engine.q[word] for word, _ in domain.engine.links.mapping(gfn)]


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_1_a_page_that_becomes_a_table_is_made_read_only_at_every_alias(mode: str) -> None:
    domain = Domain(mode)
    table = domain.frame()
    aliases = [VA, VA + 0x5000, VA + 0x400000]
    for va in aliases:
        domain.map(va, table)
    domain.start()
    assert [bool(spte & RW) for spte in leaf_sptes(domain, table)] == [True] * 3
    level = domain.mode.levels[-2]
    domain.poke(domain.entry_at(VA + 0x800000, level.number), table << 12 | USED)
    domain.flush()
    assert domain.engine.guest_tables()[table]
    assert [bool(spte & RW) for spte in leaf_sptes(domain, table)] == [False] * 3
    assert domain.engine.watch_changes()[table] == frozenset(aliases)
    domain.engine.table_written(table)
    assert [bool(spte & RW) for spte in leaf_sptes(domain, table)] == [True] * 3
    assert domain.engine.watch_changes()[table] == frozenset()
    domain.audit()


@pytest.mark.parametrize("mode", MODE_NAMES)
@pytest.mark.parametrize("fill", ["eager", "demand"])
def test_2_dirty_logging_sees_the_first_store_to_each_page(mode: str, fill: str) -> None:
    domain = Domain(mode, fill)
    pages = list(range(300, 316))
    for number, gfn in enumerate(pages):
        domain.map(VA + number * 4096, gfn)
    domain.map(VA + 0x800000, 512 if mode != "nopae" else 0, USED, 2)
    domain.start()
    for number in range(len(pages)):
        domain.check(VA + number * 4096, Access.STORE)
    domain.engine.dirty_log_start()
    domain.audit()
    domain.check(VA, Access.LOAD)
    for number in (3, 7, 3):
        domain.check(VA + number * 4096, Access.STORE)
    large = domain.check(VA + 0x800000 + 33 * 4096, Access.STORE).frame
    domain.audit()
    first = domain.engine.dirty_log_read()
    assert np.flatnonzero(first).tolist() == sorted([303, 307, large or 0])
    domain.audit()
    assert not domain.engine.dirty_log_read().any()
    domain.check(VA + 3 * 4096, Access.STORE)
    assert np.flatnonzero(domain.engine.dirty_log_read()).tolist() == [303]
    domain.engine.dirty_log_stop()
    domain.check(VA + 5 * 4096, Access.STORE)
    assert not domain.engine.dirty_log_read().any()
    domain.audit()


def test_2_a_round_of_logging_protects_every_alias_and_the_next_only_what_was_logged() -> None:
    domain = Domain("long4", frames=2048)
    for number in range(40):
        domain.map(VA + number * 4096, 300 + number % 10)
    domain.map(VA + 0x800000, 1024, USED, 2)
    domain.start()
    writable = sum(bool(spte & RW) for gfn in range(300, 310) for spte in leaf_sptes(domain, gfn))
    assert writable == 40

    def protected() -> int:
        return int(domain.engine.stats()["log_protected_sptes"])

    domain.engine.dirty_log_start()
    assert protected() == 40 + 1, "and the large page"
    domain.check(VA, Access.STORE)
    domain.check(VA + 10 * 4096, Access.STORE)
    domain.check(VA + 3 * 4096, Access.STORE)
    assert np.flatnonzero(domain.engine.dirty_log_read()).tolist() == [300, 303]
    assert protected() == 41 + 3, "the aliases that were stored through"
    assert not any(spte & RW for gfn in range(300, 310) for spte in leaf_sptes(domain, gfn))
    domain.engine.dirty_log_read()
    assert protected() == 44
    assert domain.engine.stats()["log_rounds"] == 3
    domain.engine.dirty_log_start()
    assert domain.engine.stats()["log_rounds"] == 4
    domain.audit()


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_3_a_large_page_that_contains_a_table_is_divided(mode: str) -> None:
    domain = Domain(mode)
    inside = domain.frame() if mode == "nopae" else 512 + 77
    base = 0 if mode == "nopae" else 512
    domain.map(VA, base, USED, 2)
    domain.start()
    before = domain.engine.stats()["divided"]
    spare = domain.entry_at(VA + 0x800000, domain.mode.levels[-2].number)
    domain.poke(spare, inside << 12 | USED)
    domain.flush()
    if mode != "nopae":  # there the other tables lie in the page too: it was in pieces from the start
        assert domain.engine.stats()["divided"] > before
    sptes = leaf_sptes(domain, inside)
    assert sptes
    assert not any(spte & (RW | PS) for spte in sptes)
    pages = [domain.check(VA + i * 4096, Access.LOAD).frame for i in range(0, 512, 31)]
    assert pages == [base + i for i in range(0, 512, 31)]
    neighbour = VA + ((inside - base) ^ 1) * 4096
    assert domain.check(neighbour, Access.STORE).frame == inside ^ 1
    assert VA + (inside - base) * 4096 in domain.engine.addresses_of(inside, writable=True)
    domain.audit()


@pytest.mark.parametrize("mode", MODE_NAMES)
@pytest.mark.parametrize("fill", ["eager", "demand"])
def test_4_a_changed_p2m_leaves_no_spte_behind(mode: str, fill: str) -> None:
    domain = Domain(mode, fill)
    domain.map(VA, 300)
    domain.map(VA + 0x9000, 300)
    domain.map(VA + 0x800000, 512 if mode != "nopae" else 0, USED, 2)
    domain.start()
    for va in (VA, VA + 0x9000, VA + 0x800000):
        domain.check(va, Access.STORE)
    domain.engine.xi_invld_mfn(300, 1500)
    assert all(spte & 0xFFFFF000 == 1500 << 12 for spte in leaf_sptes(domain, 300) if not spte & PS)
    domain.audit()
    assert domain.check(VA + 0x9000, Access.STORE).frame == 300
    domain.engine.xi_invld_mfn(600, 1501)
    domain.audit()
    assert domain.check(VA + 0x800000 + (600 % 512) * 4096, Access.LOAD).frame in (600, 88)
    domain.take(300)
    assert not [spte for spte in leaf_sptes(domain, 300) if not spte & PS]
    domain.audit()
    assert domain.check(VA, Access.LOAD).frame == 300, "it comes back on a fault"
    domain.audit()
    with pytest.raises(ValueError, match="belongs to gfn"):
        domain.engine.xi_invld_mfn(301, 1501)
    with pytest.raises(ValueError, match="cannot be given"):
        domain.engine.xi_invld_mfn(301, domain.pool_base)


def test_4_a_guest_table_can_move_too() -> None:
    domain = Domain("long4")
    domain.map(VA, 300)
    domain.start()
    table = domain.entry_at(VA) >> 12
    domain.memory.page(1700)[:] = domain.memory.page(domain.mfn(table))
    domain.engine.xi_invld_mfn(table, 1700)
    domain.poke(domain.entry_at(VA), 301 << 12 | USED)
    domain.flush()
    assert domain.check(VA, Access.LOAD).frame == 301
    domain.audit()


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_5_the_parents_of_a_torn_down_table_forget_it(mode: str) -> None:
    domain = Domain(mode)
    domain.map(VA, 300)
    other = domain.new_root()
    domain.map(VA, 300, root=other)
    shared = domain.entry_at(VA) >> 12
    above = domain.mode.levels[-2].number
    domain.poke(domain.entry_at(VA, above, other), shared << 12 | USED)
    domain.start()
    domain.switch(other)
    engine = domain.engine
    torn = [engine.sptis[k] for k in engine.gpts[shared]]
    parents = [word for spti in torn for word in engine.links.nodes(engine.links.parents(spti.index))]
    assert len(parents) == 2 * len(torn)
    for spti in torn:
        engine.destroy(spti)
    assert [engine.q[word] for word in parents] == [0] * len(parents)
    assert shared not in engine.gpts
    domain.audit()
    domain.flush()
    assert domain.check(VA, Access.STORE).frame == 300
    domain.audit()
