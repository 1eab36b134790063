"""Out of sync and back: what is stale, until when, and what is looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harness.x86 import bits
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.modes import PAGED_MODES
from tests.xi.domain import RW, US, USED, A, D, Domain, P

MODE_NAMES = [mode.name for mode in PAGED_MODES]
VA = 0x40000000
every_mode = pytest.mark.parametrize("mode", MODE_NAMES)


@every_mode
def test_a_change_is_stale_until_the_guest_flushes(mode: str) -> None:
    domain = Domain(mode)
    entry = domain.map(VA, 300)
    domain.start()
    assert domain.check(VA, Access.LOAD).frame == 300
    domain.poke(entry, 301 << 12 | USED)
    assert not domain.engine.guest_tables()[entry >> 12]
    assert domain.hardware(VA, Access.LOAD).frame == domain.mfn(300)
    domain.audit()
    domain.flush()
    assert domain.hardware(VA, Access.LOAD).frame == domain.mfn(301)
    assert domain.engine.guest_tables()[entry >> 12]
    domain.audit()


@every_mode
def test_invlpg_flushes_its_own_address_only_and_leaves_the_table_writable(mode: str) -> None:
    domain = Domain(mode)
    entries = [domain.map(VA + i * 4096, 300 + i) for i in range(3)]
    domain.start()
    for i, entry in enumerate(entries):
        domain.check(VA + i * 4096, Access.LOAD)
        domain.poke(entry, 400 + i << 12 | USED)
    domain.engine.invlpg(VA + 4096 + 0x123)
    assert domain.hardware(VA + 4096, Access.LOAD).frame == domain.mfn(401)
    assert domain.hardware(VA, Access.LOAD).frame == domain.mfn(300)
    assert not domain.engine.guest_tables()[entries[0] >> 12]
    domain.audit()


@every_mode
def test_invlpg_of_any_address_drops_the_upper_levels(mode: str) -> None:
    """The processor's paging-structure caches have no address (SDM vol. 3A, 4.10.4.1)."""
    domain = Domain(mode)
    domain.map(VA, 300)
    domain.start()
    domain.check(VA, Access.LOAD)
    above = domain.mode.levels[-2].number
    domain.poke(domain.entry_at(VA, above), 0)
    assert domain.hardware(VA, Access.LOAD).frame is not None
    domain.engine.invlpg(0x1000)
    assert domain.hardware(VA, Access.LOAD).frame is None
    domain.audit()


@every_mode
def test_only_changed_entries_are_looked_at(mode: str) -> None:
    domain = Domain(mode)
    entries = [domain.map(VA + i * 4096, 300 + i) for i in range(100)]
    domain.start()
    before = domain.engine.stats()["resynced_entries"]
    domain.poke(entries[17], 17)
    domain.poke(entries[18], 600 << 12 | USED)
    domain.flush()
    assert domain.engine.stats()["resynced_entries"] == before + 2


@every_mode
def test_tables_that_the_root_does_not_reach_are_left_out_of_sync(mode: str) -> None:
    domain = Domain(mode)
    entry = domain.map(VA, 300)
    domain.start()
    first, other = domain.root, domain.new_root()
    domain.switch(other)
    domain.poke(entry, 301 << 12 | USED)
    resyncs = domain.engine.stats()["resyncs"]
    for _ in range(3):
        domain.flush()
    assert domain.engine.stats()["resyncs"] == resyncs
    assert not domain.engine.guest_tables()[entry >> 12]
    domain.switch(first)
    assert domain.check(VA, Access.LOAD).frame == 301
    domain.audit()


@every_mode
def test_accessed_and_dirty_bits_gate_what_the_hardware_sees(mode: str) -> None:
    domain = Domain(mode)
    entry = domain.map(VA, 300, P | RW | US)
    domain.start()
    assert domain.hardware(VA, Access.LOAD).frame is None, "present before A"
    assert domain.engine.addresses_of(300, writable=True) == {VA}, "an armed entry is an alias all the same"
    domain.check(VA, Access.LOAD)
    assert domain.read_guest(entry, 4) & (A | D) == A
    assert domain.hardware(VA, Access.STORE).frame is None, "writable before D"
    domain.check(VA, Access.STORE)
    assert domain.read_guest(entry, 4) & (A | D) == A | D
    assert domain.hardware(VA, Access.STORE).frame == domain.mfn(300)
    domain.poke(entry, 300 << 12 | P | RW | US)
    domain.flush()
    assert domain.hardware(VA, Access.LOAD).frame is None, "the guest cleared A and D, and flushed"
    domain.audit()


@every_mode
def test_a_store_to_a_table_through_the_shadow_lets_it_go(mode: str) -> None:
    domain = Domain(mode, "demand")
    table = domain.map(VA, 300) >> 12
    domain.map(VA + 0x1000, table)
    domain.start()
    domain.check(VA, Access.LOAD)
    domain.check(VA + 0x1000, Access.LOAD)
    assert domain.engine.guest_tables()[table]
    assert domain.hardware(VA + 0x1000, Access.STORE).frame is None
    domain.check(VA + 0x1000, Access.STORE)
    assert not domain.engine.guest_tables()[table]
    assert domain.hardware(VA + 0x1000, Access.STORE).frame == domain.mfn(table)
    domain.audit()


