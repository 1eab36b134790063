"""Every choice of policies is XI: the same storms, the same audits, the same views; and one that is broken is seen."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from harness.engine_views import Explains
from harness.engines import check_policies
from harness.x86.access import Access
from harness.xi.engine import XiEngine
from harness.xi.policies import POLICIES, chosen
from harness.xi.pool import Spti
from tests.xi.domain import USED, Domain
from tests.xi.policies import COMBINATIONS, combination_id
from tests.xi.storm import Storm

MODES = ("unpaged", "nopae", "pae", "long4", "long5")
VA = 0x40000000

each = pytest.mark.parametrize("options", COMBINATIONS, ids=combination_id)


@each
@pytest.mark.parametrize("fill", ["demand", "eager"])
@pytest.mark.parametrize("mode", MODES)
def test_a_storm(mode: str, fill: str, options: Mapping[str, str]) -> None:
    """Under observation stores are told when they are made already."""
    for seed, sptis in ((1, 13), (2, 5)):
        storm = Storm(mode, sptis, seed, fill, options=options, late=fill == "eager")
        storm.rage(24)
        assert storm.engine.stats()["recycled"] + storm.engine.stats()["remapped"] > 0


@pytest.mark.parametrize("fill", ["demand", "eager"])
@pytest.mark.parametrize("mode", MODES)
def test_a_storm_in_which_a_fault_synchronises_everything(mode: str, fill: str) -> None:
    for seed, options in enumerate(({}, {"snapshots": "dynamic"}, {"backlinks": "none"})):
        Storm(mode, 13, seed, fill, options={"fault-resync": "all", **options}, late=fill == "eager").rage(16)


def test_stores_that_are_told_late_while_the_hardware_walks_the_shadow() -> None:
    for seed, mode in enumerate(MODES[1:]):
        Storm(mode, 13, seed, options={"snapshots": "dynamic"}, late=True).rage()


@each
def test_every_view_can_be_had_and_asking_changes_nothing(options: Mapping[str, str]) -> None:
    domain = Domain("long4", "eager", options=options)
    table = domain.map(VA, 300) >> 12
    domain.map(VA + 0x1000, table)
    domain.map(VA + 0x800000, 512, USED, 2)
    domain.start()
    domain.poke(domain.entry_at(VA + 0x2000), 301 << 12 | USED)
    engine = domain.engine
    assert isinstance(engine, Explains)
    before = engine.stats() | {"visited_aside": 0}
    views = [
        engine.describe_gfn(table),
        engine.describe_walk(VA),
        engine.describe_backlinks(table),
        engine.describe_backlinks(300),
        engine.describe_snapshot(table),
        engine.describe_pool(),
        engine.explain_access(VA, Access.STORE),
        engine.explain_entry(table, 0),
        engine.describe_mappings(600),
        *(engine.describe_spti(number) for number in range(len(engine.sptis))),
    ]
    json.dumps(views)
    assert engine.stats() | {"visited_aside": 0} == before
    assert [spte["wrong"] for spte in engine.describe_backlinks(table)["sptes"]] == [[]]
    assert [entry["guest_index"] for entry in engine.describe_snapshot(table)[0]["entries"]] == [2]
    pool = engine.describe_pool()
    assert {name: pool[name] for name in options} == dict(options)


def test_the_policies_are_listed_default_first() -> None:
    assert chosen({}) == {name: values[0] for name, values in XiEngine.policies.items()}
    assert set(POLICIES) == {"snapshots", "backlinks", "pool", "zeroing", "fault-resync"}
    check_policies("xi", (("backlinks", "none"), ("snapshots", "dynamic")))
    with pytest.raises(ValueError, match=r"snapshots=reserved\|dynamic; backlinks=all\|gpt-only\|none"):
        check_policies("xi", (("backlinks", "some"),))


def test_statistics_are_flat_and_tell_the_memory_held() -> None:
    pages = {}
    for options in ({}, *COMBINATIONS):
        domain = Domain("long4", "demand", options=options)
        domain.map(VA, 300)
        domain.start()
        domain.check(VA, Access.STORE)
        stats = domain.engine.stats()
        assert all(isinstance(value, int) for value in stats.values())
        pages[tuple(options.values())] = [stats[f"{what}_pages"] for what in ("shadow", "snapshot", "backlink")]
    assert pages[()] == [64, 64, 128]
    assert pages["reserved", "gpt-only"] == [64, 64, 1]
    assert pages["dynamic", "none"] == [64, 0, 0]


# Broken ones: what a storm or its audits must see.


class NeverRealigned(XiEngine):
    """A snapshot that was taken too late is taken for what the SPTEs say."""

    def realign(self, spti: Spti) -> None:
        pass


class FreshOutOfSync(XiEngine):
    """A table is not synchronised when it is made, though nothing stands in for its snapshot."""

    def made(self, spti: Spti) -> None:
        spti.synced = spti.synced or not self.links.empty(self.links.parents(spti.index))


class BlindToLarge(XiEngine):
    """A search does not look at large pages."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        nodes, first, last = self.links.nodes, self.links.slot(2, 0), self.links.parents(0)
        self.links.nodes = lambda slot: [] if first <= slot < last else nodes(slot)  # type: ignore[method-assign]


class TablesUnlinked(XiEngine):
    """What maps a page that becomes a table gets no backlinks."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.links.table_appears = lambda gfn: None  # type: ignore[method-assign]


class UncountedParents(XiEngine):
    """An SPTE that leads to a table goes, and is still counted."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.links.unlink = lambda word: None  # type: ignore[method-assign]


class SearchesOneTable(XiEngine):
    """A search for what maps a frame ends with the first SPTE."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        nodes, mapping = self.links.nodes, self.links.mapping
        self.links.nodes = lambda slot: nodes(slot)[:1]  # type: ignore[method-assign]
        self.links.mapping = lambda gfn: mapping(gfn)[:1]  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("engine", "options", "fill", "late"),
    [
        (NeverRealigned, {"snapshots": "dynamic"}, "eager", True),
        (NeverRealigned, {"snapshots": "dynamic"}, "demand", True),
        (FreshOutOfSync, {"snapshots": "dynamic"}, "eager", False),
        (TablesUnlinked, {"backlinks": "gpt-only"}, "demand", False),
        (UncountedParents, {"backlinks": "none"}, "demand", False),
    ],
)
def test_a_broken_policy_is_caught(engine: type[XiEngine], options: Mapping[str, str], fill: str, late: bool) -> None:
    with pytest.raises(AssertionError):
        for seed in range(4):
            Storm("long4", 48, seed, fill, engine=engine, options=options, late=late).rage()


@pytest.mark.parametrize("backlinks", POLICIES["backlinks"])
@pytest.mark.parametrize("engine", [BlindToLarge, SearchesOneTable])
def test_a_broken_search_is_caught(engine: type[XiEngine], backlinks: str) -> None:
    domain = Domain("long4", options={"backlinks": backlinks}, engine=engine)
    inside = 512 + 77
    domain.map(VA, 512, USED, 2)
    for page in range(3):
        domain.map(VA + 0x400000 + page * 4096, inside)
    domain.start()
    domain.poke(domain.entry_at(VA + 0x800000, 2), inside << 12 | USED)
    domain.flush()
    assert {"K5", "large"} & {failure.invariant for failure in domain.engine.audit()}
