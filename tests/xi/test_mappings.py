"""Where frames are mapped, climbed from the backlinks: held against what every root shows from above."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.x86.access import Access
from harness.x86.bits import PTE_ADDR, PTE_NX, PTE_P, PTE_PS, PTE_RW, PTE_US
from harness.x86.modes import MODES, PAGED_MODES
from harness.xi import mappings
from harness.xi.pool import Spti
from harness.xi.roles import FORMAT, ROOT_LEVEL, shadow_shift
from tests.xi.domain import NX, RW, US, USED, A, D, Domain, P

MODE_NAMES = [mode.name for mode in PAGED_MODES]
VA = 0x4000_0000


def seen_from_above(domain: Domain) -> set[tuple[int, int, int, int]]:
    """(root SPTI, address, gfn, page size) of all leaf SPTEs, present or armed, below all roots in the pool."""
    xi = domain.engine

    def below(spti: Spti, va: int) -> Iterator[tuple[int, int, int]]:
        for index in range(512):
            spte = xi.q[spti.base + index]
            here = va + (index << shadow_shift(spti.level))
            if not spte:
                continue
            if spti.level == 1 or spte & PTE_PS:
                yield here, xi.leaf_gfn(spte), 1 << shadow_shift(spti.level)
            else:
                yield from below(xi.pool_memory.child(spte), here)

    found = set()
    for spti in xi.sptis:
        if spti.role is not None and spti.level == ROOT_LEVEL[spti.role.mode]:
            extend = MODES[spti.role.mode].sign_extend
            found |= {(spti.index, extend(va), gfn, size) for va, gfn, size in below(spti, 0)}
    return found


@pytest.mark.parametrize("mode", MODE_NAMES)
@pytest.mark.parametrize("fill", ["eager", "demand"])
def test_every_mapping_is_found_in_every_root(mode: str, fill: str) -> None:
    domain = Domain(mode, fill, scramble=True)
    for page in range(4):
        domain.map(VA + page * 0x1000, 300 + page)
    domain.map(VA + 0x10_0000, 300, P | US | A)
    first, second = domain.root, domain.new_root()
    domain.map(VA + 0x20_0000, 300, root=second)
    domain.map(VA + 0x7000, 301, P | RW, root=second)
    if mode != "pae":
        domain.map(VA + 0x80_0000, 0, P | RW | A | D, 2)
    domain.start()
    for root in (second, first):
        domain.switch(root)
        for va in (VA, VA + 0x1000, VA + 0x10_0000, VA + 0x20_0000, VA + 0x80_0000):
            domain.run(va, Access.LOAD)
    above = seen_from_above(domain)
    frames = {gfn for _, _, gfn, size in above if size == 0x1000} | {300, 301, 302}
    assert len(above) >= 4
    for gfn in frames:
        expected = {
            (root, va + ((gfn - start) << 12), size)
            for root, va, start, size in above
            if start <= gfn < start + (size >> 12)
        }
        told = mappings.describe_mappings(domain.engine, gfn)
        assert not told["more"]
        got = [(one["root_spti"], one["va"], one["page_size"]) for one in told["mappings"]]
        assert set(got) == expected and len(got) == len(expected), f"{gfn:#x}"
        roots = {one["root_spti"]: one["cr3"] for one in told["mappings"]}
        for root, cr3 in roots.items():
            assert cr3 == domain.engine.sptis[root].gfn << 12


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_rights_are_those_of_all_levels(mode: str) -> None:
    domain = Domain(mode, "demand")
    nx = NX if MODES[mode].has_nx else 0
    kinds = {USED: "rwxu", USED & ~RW: "rxu", USED & ~US: "rwx", USED | nx: "rwu" if nx else "rwxu"}
    for page, flags in enumerate(kinds):
        domain.map(VA + page * 0x1000, 300 + page, flags)
    domain.start()
    for page, text in enumerate(kinds.values()):
        domain.run(VA + page * 0x1000, Access.LOAD)
        (one,) = mappings.describe_mappings(domain.engine, 300 + page)["mappings"]
        assert (one["guest"], one["hardware"]) == (text, text)
        assert one["mode"] == mode and FORMAT[mode]
        spte = one["spte"]
        assert spte == domain.engine.q[domain.engine.sptis[one["spti"]].base + one["index"]]
        assert bool(spte & PTE_RW) == ("w" in text) and bool(spte & PTE_US) == ("u" in text)
        assert bool(spte & PTE_NX) == ("x" not in text)
        assert (spte & PTE_ADDR) >> 12 == domain.mfn(300 + page)


def test_rights_that_a_fault_brings_are_the_guests_and_not_the_hardwares() -> None:
    domain = Domain("long4", "eager")
    domain.map(VA, 300, P | RW | US | A)  # not dirty: the first store faults
    domain.map(VA + 0x1000, 301, P | RW | US)  # never used
    domain.start()
    (one,) = mappings.describe_mappings(domain.engine, 300)["mappings"]
    assert (one["guest"], one["hardware"]) == ("rwxu", "rxu")
    (one,) = mappings.describe_mappings(domain.engine, 301)["mappings"]
    assert (one["guest"], one["hardware"]) == ("rwxu", "")
    assert not one["spte"] & PTE_P


def test_a_table_mapped_into_itself_does_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = Domain("long4", "eager", sptis=96)
    domain.map(VA, 300)
    domain.poke((domain.root << 12) + 8 * 511, domain.root << 12 | USED)
    domain.start()
    everything = mappings.describe_mappings(domain.engine, domain.root)
    assert everything["mappings"] and not everything["more"]
    monkeypatch.setattr(mappings, "MOST", 1)
    cut = mappings.describe_mappings(domain.engine, domain.root)
    assert (len(cut["mappings"]), cut["more"]) == (1, len(everything["mappings"]) > 1)


@pytest.mark.parametrize("gfn", [-1, 1 << 40])
def test_a_frame_outside_the_domain_is_mapped_nowhere(gfn: int) -> None:
    assert mappings.describe_mappings(Domain().engine, gfn) == {"mappings": [], "more": False}
