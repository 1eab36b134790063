"""What every engine tells of its work: the same convention, the methods that it names, and nothing for who looks on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import pytest

from harness.engine import ShadowEngine
from harness.work import OPERATIONS, Counted, Operation, PathCount, Work, path_levels
from harness.x86.access import Access
from harness.x86.control import ControlState
from harness.xi.engine import XiEngine
from tests.peers.domain import PEERS, PeerDomain, storm
from tests.xi.domain import CONTROL, Domain
from tests.xi.policies import COMBINATIONS, combination_id
from tests.xi.storm import Storm

VA = 0x40000000
LARGE = 0x80000000
HELD = 0xC0000000
ENGINES: dict[str, Callable[..., Domain]] = {
    "xi": lambda **facts: Domain("long4", "demand", frames=4096, **facts),
    **{
        f"xi-{combination_id(options)}": lambda options=options, **facts: Domain(
            "long4", "demand", frames=4096, options=options, **facts
        )
        for options in COMBINATIONS
    },
    **{
        name: lambda engine=engine, **facts: PeerDomain(engine, "long4", frames=4096, **facts)
        for name, engine in PEERS.items()
    },
}
each = pytest.mark.parametrize("name", ENGINES)


def storm_over(name: str, fill: str) -> Storm:
    """A storm over the engine `name`. Nothing is zeroed ahead of need."""
    if name in PEERS:
        return storm(PEERS[name], "pae", 13, 7, fill)
    policies = {combination_id(options): options for options in COMBINATIONS}.get(name[3:], {})
    return Storm("pae", 13, 7, fill, options={**policies, "zeroing": "critical-path"})


def counted(domain: Domain) -> Counted:
    engine: object = domain.engine
    assert isinstance(engine, Counted)
    return engine


def everything(domain: Domain) -> None:
    """Every operation at least once: fills, a large page, a table that is written, a page that becomes a table, a dirty
    round that divides a large page, a frame that moves."""
    domain.map(VA, 300)
    domain.map(LARGE, 2048, level=2)
    domain.start()
    domain.check(VA, Access.STORE)
    domain.check(LARGE, Access.STORE)
    domain.map(VA, 301)
    domain.flush()
    domain.check(VA, Access.STORE)
    table = domain.frame()
    domain.map(HELD, table)
    domain.check(HELD, Access.STORE)
    domain.poke(domain.entry_at(VA + 0x1000000, 2), table << 12 | 0x67)
    domain.poke(table << 12, 310 << 12 | 0x67)
    domain.check(VA + 0x1000000, Access.LOAD)
    domain.map(VA, 302)
    domain.engine.invlpg(VA)
    domain.engine.dirty_log_start()
    domain.check(LARGE, Access.STORE)
    domain.engine.dirty_log_read()
    domain.move(2048)
    domain.check(LARGE, Access.STORE)
    domain.engine.dirty_log_stop()
    domain.engine.table_written(domain.root)
    domain.engine.resync_all()
    domain.check(VA, Access.STORE)
    domain.audit()


def test_words_are_all_but_pages() -> None:
    work = Work(1, 20, 300, 4000, 50000)
    assert work.words == 4321
    assert work.since(Work(0, 10, 100, 1000, 50000)) == Work(1, 10, 200, 3000, 0)


def test_the_operations_are_those_of_the_discussion_in_its_order() -> None:
    assert list(OPERATIONS) == [
        "shadow_fault",
        "shadow_resync_all",
        "resync_spte",
        "gva_to_gpa",
        "spti_make_shadow",
        "spti_made",
        "xi_invld_mfn",
        "divide_large_page",
        "write_protect",
        "dirty_start",
        "table_written",
    ]
    assert all(isinstance(operation, Operation) and name == operation.name for name, operation in OPERATIONS.items())
    calls = [call for operation in OPERATIONS.values() for call in operation.calls]
    assert len(set(calls)) == len(calls)
    assert all(callable(getattr(ShadowEngine, call)) for call in calls)


def test_the_paths_of_faults_are_counted_by_the_levels_of_the_mode_they_were_in() -> None:
    paths = PathCount(3)
    assert paths.steps(0) == 0
    assert paths.steps(7) == 21
    paths.change(10, 5)
    assert paths.steps(10) == 30
    assert paths.steps(12) == 40
    paths.change(12, 5)
    assert paths.steps(13) == 45


@pytest.mark.parametrize(("mode", "levels"), [("unpaged", 3), ("nopae", 2), ("pae", 3), ("long4", 4), ("long5", 5)])
def test_a_path_has_the_levels_of_the_guest_or_of_pae_format(mode: str, levels: int) -> None:
    cr0, cr4, efer = CONTROL[mode]
    assert path_levels(ControlState(cr0, 0, cr4, efer)) == levels


@each
def test_every_engine_is_counted_and_names_methods_of_its_own(name: str) -> None:
    engine = counted(ENGINES[name]())
    assert engine.work() == Work(0, 0, 0, 0, 0)
    assert set(engine.operations) <= set(OPERATIONS)
    assert set(engine.done()) <= set(engine.operations)
    inner = {operation.name for operation in OPERATIONS.values() if not operation.calls}
    not_everybodys = {"write_protect", "spti_made"}  # eager protects nothing, and peers leave no snapshot behind
    assert inner <= {*engine.operations, *not_everybodys}
    assert all(callable(getattr(type(engine), method)) for method in engine.operations.values())


@each
def test_an_engine_looks_its_methods_up_when_it_calls_them(name: str) -> None:
    """A subclass put in place of the class of a living engine sees every operation."""
    domain = ENGINES[name]()
    engine = cast("Any", domain.engine)
    calls: Counter[str] = Counter()

    def watched(method: str) -> Callable[..., Any]:
        inherited = getattr(type(engine), method)

        def call(self: Any, *arguments: Any, **named: Any) -> Any:
            calls[method] += 1
            return inherited(self, *arguments, **named)

        return call

    names = {*engine.operations.values(), *(call for one in OPERATIONS.values() for call in one.calls)}
    engine.__class__ = type("Watched", (type(engine),), {method: watched(method) for method in names})
    everything(domain)
    assert set(calls) == names


@each
def test_the_same_is_counted_each_time(name: str) -> None:
    told = []
    for _ in range(2):
        domain = ENGINES[name]()
        everything(domain)
        told.append((counted(domain).work(), counted(domain).held(), dict(counted(domain).done())))
    assert told[0] == told[1]
    work, held, _ = told[0]
    assert min(work[:4]) > 0
    assert held.used == held.tables + held.snapshots + held.reverse > 0
    assert domain.engine.stats().items() >= work._asdict().items()


@pytest.mark.parametrize("fill", ["demand", "eager"])
@each
def test_no_spte_changes_uncounted(name: str, fill: str) -> None:
    """What differs in the shadow after a step was written, or zeroed, in that step; and no count ever goes back."""
    run = storm_over(name, fill)
    engine = run.engine
    _, words = engine.pool
    tables = words[:: type(engine).frames_per_table]
    shadow, before = tables.copy(), engine.work()
    changed = 0
    for _ in range(40):
        run.step()
        now = engine.work()
        done = now.since(before)
        assert min(done) >= 0
        differ = int(np.count_nonzero(shadow != tables))
        assert differ <= done.sptes_written + done.words_copied
        changed += differ
        shadow, before = tables.copy(), now
    assert changed > 0


@each
def test_who_looks_on_is_not_counted(name: str) -> None:
    domain = ENGINES[name]()
    everything(domain)
    engine = domain.engine
    before = counted(domain).work()
    engine.audit()
    engine.stats()
    engine.describe_gfn(301)
    engine.describe_walk(VA)
    engine.guest_tables()
    engine.watch_changes()
    engine.executable_changes()
    assert engine.addresses_of(302)
    assert engine.unexplained_changes() == []
    counted(domain).held()
    assert counted(domain).work() == before


def test_what_reads_the_insides_of_xi_is_not_counted() -> None:
    domain = ENGINES["xi"]()
    everything(domain)
    engine = domain.engine
    assert isinstance(engine, XiEngine)
    before = engine.work()
    views: Mapping[str, Any] = {
        "backlinks": engine.describe_backlinks(302),
        "snapshot": engine.describe_snapshot(domain.entry_at(VA) >> 12),
        "pool": engine.describe_pool(),
        "access": engine.explain_access(VA, Access.STORE),
        "entry": engine.explain_entry(domain.entry_at(VA) >> 12, 0),
        "mappings": engine.describe_mappings(302),
    }
    assert all(views.values())
    assert engine.work() == before
