"""Frames that move, and frames that are taken away and come back when they are missed: pages, tables, roots."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.engine import AWAY, MMIO, RETRY
from harness.x86 import bits
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.modes import PAGED_MODES
from tests.xi.domain import PS, RW, US, USED, Domain, P

MODE_NAMES = [mode.name for mode in PAGED_MODES]
VA = 0x40000000
every_mode = pytest.mark.parametrize("mode", MODE_NAMES)
every_fill = pytest.mark.parametrize("fill", ["eager", "demand"])


def tables_of(domain: Domain, va: int) -> list[int]:
    """gfns of the guest tables on the path of `va`, from the root down."""
    return [domain.entry_at(va, level.number) >> 12 for level in domain.mode.levels]


def used(mode: str, fill: str) -> Domain:
    """A guest that has stored to VA, gfn 300."""
    domain = Domain(mode, fill)
    domain.map(VA, 300)
    domain.start()
    domain.check(VA, Access.STORE)
    return domain


@every_mode
@every_fill
def test_every_frame_of_a_path_can_move(mode: str, fill: str) -> None:
    domain = used(mode, fill)
    for gfn in (*tables_of(domain, VA), 300):
        domain.move(gfn)
        domain.audit()
        for access in ALL_ACCESSES:
            assert domain.check(VA, access).frame == 300
        domain.audit()
    entry = domain.map(VA + 0x1000, 301)
    domain.flush()
    assert domain.check(VA + 0x1000, Access.STORE).frame == 301
    assert domain.engine.guest_tables()[entry >> 12], "a table that has moved is protected where it is now"
    domain.audit()


@every_mode
@every_fill
def test_every_frame_of_a_path_but_the_root_can_go_and_comes_back_when_it_is_missed(mode: str, fill: str) -> None:
    domain = used(mode, fill)
    root, *others = (*tables_of(domain, VA), 300)
    for gfn in others:
        domain.take(gfn)
        domain.audit()
        before = domain.engine.stats()["accessed_set"]
        assert domain.engine.shadow_fault(VA, Access.STORE) == AWAY
        assert domain.engine.away_gfn == gfn
        assert domain.engine.stats()["accessed_set"] == before, "a walk that could not be completed leaves no trace"
        domain.give(gfn)
        assert domain.check(VA, Access.STORE).frame == 300
        domain.audit()
    mfn = domain.mfn(root)
    with pytest.raises(ValueError, match="root table in use"):
        domain.take(root)
    assert domain.mfn(root) == mfn
    assert domain.check(VA, Access.STORE).frame == 300
    domain.audit()


@every_mode
@every_fill
def test_a_guest_may_flush_while_its_tables_are_away(mode: str, fill: str) -> None:
    domain = used(mode, fill)
    for gfn in tables_of(domain, VA)[1:]:
        domain.take(gfn)
        domain.engine.invlpg(VA)
        domain.flush()
        assert domain.engine.shadow_faults([VA, VA + 8], [Access.LOAD, Access.STORE]) == [AWAY, AWAY]
        assert domain.engine.away_gfn == gfn
        domain.audit()
        assert domain.check(VA, Access.LOAD).frame == 300


@every_mode
def test_a_root_must_be_there_when_it_is_loaded(mode: str) -> None:
    domain = used(mode, "demand")
    first, other = domain.root, domain.new_root()
    domain.switch(other)
    domain.take(first)
    engine = domain.engine
    wanted = replace(domain.state, cr3=first << 12)
    assert engine.needs(domain.state) == -1
    assert engine.needs(wanted) == first
    with pytest.raises(ValueError, match="must be back first"):
        engine.load_cr3(first << 12)
    with pytest.raises(ValueError, match="must be back first"):
        engine.control(wanted)
    assert engine.state == domain.state
    domain.audit()
    domain.give(first)
    domain.switch(first)
    assert domain.check(VA, Access.STORE).frame == 300
    domain.audit()


def test_a_guest_without_paging_needs_no_root() -> None:
    domain = Domain("unpaged", "demand")
    domain.start()
    domain.take(0)
    assert domain.engine.needs(domain.state) == -1
    assert domain.engine.shadow_fault(0x800, Access.LOAD) == AWAY
    assert domain.engine.away_gfn == 0
    assert domain.check(0x800, Access.STORE).frame == 0
    domain.audit()


def test_pdptes_are_read_again_from_the_frame_they_have_moved_to() -> None:
    domain = used("pae", "demand")
    domain.move(domain.root)
    domain.state = replace(domain.state, cr4=domain.state.cr4 ^ bits.CR4_PGE)
    domain.start()
    assert domain.check(VA, Access.STORE).frame == 300
    domain.audit()


@every_mode
@every_fill
def test_a_large_page_is_divided_around_a_frame_that_moves_or_goes(mode: str, fill: str) -> None:
    domain = Domain(mode, fill, frames=2048)
    domain.map(VA, 1024, USED, 2)
    domain.start()
    domain.check(VA, Access.STORE)
    word = domain.engine.links.nodes(domain.engine.links.slot(2, 1024))[0]
    assert domain.engine.q[word] & PS
    for act, gfn in ((domain.move, 1100), (domain.take, 1101)):
        act(gfn)
        domain.audit()
        for neighbour in (gfn - 1, gfn, gfn + 1, 1535):
            assert domain.check(VA + (neighbour - 1024) * 4096, Access.STORE).frame == neighbour
        domain.audit()
    assert not domain.engine.q[word] & PS


def test_a_hole_is_no_frame_that_went() -> None:
    domain = used("long4", "demand")
    domain.take(301)
    domain.engine.xi_invld_mfn(300, -1)
    domain.map(VA + 0x1000, 301)
    domain.map(VA + 0x2000, domain.frames + 1)
    domain.flush()
    assert domain.engine.shadow_fault(VA + 0x1000, Access.LOAD) == AWAY
    assert domain.engine.shadow_fault(VA + 0x2000, Access.LOAD) == MMIO
    domain.engine.xi_invld_mfn(300, 1500)
    assert domain.engine.shadow_fault(VA, Access.LOAD) == RETRY


@every_mode
def test_a_page_that_goes_and_was_a_table_once_takes_its_shadow_along(mode: str) -> None:
    domain = used(mode, "demand")
    table = tables_of(domain, VA)[-1]
    domain.poke(domain.entry_at(VA, domain.mode.levels[-2].number), 0)
    domain.flush()
    domain.take(table)
    assert table not in domain.engine.gpts
    domain.audit()
    domain.map(VA + 0x800000, table, P | RW | US)
    domain.flush()
    assert domain.check(VA + 0x800000, Access.STORE).frame == table
    domain.audit()
