"""Guests that do anything: after a flush, every access must end on the shadow as the guest's own tables say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.x86 import bits
from harness.x86.access import Access
from harness.x86.modes import MODES, PAGED_MODES, PagingMode
from harness.xi import resync
from tests.xi.domain import NX, PS, Domain
from tests.xi.model import mmu
from tests.xi.policies import COMBINATIONS, combination_id

SIZES = (5, 12, 120)  # SPTIs; no pool has fewer than 5
ROOTS = (2, 3)
TABLES = (2, 3, 4, 5, 6, 7, 8)
DATA = (20, 21, 600)
OUTSIDE = (5000, (1 << 28) - 1)  # beyond the domain, within 40 physical bits


def indices(mode: PagingMode, level: int) -> tuple[int, ...]:
    count = mode.level(level).entries
    return tuple(sorted({0, 1, count // 2, count - 1}))


@st.composite
def an_entry(draw: st.DrawFn, mode: PagingMode) -> int:
    if draw(st.integers(0, 7)) == 0:
        return draw(st.integers(0, (1 << 8 * mode.entry_bytes) - 1))
    flags = draw(st.integers(0, 0x7F)) | (0 if draw(st.integers(0, 4)) == 0 else bits.PTE_P)
    target = draw(st.sampled_from(TABLES + TABLES + DATA + OUTSIDE + (0, 512)))
    if draw(st.booleans()):
        flags |= bits.PTE_RW | bits.PTE_US
    if draw(st.integers(0, 3)) == 0:
        flags |= PS
        target &= ~511
    value = target << 12 | flags
    if mode.entry_bytes == 8:
        if draw(st.integers(0, 5)) == 0:
            value |= NX
        if draw(st.integers(0, 5)) == 0:
            value |= draw(st.integers(0, 15)) << bits.PTE_PK_SHIFT
    if draw(st.integers(0, 2)) == 0:  # a plain PDPTE for PAE guests, valid for the others too
        value = target << 12 | bits.PTE_P
    return int(value & (1 << 8 * mode.entry_bytes) - 1)


@st.composite
def an_address(draw: st.DrawFn, mode: PagingMode) -> int:
    va = draw(st.sampled_from((0, 0xFFF, 0x1FF000)))
    for level in mode.levels:
        va |= draw(st.sampled_from(indices(mode, level.number))) << level.shift
    return mode.sign_extend(va)


@st.composite
def an_operation(draw: st.DrawFn, mode: PagingMode) -> tuple[Any, ...]:
    kind = draw(
        st.sampled_from(
            ("write", "write", "write", "write", "cr3", "invlpg", "access", "control", "remap", "log", "idle", "pkru")
        )
    )
    if kind == "write":
        level = draw(st.sampled_from([row.number for row in mode.levels]))
        return kind, draw(st.sampled_from(TABLES)), draw(st.sampled_from(indices(mode, level))), draw(an_entry(mode))
    if kind == "cr3":
        return kind, draw(st.sampled_from(ROOTS))
    if kind in ("invlpg", "access"):
        return kind, draw(an_address(mode)), draw(st.sampled_from(list(Access)))
    if kind == "control":
        return kind, draw(st.sampled_from(("wp", "nxe", "smep", "smap", "pse", "pke", "pg", "pge")))
    if kind == "remap":
        return kind, draw(st.sampled_from((2, 4, 6, 20, 600))), draw(st.booleans())
    if kind == "pkru":
        return kind, draw(st.integers(0, 0xFFFFFFFF))
    return kind, draw(st.booleans())


_TOGGLES = {
    "wp": ("cr0", bits.CR0_WP),
    "pg": ("cr0", bits.CR0_PG),
    "nxe": ("efer", bits.EFER_NXE),
    "smep": ("cr4", bits.CR4_SMEP),
    "smap": ("cr4", bits.CR4_SMAP),
    "pse": ("cr4", bits.CR4_PSE),
    "pke": ("cr4", bits.CR4_PKE),
    "pge": ("cr4", bits.CR4_PGE),
}


def connect(domain: Domain) -> None:
    """A start from which random edits matter: every table's first entries lead to the next tables and to data."""
    rights = bits.PTE_P if domain.mode.name == "pae" else bits.PTE_P | bits.PTE_RW | bits.PTE_US | bits.PTE_A
    size = domain.mode.entry_bytes
    for number, gfn in enumerate(TABLES):
        after = [TABLES[2 + (number + step) % 5] for step in (0, 1)]
        targets = (after[0] << 12 | rights, DATA[number % 3] << 12 | bits.PTE_P, after[1] << 12 | rights)
        for index, entry in zip((0, 1, domain.mode.levels[-1].entries // 2), targets, strict=True):
            domain.poke((gfn << 12) + index * size, entry)


class Player:
    """Plays operations on a domain, as its guest."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.engine = domain.engine

    def play(self, operation: tuple[Any, ...]) -> None:
        getattr(self, f"do_{operation[0]}")(*operation[1:])

    def do_write(self, gfn: int, index: int, entry: int) -> None:
        self.domain.poke((gfn << 12) + index * self.domain.mode.entry_bytes, entry)

    def do_cr3(self, gfn: int) -> None:
        self.domain.state = replace(self.domain.state, cr3=gfn << 12)
        self.domain.flush()

    def do_invlpg(self, va: int, access: Access) -> None:
        self.engine.invlpg(va)

    def do_access(self, va: int, access: Access) -> None:
        self.domain.run(va if self.domain.state.mode.canonical else va & 0xFFFFFFFF, access)

    def do_control(self, name: str) -> None:
        register, bit = _TOGGLES[name]
        state = self.domain.state
        self.domain.state = replace(state, **{register: getattr(state, register) ^ bit})
        self.domain.start()

    def do_remap(self, gfn: int, stays: bool) -> None:
        domain = self.domain
        if gfn in domain.away:
            domain.give(gfn)
        elif stays:
            domain.move(gfn)
        elif domain.state.mode.levels and domain.state.root_gpa >> 12 == gfn:
            with pytest.raises(ValueError, match="root table in use"):
                domain.take(gfn)
        else:
            domain.take(gfn)

    def do_log(self, on: bool) -> None:
        if on and not self.engine.logging:
            self.engine.dirty_log_start()
        elif not on:
            self.engine.dirty_log_stop()

    def do_idle(self, _: bool) -> None:
        self.engine.idle_zero(2)

    def do_pkru(self, pkru: int) -> None:
        self.domain.state = replace(self.domain.state, pkru=pkru)
        self.engine.set_pkru(pkru)


@pytest.mark.parametrize("bulk", [1, resync.BULK], ids=["bulk", "scalar"])
@pytest.mark.parametrize("fill", ["eager", "demand"])
@pytest.mark.parametrize("mode", [mode.name for mode in PAGED_MODES])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_after_a_flush_the_shadow_answers_as_the_guests_tables(
    mode: str, fill: str, bulk: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resync, "BULK", bulk)  # 1: every leaf table goes through numpy
        play(mode, fill, data)


@pytest.mark.parametrize("options", COMBINATIONS, ids=combination_id)
@pytest.mark.parametrize("mode", [mode.name for mode in PAGED_MODES])
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_so_it_does_under_every_policy(options: Mapping[str, str], mode: str, data: st.DataObject) -> None:
    play(mode, data.draw(st.sampled_from(("eager", "demand"))), data, options, data.draw(st.booleans()))


def play(
    mode: str, fill: str, data: st.DataObject, options: Mapping[str, str] | None = None, late: bool = False
) -> None:
    paging = MODES[mode]
    domain = Domain(
        mode,
        fill,
        sptis=data.draw(st.sampled_from(SIZES)),
        scramble=data.draw(st.booleans()),
        wp=data.draw(st.booleans()),
        options=options,
        late=late,
    )
    player = Player(domain)
    reported: set[int] = set()
    connect(domain)
    domain.start()
    for _ in range(data.draw(st.integers(1, 4))):
        for operation in data.draw(st.lists(an_operation(paging), max_size=25)):
            player.play(operation)
            domain.engine.watch_changes()
        domain.audit()
        player.do_cr3(data.draw(st.sampled_from(ROOTS)))
        domain.audit()
        for drawn in data.draw(st.lists(an_address(paging), min_size=1, max_size=6)):
            va = drawn if domain.state.mode.canonical else drawn & 0xFFFFFFFF
            for access in Access:
                touched = mmu(domain.read_guest, domain.state, va, access, domain.pdptes).touched
                answer = domain.check(va, access)
                for address, bit in touched:
                    if address >> 12 < domain.frames:
                        assert domain.read_guest(address, 8) & bit, f"{bit:#x} not set in the entry at {address:#x}"
                if access.is_store and answer.frame not in (None, -1) and domain.engine.logging:
                    assert domain.engine.logged[answer.frame], f"a store to {answer.frame:#x} was not logged"
        domain.audit()
        check_watches(domain, reported)


def check_watches(domain: Domain, reported: set[int]) -> None:
    """The addresses to watch, kept incrementally, are those that the aliases give when asked from scratch; and no frame
    can be executed that was not reported as executable (`reported` gathers them)."""
    engine = domain.engine
    engine.watch_changes()
    if not engine.watching:  # each question is answered from scratch, which takes its time
        for gfn in TABLES:
            assert engine.aliases.watched(gfn) == (engine.addresses_of(gfn, True) if engine.guarded[gfn] else set())
        return
    for gfn in range(domain.frames):
        wanted = engine.addresses_of(gfn, writable=True) if engine.guarded[gfn] else frozenset()
        assert engine.aliases.watched(gfn) == wanted
    reported.update(engine.executable_changes().tolist())
    for gfn in set(range(domain.frames)) - reported:
        assert not engine.addresses_of(gfn, executable=True), f"nobody was told that {gfn:#x} can be executed"
