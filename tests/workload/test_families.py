"""Every family on every engine, small; that a wrong engine is noticed; and that nothing is left to chance."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from harness.engine import AuditFailure, EngineConfig, MachineMemory, ShadowEngine
from harness.engines import engine_class
from harness.workload import DONE, MEASURED, SYNTHETIC, WARM_UP, Family, Knobs, MakeEngine, Workload, WorkloadError
from harness.workload.workload import FRAMES_PER_TABLE, pool_frames
from tests.workload import engines as broken
from tests.workload.engines import ENGINES, Noted

# What a test has time for: of each family's own knobs only those that decide what it is are kept.
SMALL: Final = Knobs(spaces=3, tables=3, fill=16, rounds=30)
ROUNDS: Final = {"faults": 100, "pressure": 100, "fork": 2, "churn": 2, "dirty": 3}


def small(family: Family, mode: str = "long4", direct: str = "") -> Workload:
    return family.workload(
        replace(
            SMALL,
            locality=family.knobs.locality,
            mappings=min(4, family.knobs.mappings),
            writes=min(4, family.knobs.writes),
            direct=direct or family.knobs.direct,
            pool=40 if family.knobs.pool else 0,
            rounds=ROUNDS.get(family.name, SMALL.rounds),
            mode=mode,
        )
    )


FAMILIES = pytest.mark.parametrize("family", SYNTHETIC.values(), ids=SYNTHETIC)


EVERY_ENGINE = pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)


@FAMILIES
@EVERY_ENGINE
def test_every_engine_is_right_on_it(family: Family, make: MakeEngine) -> None:
    small(family).run(make)


@pytest.mark.parametrize("name", ["writes", "promote", "fork", "remap", "large"])
@EVERY_ENGINE
@pytest.mark.parametrize(("mode", "direct"), [("nopae", "large"), ("nopae", "small"), ("pae", "large")])
def test_every_engine_is_right_in_other_modes(name: str, make: MakeEngine, mode: str, direct: str) -> None:
    small(SYNTHETIC[name], mode, direct).run(make)


@FAMILIES
def test_five_levels_and_a_map_of_small_pages_are_no_different(family: Family) -> None:
    small(family, "long5", "small").run(ENGINES["xi"])


@pytest.mark.parametrize("name", ["faults", "promote", "dirty"])
def test_its_parts_are_marked_in_their_order(name: str) -> None:
    marks: list[str] = []
    small(SYNTHETIC[name]).run(ENGINES["xi"], marks.append)
    assert marks == [WARM_UP, MEASURED, DONE]


@pytest.mark.parametrize("name", ["faults", "writes", "promote", "churn", "dirty", "remap", "large"])
def test_a_run_is_decided_by_its_seed(name: str) -> None:
    """The same calls, and in their order: what is counted must not differ from run to run."""
    made: list[Noted] = []

    def make(config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
        made.append(Noted(config, memory))
        return made[-1]

    workload = small(SYNTHETIC[name])
    workload.run(make)
    workload.run(make)
    assert made[0].calls == made[1].calls
    assert len(made[0].calls) > 100


@FAMILIES
def test_its_series_grows_along_its_axis(family: Family) -> None:
    for series in (family.series, family.quick):
        sizes = [family.size(knobs) for knobs in series]
        assert sizes == sorted(set(sizes))
        assert sizes or family.size(family.knobs)
        for knobs in series:
            assert knobs.mode == family.knobs.mode


def test_the_knobs_that_stand_for_a_family_lie_on_its_series() -> None:
    for family in SYNTHETIC.values():
        sizes = [family.size(knobs) for knobs in family.series]
        assert family.size(family.knobs) in sizes, family.name


def test_mappings_grows_to_a_hundred_thousand_pages() -> None:
    family = SYNTHETIC["mappings"]
    assert [family.size(knobs) for knobs in family.series] == [100, 1000, 10_000, 100_000]


def test_facts_say_how_large_the_guest_is() -> None:
    workload = small(SYNTHETIC["mappings"])
    before = dict(workload.facts)
    assert (before["pages"], before["spaces"]) == (SMALL.pages, SMALL.spaces)
    assert before["tables"] > SMALL.leaves
    workload.run(ENGINES["xi"])
    assert workload.facts == before


def test_facts_of_a_compile_have_its_jobs_once_it_runs() -> None:
    workload = small(SYNTHETIC["faults"])
    before = workload.facts["spaces"]
    workload.run(ENGINES["xi"])
    assert workload.facts["spaces"] == before + 4


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("mappings", broken.NoInvlpg),
        ("writes", broken.NoFlush),
        ("faults", broken.NoFlush),
        ("faults", broken.NoInvlpg),
        ("faults", broken.Unguarded),
        ("promote", broken.Unguarded),
        ("fork", broken.Generous),
        ("churn", broken.NoFlush),
        ("remap", broken.StaysPut),
        ("dirty", broken.LosesTheLog),
        ("large", broken.LosesTheLog),
        ("spaces", broken.NeverFills),
    ],
)
def test_a_wrong_engine_ends_it(name: str, engine: MakeEngine) -> None:
    with pytest.raises(WorkloadError):
        small(SYNTHETIC[name]).run(engine)


def test_an_engine_whose_audit_finds_something_ends_it() -> None:
    class Untidy(Noted):
        def audit(self) -> list[AuditFailure]:
            self.guarded_array[self.config.frames - 1] += 1
            return super().audit()

    with pytest.raises(WorkloadError, match="audit finds"):
        small(SYNTHETIC["mappings"]).run(Untidy)


def test_engines_get_room_for_the_same_number_of_tables() -> None:
    def a_function(config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
        return Noted(config, memory)

    assert pool_frames(engine_class("xi"), 10) == 40
    assert pool_frames(engine_class("kvm"), 10) == 10
    assert pool_frames(a_function, 10) == 10 * FRAMES_PER_TABLE


@pytest.mark.parametrize("name", ["faults", "mappings", "promote"])
def test_there_is_room_for_all_unless_it_is_asked_for_little(name: str) -> None:
    made: list[ShadowEngine] = []

    def make(config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
        made.append(Noted(config, memory))
        return made[-1]

    for mode in ("nopae", "long4"):
        small(SYNTHETIC[name], mode).run(make)
        assert made[-1].stats()["recycled"] == 0


def test_under_pressure_tables_are_given_up_all_the_time() -> None:
    made: list[ShadowEngine] = []

    def make(config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
        made.append(Noted(config, memory))
        return made[-1]

    small(SYNTHETIC["pressure"]).run(make)
    assert made[-1].stats()["recycled"] > 100
