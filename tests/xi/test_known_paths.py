"""Paths that are remembered between faults: used again as long as nothing on them has changed, and no longer."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from harness.engine import RETRY
from harness.x86 import bits
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.modes import PAGED_MODES
from harness.xi.engine import XiEngine
from harness.xi.known_paths import KNOWN_SHIFT, KnownPath
from tests.xi.domain import RW, US, USED, Domain, P

VA = 0x4000_0000
PAGES = 8
GFN = 300
LAST = VA + (1 << KNOWN_SHIFT) - 0x1000  # the last page that the table of VA reaches, in a shadow's format
every_mode = pytest.mark.parametrize("mode", [mode.name for mode in PAGED_MODES])
every_fill = pytest.mark.parametrize("fill", ["eager", "demand"])
FRESH = P | RW | US  # a page that nobody has used yet


def guest(mode: str, fill: str = "demand", *, wp: bool = True, sptis: int = 64) -> Domain:
    """Unused pages below one table, and a used one elsewhere."""
    domain = Domain(mode, fill, wp=wp, sptis=sptis)
    for page in range(PAGES):
        domain.map(VA + page * 0x1000, GFN + page, FRESH)
    domain.map(LAST, GFN + PAGES, FRESH)
    domain.map(2 * VA, GFN + PAGES + 1)
    domain.start()
    return domain


def known(domain: Domain) -> KnownPath | None:
    """What the next walk for VA starts from."""
    return domain.engine.gva_to_gpa(VA).known


def learn(domain: Domain) -> KnownPath:
    """Faults below one table until the way to it is known: the first brings it in, the second finds it complete."""
    for page in range(2):
        domain.check(VA + page * 0x1000, Access.USER_LOAD)
        assert domain.engine.shadow_fault(VA + page * 0x1000, Access.USER_LOAD) == RETRY
    path = known(domain)
    assert path is not None
    return path


@every_mode
@every_fill
def test_a_path_is_known_once_nothing_is_left_to_do_above_its_table(mode: str, fill: str) -> None:
    domain = guest(mode, fill)
    assert known(domain) is None
    domain.check(VA, Access.USER_LOAD)
    path = learn(domain)
    assert path.spti.gfn == domain.entry_at(VA) >> 12
    for page in range(3, PAGES):
        domain.check(VA + page * 0x1000, Access.USER_STORE)
        domain.check(VA + page * 0x1000, Access.FETCH)
    assert domain.engine.gva_to_gpa(LAST).known is path, "the whole table is reached that way"
    assert domain.engine.gva_to_gpa(LAST + 0x1000).known is None
    assert domain.engine.gva_to_gpa(2 * VA).known is None
    domain.audit()


@every_mode
def test_its_tables_stay_the_most_recently_used(mode: str) -> None:
    domain = guest(mode)
    path = learn(domain)
    domain.check(2 * VA, Access.LOAD)
    assert domain.engine.shadow_fault(VA + 0x5000, Access.USER_LOAD) == RETRY
    used = [*path.above, path.spti.index]
    assert list(domain.engine.pool_memory.lru)[-len(used) :] == used


@every_mode
@every_fill
@pytest.mark.parametrize("announce", [True, False])
@pytest.mark.parametrize("change", ["absent", "read-only", "supervisor", "another table", "reserved"])
def test_a_changed_entry_above_is_seen_at_once(mode: str, fill: str, announce: bool, change: str) -> None:
    """Whether the engine was told of the store or not: a fault always goes by the guest's tables as they are."""
    domain = guest(mode, fill)
    other = domain.entry_at(2 * VA) >> 12
    domain.poke((other << 12) + 5 * domain.mode.entry_bytes, (GFN + 20) << 12 | USED)
    learn(domain)
    entry = domain.entry_at(VA, 2)
    table = domain.entry_at(VA) & ~0xFFF
    value = {
        "absent": 0,
        "read-only": table | USED & ~RW,
        "supervisor": table | USED & ~US,
        "another table": other << 12 | USED,
        "reserved": table | USED | 1 << 51,
    }[change]
    if domain.mode.entry_bytes == 4 and change == "reserved":
        value = table | USED | bits.PTE_PS | 1 << 21
    domain.poke(entry, value, announce)
    assert known(domain) is None
    va = VA + 5 * 0x1000
    wanted = domain.expect(va, Access.USER_STORE)
    code = domain.engine.shadow_fault(va, Access.USER_STORE)
    assert code == (RETRY if wanted.code is None else wanted.code)
    domain.engine.unexplained_changes()
    domain.flush()
    for access in (Access.USER_STORE, Access.STORE, Access.USER_LOAD):
        domain.check(va, access)
    domain.audit()


