"""Recorded runs as workloads, from a guest that needs no machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.engine import EngineConfig, MachineMemory, ShadowEngine
from harness.trace.reader import TraceError
from harness.workload.traces import TraceWorkload
from harness.workload.workload import ASIDE, DONE, MEASURED, WARM_UP, MakeEngine, WorkloadError
from tests.trace.broken_engines import WrongFrame
from tests.trace.guest import RecordedGuest
from tests.workload.engines import ENGINES, Noted


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traces")
    return RecordedGuest(folder, life=False).live().save().path


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_every_engine_can_be_given_it(path: Path, make: MakeEngine) -> None:
    workload = TraceWorkload(path)
    workload.run(make)
    assert workload.facts["tables"] > 0
    assert workload.name == "trace:scripted/long4"


def test_what_the_checks_asked_is_aside(path: Path) -> None:
    marks: list[str] = []
    TraceWorkload(path).run(Noted, marks.append)
    assert (marks[0], marks[1], marks[-1]) == (WARM_UP, MEASURED, DONE)
    between = marks[2:-1]
    assert between[:2] == [ASIDE, MEASURED]  # the search for unannounced changes at the first checkpoint
    assert between.count(ASIDE) > between.count(MEASURED) / 2 > 3


def test_engines_get_the_same_number_of_tables(path: Path) -> None:
    frames: dict[str, int] = {}

    class Maker:
        def __init__(self, name: str) -> None:
            self.name = name
            self.frames_per_table = ENGINES[name].frames_per_table  # type: ignore[attr-defined]

        def __call__(self, config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
            frames[self.name] = config.pool_frames
            return ENGINES[self.name](config, memory)

    for name in ("xi", "kvm"):
        TraceWorkload(path).run(Maker(name))
    assert frames["xi"] == 4 * frames["kvm"]


def test_a_wrong_engine_ends_it(path: Path) -> None:
    with pytest.raises(WorkloadError, match="event"):
        TraceWorkload(path).run(WrongFrame)


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.xitrace"
    wrong.write_text("nothing of the kind")
    with pytest.raises(TraceError):
        TraceWorkload(wrong)
