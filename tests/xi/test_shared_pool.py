"""Domains that share a pool: each is right at any moment, nobody loses what it runs on, and nobody is protected from
the others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import product
from random import Random
from typing import Any, Final

import numpy as np
import pytest

from harness.engine import RETRY, EngineConfig, PlainMemory
from harness.x86.access import Access
from harness.xi.audit_pool import audit_sharing
from harness.xi.engine import XiEngine
from harness.xi.life import IDLE_DROPS
from harness.xi.policies import POLICIES
from harness.xi.pool import LOW_WATER, PAGES_AT_ONCE, Spti, Tenant, minimum_sptis
from harness.xi.shared_pool import Share, SharedPool
from tests.xi.domain import Domain
from tests.xi.greedy import Greedy
from tests.xi.storm import FRAMES, Storm

MODES: Final = ("unpaged", "nopae", "pae", "long4", "long5")
SHARED: Final = {"pool": "shared"}
GIB: Final = 1 << 30
FAR: Final = (1 << 47) - 4096
BASE: Final = 2 * FRAMES
OTHERS: Final = [name for name in POLICIES if name != "pool"]
POLICY_SETS: Final = [
    SHARED | dict(zip(OTHERS, values, strict=True)) for values in product(*(POLICIES[name] for name in OTHERS))
]


def pool_of(sptis: int) -> SharedPool:
    return SharedPool(sptis * 4, BASE)


def member(pool: SharedPool, mode: str = "long4", fill: str = "demand", **more: Any) -> Domain:
    """A domain that has joined `pool` and not begun yet."""
    return Domain(mode, fill, options=SHARED | more.pop("options", {}), shared_pool=pool, **more)


def spread(domain: Domain, pages: int) -> list[int]:
    """`pages` mapped addresses with nothing in common but the root."""
    out = [number * 512 * GIB for number in range(1, pages + 1)]
    for number, va in enumerate(out):
        domain.map(va, 300 + number)
    return out


def beginners(pool: SharedPool, count: int, **more: Any) -> list[Domain]:
    """Domains that have used one page each, all at the same address."""
    out = [member(pool, **more) for _ in range(count)]
    for domain in out:
        domain.map(GIB, 300)
        domain.start()
        domain.check(GIB, Access.STORE)
    return out


def failures(domains: list[Domain]) -> set[str]:
    return {failure.invariant for domain in domains for failure in domain.engine.audit()}


# Who has what.


def test_what_is_free_is_free_for_all_and_what_is_used_is_one_domains() -> None:
    pool = pool_of(40)
    one, other = beginners(pool, 2)
    assert not failures([one, other])
    shares = [domain.engine.pool_memory for domain in (one, other)]
    assert {*shares[0].lru}.isdisjoint(shares[1].lru)
    assert len(shares[0].lru) == len(shares[1].lru) == 4
    for domain, share in zip((one, other), shares, strict=True):
        stats = domain.engine.stats()
        assert (stats["sptis"], stats["sptis_free"], stats["sptis_of_others"]) == (40, 32, 4)
        assert (share.held, stats["shadow_pages"], stats["snapshot_pages"], stats["backlink_pages"]) == (4, 4, 4, 8)
    one.engine.xi_invld_mfn(300, one.spare())  # its own leaf goes, the other's stays
    assert one.hardware(GIB, Access.LOAD).frame is None
    assert other.hardware(GIB, Access.LOAD).frame == other.mfn(300)


def test_the_least_recently_used_of_all_goes_and_its_owner_tears_it_down() -> None:
    pool = pool_of(12)
    idle, busy = beginners(pool, 2)
    busy.check(GIB, Access.LOAD)
    assert list(pool.order.values()) == [idle.engine] * 4 + [busy.engine] * 4
    loser = idle.engine.pool_memory
    first = [number for number in loser.lru if idle.engine.sptis[number].level < 4][:2]
    pages = spread(busy, 2)
    busy.flush()
    for va in pages:
        assert busy.engine.shadow_fault(va, Access.LOAD) == RETRY
    assert [number for number in first if number in loser.lru] == []
    assert (idle.engine.counters.taken_by_others, busy.engine.counters.taken_from_others) == (2, 2)
    assert (idle.engine.counters.recycled, busy.engine.counters.recycled) == (2, 0)
    assert idle.hardware(GIB, Access.LOAD).frame is None
    assert not failures([idle, busy])
    idle.check(GIB, Access.STORE)
    busy.check(pages[-1], Access.STORE)
    assert not failures([idle, busy])


def test_what_nothing_leads_to_goes_before_what_is_used_whosever_it_is() -> None:
    pool = pool_of(12)
    tidy, loose = beginners(pool, 2)
    pages = spread(loose, 1)
    loose.flush()
    loose.check(pages[0], Access.LOAD)
    loose.poke(loose.entry_at(pages[0], 4), 0)
    loose.flush()
    loose.check(GIB, Access.LOAD)
    assert list(loose.engine.orphans)
    more = spread(tidy, 1)
    tidy.flush()
    tidy.check(GIB, Access.LOAD)
    tidy.check(more[0], Access.LOAD)
    assert loose.hardware(GIB, Access.LOAD).frame is not None
    assert tidy.hardware(GIB, Access.LOAD).frame is not None
    assert tidy.engine.counters.taken_from_others > 0
    assert not failures([tidy, loose])


def test_nobody_loses_the_root_that_it_runs_on() -> None:
    pool = pool_of(minimum_sptis() + 3)
    domains = beginners(pool, 4)
    greedy = domains[-1]
    for va in spread(greedy, 8):
        greedy.flush()
        greedy.check(va, Access.LOAD)
    for domain in domains[:-1]:
        root = domain.engine.root_spti
        assert root is not None and list(domain.engine.pool_memory.lru) == [root.index]
    assert not failures(domains)
    for domain in domains:
        domain.check(GIB, Access.STORE)
    assert not failures(domains)


def test_under_eager_fill_what_a_root_reaches_goes_only_for_an_access() -> None:
    pool = pool_of(12)
    watched, eager = member(pool, fill="eager"), member(pool, fill="eager")
    for domain in (watched, eager):
        domain.map(GIB, 300)
    spread(eager, 6)
    watched.start()
    held = set(watched.engine.pool_memory.lru)
    eager.start()
    assert eager.engine.counters.eager_truncated > 0
    assert set(watched.engine.pool_memory.lru) == held
    eager.check(3 * 512 * GIB, Access.LOAD)
    assert watched.engine.counters.taken_by_others > 0
    assert not failures([watched, eager])
    watched.flush()
    watched.check(GIB, Access.STORE)
    assert not failures([watched, eager])


# Who joins.


def test_a_domain_with_a_shared_pool_to_itself_is_one_with_a_pool_of_its_own() -> None:
    for seed, (mode, fill) in enumerate(product(MODES, ("demand", "eager"))):
        counts = []
        for policy in POLICIES["pool"]:
            storm = Storm(mode, 7, seed, fill, options={"pool": policy}, late=fill == "eager")
            storm.rage(24)
            counts.append(storm.engine.counters.flat())
        assert counts[0] == counts[1]
        assert counts[0]["recycled"] + counts[0]["remapped"] > 0


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {"pool": "reserved"}, "joins no shared one"),
        ({"pool_frames": 44}, SHARED, "the shared pool is 48 frames at mfn 0x2000, not 44 at 0x2000"),
        ({"pool_base_mfn": 0x3000}, SHARED, "not 48 at 0x3000"),
        ({"pool_memory": np.zeros(48 * 4096, np.uint8)}, SHARED, "a memory of its own"),
        ({"p2m": np.arange(5)}, SHARED, "shape"),
    ],
)
def test_a_domain_that_does_not_fit_is_told_and_has_not_joined(
    config: dict[str, Any], options: dict[str, str], message: str
) -> None:
    pool = pool_of(12)
    arguments: dict[str, Any] = {"frames": 100, "pool_frames": 48, "pool_base_mfn": BASE, "options": options} | config
    with pytest.raises(ValueError, match=message):
        XiEngine(EngineConfig(**arguments), PlainMemory(np.zeros(100 * 4096, np.uint8)), shared_pool=pool)
    assert not pool.shares
    assert not audit_sharing(pool)


def test_a_pool_has_room_for_a_path_and_the_roots_of_all_others() -> None:
    pool = pool_of(minimum_sptis() + 1)
    domains = [member(pool), member(pool)]
    with pytest.raises(ValueError, match="too small for 3 domains"):
        member(pool)
    for domain in domains:
        domain.map(GIB, 300)
        domain.start()
        domain.check(GIB, Access.STORE)
    assert not failures(domains)


def test_memory_that_is_given_is_that_of_all() -> None:
    memory = np.full(48 * 4096, 0xAA, np.uint8)
    pool = SharedPool(48, BASE, memory)
    assert not memory.any()
    config = EngineConfig(64, 48, BASE, pool_memory=memory, options=SHARED)
    engine = XiEngine(config, PlainMemory(np.zeros(64 * 4096, np.uint8)), shared_pool=pool)
    assert engine.root.root == BASE << 12
    assert memory.any()


# What one does to another.


def test_a_quiet_domain_pays_for_a_greedy_one_and_with_a_pool_of_its_own_does_not() -> None:
    """The same guest, next to a neighbour that asks for half as many tables again as there are."""
    faults = {}
    for policy in POLICIES["pool"]:
        pool = pool_of(64)
        greedy = Greedy(pool)
        quiet = member(pool) if policy == "shared" else Domain("long4", "demand", sptis=32)
        pages = spread(quiet, 5)
        quiet.start()
        for _ in range(4):
            for va in pages:
                quiet.check(va, Access.LOAD)
            greedy.ask(96)
        faults[policy] = quiet.engine.stats()["made"]
        assert not failures([quiet, greedy.domain])
    assert faults == {"reserved": 1 + 5 * 3, "shared": 1 + 4 * 5 * 3}


def test_a_greedy_neighbour_can_keep_an_instruction_from_ever_ending() -> None:
    """All the pages that an instruction needs are there together at some moment, or it is tried again: next to one that
    takes as many tables between two of its faults as there are, that moment never comes."""

    def faults_until_all_are_there(domain: Domain, pages: list[int], meanwhile: Callable[[], None]) -> int | None:
        for faults in range(20 * len(pages)):
            missing = [va for va in pages if domain.hardware(va, Access.LOAD).frame is None]
            if not missing:
                return faults
            assert domain.engine.shadow_fault(missing[0], Access.LOAD) == RETRY
            meanwhile()
        return None

    taken: dict[str, int | None] = {}
    for asked in (8, 64):
        pool = pool_of(64)
        greedy, guest = Greedy(pool), member(pool)
        pages = spread(guest, 4)
        guest.start()
        taken[f"shared, {asked} asked"] = faults_until_all_are_there(guest, pages, lambda: greedy.ask(asked))  # noqa: B023
        assert not failures([guest, greedy.domain])
    guest = Domain("long4", "demand", sptis=minimum_sptis("long4", 4))
    pages = spread(guest, 4)
    guest.start()
    taken["reserved"] = faults_until_all_are_there(guest, pages, lambda: None)
    assert taken == {"shared, 8 asked": 4, "shared, 64 asked": None, "reserved": 4}


def test_a_search_looks_at_the_tables_of_its_own_domain_only() -> None:
    visited = []
    for neighbours in (0, 3):
        pool = pool_of(64)
        domains = beginners(pool, 1 + neighbours, options={"backlinks": "none"})
        domain = domains[0]
        before = domain.engine.stats()["sptes_visited"]
        assert domain.engine.links.mapping(300) and domain.engine.links.nodes(domain.engine.links.parents(1))
        domain.engine.dirty_log_start()
        assert len(domain.engine.links.leaves()) == 1
        visited.append(domain.engine.stats()["sptes_visited"] - before)
        assert not failures(domains)
    assert visited[0] == visited[1] > 0


def test_idle_moments_recycle_what_was_used_least_recently_by_anyone() -> None:
    pool = pool_of(2 * minimum_sptis(pages=PAGES_AT_ONCE) + 4)
    full, busy = member(pool), member(pool)
    assert pool.reserve == LOW_WATER
    for page in range(40):
        full.map(GIB + page * 4096, 300)
    full.start()
    for page in range(40):
        full.check(GIB + page * 4096, Access.LOAD)
    pages = spread(busy, len(pool.clean) // 3 - 1)
    busy.start()
    for va in pages:
        busy.check(va, Access.LOAD)
    assert len(pool.clean) < LOW_WATER
    while pool.clean:
        busy.map(pages[-1] + (len(pool.clean) << 21), 300)
        busy.flush()
        busy.check(pages[-1] + (len(pool.clean) << 21), Access.LOAD)
    moments = 0
    while busy.engine.idle():
        moments += 1
        assert not failures([full, busy])
    assert moments > LOW_WATER + 40 // IDLE_DROPS - 1, "the table of 40 pages goes piece by piece"
    assert len(pool.clean) == LOW_WATER
    assert full.engine.counters.taken_by_others == busy.engine.counters.taken_from_others == 3
    assert busy.engine.counters.recycled == 1
    member(pool)
    assert pool.reserve == 0, "three guests may need all of it"


def test_what_one_domain_may_use_of_an_spti_another_clears() -> None:
    """Snapshots of one lie in the SPTI, those of the other do not; one zeroes ahead, the other never."""
    pool = pool_of(24)
    own = member(pool, options={"snapshots": "reserved", "zeroing": "critical-path"})
    aside = member(pool, options={"snapshots": "dynamic", "zeroing": "idle"})
    for domain in (own, aside):
        pages = spread(domain, 6)
        domain.start()
        for _ in range(3):
            for va in pages:
                domain.check(va, Access.STORE)
            while own.engine.idle() or aside.engine.idle():
                pass
            assert not failures([own, aside])
    assert own.engine.counters.zeroed_idle == 0 < aside.engine.counters.zeroed_idle
    own.flush()
    for va in pages:
        own.check(va, Access.STORE)
    assert not failures([own, aside])


# Storms.


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("fill", ["demand", "eager"])
def test_storms_side_by_side(fill: str, seed: int) -> None:
    """Two guests in a pool in which neither has room, of all pairs of modes, under every choice of the other policies,
    each of its own; the audits of both see the whole pool after each step of either."""
    random = Random(seed)
    pool = pool_of(random.choice((7, 9, 13)))
    modes = MODES[seed % len(MODES)], MODES[(seed + 1 + seed // len(MODES)) % len(MODES)]
    storms = [
        Storm(
            mode,
            len(pool.clean),
            10 * seed + number,
            fill if number == 0 else "demand",
            options=random.choice(POLICY_SETS),
            late=fill == "eager" and number == 0,
            shared_pool=pool,
        )
        for number, mode in enumerate(modes)
    ]
    for _ in range(90):
        one = random.choice(storms)
        one.step()
        for storm in storms:
            if storm is not one:
                storm.domain.audit()
    for storm in storms:
        storm.do_cr3()
        storm.domain.audit()
    assert sum(storm.engine.stats()["taken_by_others"] for storm in storms) > 0


def test_a_storm_next_to_a_greedy_domain() -> None:
    for seed, mode in enumerate(MODES):
        pool = pool_of(33)
        greedy = Greedy(pool, options=POLICY_SETS[seed])
        storm = Storm(mode, 33, seed, options=POLICY_SETS[-seed - 1], shared_pool=pool)
        for step in range(40):
            storm.step()
            greedy.ask(step % 40)
            if not step % 10:
                greedy.check(3)
                greedy.domain.audit()
        storm.do_cr3()
        assert storm.engine.stats()["taken_by_others"] > 0


# Broken ones: what the audits must see.


class _TakenTwice(Share):
    def take(self) -> tuple[Spti, bool] | None:
        taken = super().take()
        if taken is not None:
            self.clean.append(taken[0].index)
        return taken


class TakenTwice(XiEngine):
    """An SPTI that was taken is still free."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.pool_memory.__class__ = _TakenTwice