@every_mode
def test_an_unannounced_store_is_found_and_repaired(mode: str) -> None:
    domain = Domain(mode)
    entry = domain.map(VA, 300)
    domain.start()
    assert domain.engine.unexplained_changes() == []
    domain.poke(entry, 300 << 12 | P | RW | US, announce=False)
    assert domain.engine.unexplained_changes() == [], "A and D are the hardware's to change"
    domain.poke(entry, 301 << 12 | USED, announce=False)
    assert {failure.invariant for failure in domain.engine.audit()} == {"snapshot"}
    assert domain.engine.unexplained_changes() == [entry >> 12]
    assert domain.engine.unexplained_changes() == []
    domain.flush()
    assert domain.check(VA, Access.LOAD).frame == 301
    domain.audit()


def test_pdptes_are_registers() -> None:
    domain = Domain("pae")
    domain.map(VA, 300)
    domain.start()
    domain.check(VA, Access.LOAD)
    domain.poke(domain.entry_at(VA, 3), 0)
    domain.engine.invlpg(VA)
    assert domain.check(VA, Access.LOAD).frame == 300, "INVLPG does not load PDPTEs"
    domain.state = replace(domain.state, cr0=domain.state.cr0 ^ bits.CR0_WP)
    domain.engine.control(domain.state)
    assert domain.check(VA, Access.LOAD).frame == 300, "neither does a change of CR0.WP"
    domain.state = replace(domain.state, cr4=domain.state.cr4 ^ bits.CR4_PGE)
    domain.start()
    assert domain.check(VA, Access.LOAD).frame is None, "a change of CR4.PGE does (SDM vol. 3A, 4.4.1)"
    domain.audit()


def test_two_pdpts_in_one_page_are_two_roots() -> None:
    domain = Domain("pae")
    domain.map(VA, 300)
    page = domain.root << 12
    second = domain.frame()
    domain.poke(page + 0x20 + 8, second << 12 | P)
    domain.start()
    domain.check(VA, Access.LOAD)
    domain.state = replace(domain.state, cr3=page | 0x20)
    domain.flush()
    assert domain.check(VA, Access.LOAD).frame is None
    assert len(domain.engine.gpts[domain.root]) == 2
    domain.audit()


@every_mode
def test_turning_paging_off_lets_every_table_go_and_on_again_takes_them_back(mode: str) -> None:
    domain = Domain(mode)
    entry = domain.map(VA, 300)
    domain.start()
    assert domain.engine.watch_changes() == {}
    paged = domain.state
    domain.state = replace(paged, cr0=paged.cr0 & ~bits.CR0_PG)
    domain.start()
    assert not any(domain.engine.guest_tables().values())
    for gfn in (0, 300, domain.frames - 1):
        assert domain.check(gfn << 12, Access.STORE).frame == gfn
        assert gfn << 12 in domain.engine.addresses_of(gfn)
    assert domain.check(domain.frames << 12, Access.LOAD).frame == -1
    domain.audit()
    domain.poke(entry, 301 << 12 | USED)
    domain.state = paged
    domain.start()
    assert domain.check(VA, Access.LOAD).frame == 301
    assert domain.engine.addresses_of(400) == frozenset()
    domain.audit()


@every_mode
def test_a_table_that_maps_itself_through_every_entry_ends(mode: str) -> None:
    domain = Domain(mode, sptis=16)
    size = domain.mode.entry_bytes
    flags = P if mode == "pae" else USED
    for index in range(4096 // size):
        domain.poke((domain.root << 12) + index * size, domain.root << 12 | flags)
    domain.start()
    domain.engine.watch_changes()
    for va in (0, VA, 0xFFFFF000):
        for access in ALL_ACCESSES:
            domain.check(va, access)
    domain.audit()


@every_mode
@pytest.mark.parametrize("fill", ["eager", "demand"])
def test_garbage_in_a_root_is_survived(mode: str, fill: str) -> None:
    domain = Domain(mode, fill, sptis=20)
    garbage = np.random.default_rng(11).integers(0, 256, 4096, np.uint8)
    domain.memory.bytes[domain.root * 4096 : domain.root * 4096 + 4096] = garbage
    domain.start()
    for va in range(0, 1 << 32, 0x0765_4321):
        domain.check(va & ~0xFFF, Access.LOAD)
    domain.state = replace(domain.state, cr3=0xFFFF_F000)
    domain.flush()
    domain.check(VA, Access.LOAD)
    domain.audit()


@every_mode
@pytest.mark.parametrize("fill", ["eager", "demand"])
@pytest.mark.parametrize("invlpg", [True, False])
def test_a_table_linked_again_shows_nothing_of_what_it_was(mode: str, fill: str, invlpg: bool) -> None:
    """A new translation needs no flush, so an old SPT must not come back with entries from before it was unlinked."""
    domain = Domain(mode, fill)
    entry = domain.map(VA, 300)
    domain.map(VA + 0x1000, 301)
    domain.start()
    domain.check(VA, Access.LOAD)
    domain.check(VA + 0x1000, Access.LOAD)
    above = domain.entry_at(VA, 2)
    link = domain.read_guest(above, domain.mode.entry_bytes)
    domain.poke(above, 0)
    domain.flush()
    domain.poke(entry, 400 << 12 | USED)
    domain.poke(above, link)
    if invlpg:
        domain.engine.invlpg(VA + 0x1000)
    assert domain.check(VA + 0x1000, Access.LOAD).frame == 301
    assert domain.check(VA, Access.LOAD).frame == 400
    domain.audit()