@every_mode
def test_every_spte_above_and_every_snapshot_counts(mode: str) -> None:
    """An SPTI may have been recycled for another table and be linked at the same place: then a snapshot differs."""
    domain = guest(mode)
    path = learn(domain)
    for number in path.above:
        table = domain.engine.sptis[number]
        index = VA >> table.shift & 511
        domain.engine.q[table.base + index] ^= bits.PTE_P
        assert known(domain) is None
        domain.engine.q[table.base + index] ^= bits.PTE_P
        if table.rules is not None:
            before = table.snapshot_entry(index)
            table.set_snapshot_entry(index, before ^ bits.PTE_G)
            assert known(domain) is None
            table.set_snapshot_entry(index, before)
        assert known(domain) is path
    domain.audit()


@every_mode
def test_what_was_put_back_is_not_taken_for_unchanged(mode: str) -> None:
    """The guest's entry is as it was, and in between the shadow was made after another one."""
    domain = guest(mode)
    other = domain.entry_at(2 * VA) >> 12
    path = learn(domain)
    entry = domain.entry_at(VA, 2)
    before = domain.read_guest(entry, domain.mode.entry_bytes)
    domain.poke(entry, other << 12 | USED)
    domain.engine.invlpg(VA)
    domain.engine.shadow_fault(VA + 0x7000, Access.USER_LOAD)
    domain.poke(entry, before)
    assert known(domain) is None
    domain.check(VA + 0x7000, Access.USER_LOAD)
    domain.flush()
    assert learn(domain) is not path
    domain.audit()


@every_mode
def test_nothing_is_known_behind_a_new_root_or_new_control_bits(mode: str) -> None:
    domain = guest(mode)
    learn(domain)
    domain.flush()
    assert not domain.engine.known_paths
    learn(domain)
    domain.state = replace(domain.state, cr0=domain.state.cr0 ^ bits.CR0_WP)
    domain.start()
    assert not domain.engine.known_paths
    domain.check(VA + 0x5000, Access.STORE)
    domain.audit()


@every_mode
@pytest.mark.parametrize("level", [1, 2])
def test_a_table_whose_frame_moves_or_goes_is_looked_up_again(mode: str, level: int) -> None:
    domain = guest(mode)
    learn(domain)
    table = domain.entry_at(VA, level) >> 12
    domain.move(table)
    assert known(domain) is None
    learn(domain)
    domain.check(VA + 0x5000, Access.USER_STORE)
    if table != domain.root:
        domain.take(table)
        assert known(domain) is None
        domain.check(VA + 0x6000, Access.USER_STORE)
        assert table not in domain.away
    domain.audit()


@every_mode
def test_a_recycled_table_is_made_anew(mode: str) -> None:
    domain = guest(mode, sptis=13)
    learn(domain)
    for number in range(1, 40):
        domain.map(VA + (number << 21), GFN + 10 + number)
        domain.check(VA + (number << 21), Access.LOAD)
    assert domain.engine.counters.recycled > 0
    assert domain.engine.gva_to_gpa(VA).known is None
    domain.check(VA + 0x5000, Access.USER_LOAD)
    learn(domain)
    domain.audit()
    assert len(domain.engine.known_paths) <= 13, "no more than there are tables"