class Robbed(XiEngine):
    """An SPTI goes to another domain, and its owner's list keeps it."""

    def evict(self, index: int, asker: Tenant) -> None:
        if asker is not self:
            self.pool_memory.unclean.append(index)
        else:
            super().evict(index, asker)


class RootTaken(XiEngine):
    """The root that a domain runs on may go."""

    def spares(self, index: int) -> bool:
        return index in self.pins


class _Unmoved(Share):
    def touch(self, index: int) -> None:
        """What is used counts as used by its domain only."""
        OrderedDict.move_to_end(self.lru, index)


class UseUntold(XiEngine):
    """What a domain uses again is as old as before for the others."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.pool_memory.__class__ = _Unmoved


class _Unowned(Share):
    def give_back(self, spti: Spti) -> None:
        owner = self.shared.order[spti.index]
        super().give_back(spti)
        self.shared.order[spti.index] = owner


class OwnerKept(XiEngine):
    """What is free again is still down as somebody's."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.pool_memory.__class__ = _Unowned


class RoleKept(XiEngine):
    """The owner's record of an SPTI that was taken from it still has the role."""

    def evict(self, index: int, asker: Tenant) -> None:
        role, rules = self.sptis[index].role, self.sptis[index].rules
        super().evict(index, asker)
        self.sptis[index].role, self.sptis[index].rules = role, rules


