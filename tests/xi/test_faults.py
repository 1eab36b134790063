"""The fault path against the plain MMU of `model`: every combination of rights, control bits and accesses."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from harness.engine import GENERAL_PROTECTION, MMIO, RETRY
from harness.x86 import bits
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.modes import PAGED_MODES
from tests.xi.domain import NX, PS, RW, US, USED, A, D, Domain, P

MODE_NAMES = [mode.name for mode in PAGED_MODES]
VA = 0x40000000
every_mode = pytest.mark.parametrize("mode", MODE_NAMES)
every_fill = pytest.mark.parametrize("fill", ["eager", "demand"])


@every_mode
@every_fill
@pytest.mark.parametrize("wp", [True, False])
@pytest.mark.parametrize("large", [False, True])
def test_every_combination_of_rights(mode: str, fill: str, wp: bool, large: bool) -> None:
    """P, RW, US, NX and A/D of the leaf and RW, US of the entry above it, for all accesses in several orders, so that
    what one access leaves behind meets every other."""
    domain = Domain(mode, fill, wp=wp, sptis=120)
    wide = domain.mode.entry_bytes == 8
    addresses = []
    choices = product((0, RW), (0, US), (0, NX if wide else 0), (0, RW), (0, US), (0, A | D))
    for number, (rw, us, nx, rw2, us2, ad) in enumerate(choices):
        va = VA + number * domain.mode.levels[-2].span
        if large:
            domain.map(va, 512 if wide else 0, P | rw | us | nx | ad, 2)
        else:
            domain.map(va, 300, P | rw | us | nx | ad)
            domain.poke(domain.entry_at(va, 2), domain.entry_at(va) & ~0xFFF | P | rw2 | us2 | A)
        addresses.append(va)
    for cr4 in (0, bits.CR4_SMEP, bits.CR4_SMAP, bits.CR4_SMEP | bits.CR4_SMAP):
        domain.state = replace(domain.state, cr4=domain.state.cr4 & ~(bits.CR4_SMEP | bits.CR4_SMAP) | cr4)
        domain.start()
        for va in addresses:
            for access in (*ALL_ACCESSES, *ALL_ACCESSES[::-1], Access.STORE, Access.USER_LOAD, Access.STORE):
                domain.check(va, access)
        domain.audit()


@pytest.mark.parametrize("mode", ["long4", "long5"])
@pytest.mark.parametrize("wp", [True, False])
@pytest.mark.parametrize("smap", [0, bits.CR4_SMAP])
def test_protection_keys(mode: str, wp: bool, smap: int) -> None:
    domain = Domain(mode, wp=wp, cr4=bits.CR4_PKE | smap)
    for number, (key, us, rw) in enumerate(product((0, 1, 2, 15), (0, US), (0, RW))):
        domain.map(VA + number * 4096, 300 + number, P | us | rw | key << 59)
    domain.start()
    for pkru in (0, 0x4, 0x8, 0xC, 0x30, 0x80000000, 0xFFFFFFFF, 0):
        domain.state = replace(domain.state, pkru=pkru)
        domain.engine.set_pkru(pkru)
        for number in range(16):
            for access in ALL_ACCESSES:
                domain.check(VA + number * 4096, access)
        domain.audit()


@every_mode
@every_fill
def test_bits_that_must_be_zero_fault_as_reserved(mode: str, fill: str) -> None:
    domain = Domain(mode, fill)
    reserved = 1 << 21 if mode == "nopae" else 1 << 45
    domain.map(VA, 512 if mode != "nopae" else 0, USED | reserved, 2)
    domain.start()
    answer = domain.check(VA, Access.USER_STORE)
    assert answer.code == bits.PF_P | bits.PF_RSVD | bits.PF_U | bits.PF_W
    domain.audit()


@pytest.mark.parametrize("mode", [mode.name for mode in PAGED_MODES if mode.has_nx])
def test_nx_is_reserved_until_efer_says_otherwise(mode: str) -> None:
    domain = Domain(mode)
    domain.map(VA, 300, USED | NX)
    domain.start()
    assert domain.check(VA, Access.FETCH).code == bits.PF_P | bits.PF_I
    domain.state = replace(domain.state, efer=domain.state.efer & ~bits.EFER_NXE)
    domain.start()
    assert domain.check(VA, Access.LOAD).code == bits.PF_P | bits.PF_RSVD
    domain.audit()


@every_mode
@every_fill
def test_a_refused_access_touches_nothing(mode: str, fill: str) -> None:
    domain = Domain(mode, fill)
    entry = domain.map(VA, 300, P)
    domain.start()
    before = domain.memory.bytes.copy()
    assert domain.check(VA, Access.STORE).code == bits.PF_P | bits.PF_W
    assert domain.check(VA, Access.USER_LOAD).code == bits.PF_P | bits.PF_U
    assert (domain.memory.bytes == before).all()
    domain.check(VA, Access.LOAD)
    assert domain.read_guest(entry, 4) & (A | D) == A


@every_mode
def test_frames_without_memory_are_the_device_models(mode: str) -> None:
    domain = Domain(mode)
    domain.map(VA, domain.frames + 5)
    domain.poke(domain.entry_at(VA + 0x800000, 2), (domain.frames + 9) << 12 | USED)
    domain.start()
    assert domain.engine.shadow_fault(VA, Access.STORE) == MMIO
    assert domain.engine.shadow_fault(VA + 0x800000, Access.LOAD) == 0, "a table that nothing backs reads as zero"
    domain.audit()


def test_non_canonical_addresses_are_not_walked() -> None:
    for mode, va in (("long4", 1 << 47), ("long5", 1 << 56), ("pae", 1 << 32)):
        domain = Domain(mode)
        domain.start()
        assert domain.engine.shadow_fault(va, Access.LOAD) == GENERAL_PROTECTION


def test_a_spurious_fault_is_retried() -> None:
    domain = Domain("long4")
    domain.map(VA, 300)
    domain.start()
    assert domain.hardware(VA, Access.STORE).frame is not None
    assert domain.engine.shadow_fault(VA, Access.STORE) == RETRY
    domain.audit()


@every_mode
def test_a_supervisor_store_that_wp_0_allows_is_taken_back_when_users_come(mode: str) -> None:
    domain = Domain(mode, wp=False)
    domain.map(VA, 300, P | US)
    domain.start()
    domain.check(VA, Access.STORE)
    assert domain.hardware(VA, Access.STORE).frame is not None
    assert domain.hardware(VA, Access.USER_LOAD).frame is None
    domain.check(VA, Access.USER_LOAD)
    assert domain.hardware(VA, Access.USER_LOAD).frame is not None
    assert domain.hardware(VA, Access.STORE).frame is None
    assert domain.engine.addresses_of(300, writable=True) == {VA}, "the supervisor can write it"
    domain.audit()


def test_pse_is_honoured_only_when_enabled() -> None:
    domain = Domain("nopae")
    table = domain.map(VA, 300) >> 12
    domain.poke(domain.entry_at(VA, 2), table << 12 | USED | PS)
    domain.state = replace(domain.state, cr4=0)
    domain.start()
    assert domain.check(VA, Access.LOAD).frame == 300
    domain.state = replace(domain.state, cr4=bits.CR4_PSE)
    domain.poke(domain.entry_at(VA, 2), USED | PS)
    domain.start()
    assert domain.check(VA + 0x3FF000, Access.LOAD).frame == 0x3FF
    domain.audit()


@pytest.mark.parametrize("access", [Access.LOAD, Access.STORE])
def test_the_halves_of_a_4_mib_page_have_their_accessed_and_dirty_bits_in_common(access: Access) -> None:
    """The two SPTEs of one entry share its snapshot: what a fault on one half brings in is the other's as well."""
    domain = Domain("nopae", "demand")
    entry = domain.map(VA, 0, USED, 2)
    one, other = VA, VA + (1 << 21)
    domain.start()
    for va in (one, other):
        domain.check(va, Access.STORE)
    domain.poke(entry, P | RW | US | PS)
    domain.move(600)  # `other` faults, and finds A and D gone
    domain.check(other, access)
    domain.flush()
    may_store = access is Access.STORE
    assert bool(domain.read_guest(entry, 4) & D) == may_store
    assert (domain.hardware(one, Access.STORE).frame is not None) == may_store
    domain.audit()