@every_mode
def test_a_store_that_only_wp_0_allows_does_not_open_the_others(mode: str) -> None:
    """What forbids it is the entry above the table: users must not come through behind the supervisor."""
    domain = guest(mode, wp=False)
    domain.poke(domain.entry_at(VA, 2), domain.entry_at(VA) & ~0xFFF | USED & ~RW)
    domain.start()
    learn(domain)
    domain.check(VA + 0x5000, Access.STORE)
    domain.check(VA + 0x5000, Access.USER_LOAD)
    domain.check(VA + 0x6000, Access.USER_STORE)
    domain.check(VA + 0x6000, Access.STORE)
    domain.audit()


class LongWay(XiEngine):
    """Every fault walks, judges, follows and fills step by step."""

    def _known_fault(self, va: int, access: int, known: KnownPath) -> int | None:
        return None


class ShortWay(XiEngine):
    """Counts the faults that are done in one piece."""

    short = 0
    refused = 0

    def _known_fault(self, va: int, access: int, known: KnownPath) -> int | None:
        result = super()._known_fault(va, access, known)
        self.short += result == RETRY
        self.refused += result is not None and result >= 0
        return result


class Busy:
    """A guest that faults on few pages over and over, now and then with another entry there, or above."""

    def __init__(self, mode: str, fill: str, snapshots: str, engine: type[XiEngine], seed: int) -> None:
        self.random = Random(seed)
        self.results: list[int] = []
        wp = self.random.random() < 0.8
        domain = Domain(mode, fill, sptis=16, wp=wp, engine=engine, options={"snapshots": snapshots})
        domain.late = fill == "eager"
        self.domain, self.pages = domain, [VA + table + page * 0x1000 for table in (0, 1 << 22) for page in range(12)]
        for number, va in enumerate(self.pages):
            domain.map(va, GFN + number, FRESH)
        self.tables = [domain.entry_at(self.pages[0]) >> 12, domain.entry_at(self.pages[-1]) >> 12]
        domain.map(2 * VA, self.tables[0])  # the guest's own window on a table
        domain.start()

    def rage(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        self.domain.engine.unexplained_changes()
        self.domain.flush()
        self.domain.audit()

    def step(self) -> None:
        r, domain = self.random, self.domain
        va = r.choice(self.pages)
        what = r.random()
        if what < 0.75:
            self.results.append(domain.engine.shadow_fault(va, r.choice(ALL_ACCESSES)))
        elif what < 0.85:  # the guest looks for what was used, and tells nobody
            self.write(va, 1, bits.PTE_A | bits.PTE_D, announce=r.random() < 0.2)
        elif what < 0.93:
            self.write(va, 1, r.choice((P, RW, US, 1 << 12)))
        elif what < 0.95:
            self.write(va, 2, r.choice((P, RW, US)), announce=r.random() < 0.5)
        elif what < 0.97:
            domain.engine.shadow_fault(2 * VA, Access.STORE)
        elif what < 0.98:
            domain.flush()
        elif what < 0.985:
            domain.move(r.choice((*self.tables, GFN + r.randrange(24))))
        elif what < 0.99:
            domain.engine.dirty_log_start()
        else:
            domain.engine.dirty_log_stop()

    def write(self, va: int, level: int, flips: int, announce: bool = True) -> None:
        entry = self.domain.entry_at(va, level)
        self.domain.poke(entry, self.domain.read_guest(entry, self.domain.mode.entry_bytes) ^ flips, announce)


@every_mode
@every_fill
@pytest.mark.parametrize("snapshots", ["reserved", "dynamic"])
def test_the_short_way_comes_to_the_same(mode: str, fill: str, snapshots: str) -> None:
    short = refused = 0
    for seed in range(4):
        guests = [Busy(mode, fill, snapshots, engine, seed) for engine in (LongWay, ShortWay)]
        for one in guests:
            one.rage(400)
        long, ours = (one.domain.engine for one in guests)
        assert isinstance(ours, ShortWay)
        short += ours.short
        refused += ours.refused
        assert guests[0].results == guests[1].results
        assert ours.counters == long.counters
        assert list(ours.pool_memory.lru) == list(long.pool_memory.lru)
        assert np.array_equal(ours.pool[1], long.pool[1])
        assert np.array_equal(guests[0].domain.memory.bytes, guests[1].domain.memory.bytes)
    assert short > 100 and refused > 20