@pytest.mark.parametrize(
    ("engine", "taken", "invariants"),
    [
        (XiEngine, 4, set()),
        (TakenTwice, 3, {"pool-conservation", "pool-owner"}),
        (Robbed, 4, {"pool-conservation", "pool-owner"}),
        (RootTaken, 4, {"root"}),
        (RoleKept, 4, {"pool-conservation", "H1"}),
        (UseUntold, 0, {"pool-order"}),
        (OwnerKept, 0, {"pool-owner"}),
    ],
)
def test_a_broken_share_is_caught(engine: type[XiEngine], taken: int, invariants: set[str]) -> None:
    """taken: paths of another domain; four are more than there is room for."""
    pool = pool_of(12)
    victim, taker = member(pool, engine=engine), member(pool)
    victim.map(FAR, 300)
    victim.start()
    for _ in range(2):
        assert victim.engine.shadow_fault(FAR, Access.LOAD) == RETRY
        victim.engine.destroy(victim.engine.sptis[list(victim.engine.pool_memory.lru)[-1]])
        victim.flush()
    pages = spread(taker, taken)
    taker.start()
    for va in pages:
        assert taker.engine.shadow_fault(va, Access.LOAD) == RETRY
    seen = failures([victim])
    assert invariants <= seen if invariants else not seen


def test_a_storm_sees_a_root_go() -> None:
    with pytest.raises(AssertionError, match="root"):
        for seed in range(4):
            pool = pool_of(9)
            storms = [
                Storm("long4", 9, seed + number, engine=RootTaken, options=SHARED, shared_pool=pool)
                for number in (0, 10)
            ]
            for step in range(160):
                storms[step // 40 % 2].step()
