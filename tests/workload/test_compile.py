"""The headline workload: whether it is the mix that it says it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from harness.workload.compile import JOB_FILL, JOBS, LIFE, Compile
from harness.workload.knobs import Knobs
from harness.workload.workload import WARM_UP
from tests.workload.engines import ENGINES, Noted

KNOBS: Final = Knobs(spaces=2, tables=2, fill=32, rounds=3000)
# Of each 1000 demand faults, as the module says.
MIX: Final = {"files": 400, "copies": 50, "tables": 16, "processes": 1.3, "bursts": 15, "switches": 48}


@pytest.fixture(scope="module")
def ran() -> Compile:
    program = Compile(KNOBS)
    program.run(Noted, lambda part: None)
    return program


@pytest.mark.parametrize("name", MIX)
def test_the_mix_is_the_one_that_is_written_down(ran: Compile, name: str) -> None:
    assert ran.counts[name] * 1000 / ran.counts["faults"] == pytest.approx(MIX[name], rel=0.2)


def test_so_many_faults_are_measured_as_were_asked_for(ran: Compile) -> None:
    assert KNOBS.rounds <= ran.counts["faults"] < KNOBS.rounds + 32


def test_jobs_die_and_are_born(ran: Compile) -> None:
    assert len(ran.jobs) == JOBS
    assert ran.counts["processes"] >= 4


def test_no_frame_is_lost(ran: Compile) -> None:
    """What the guest holds after many lives is what its processes hold."""
    guest, files = ran.guest, set(ran.files)
    residents = ran.spaces[: KNOBS.spaces]
    jobs = [job.space for job in ran.jobs]
    tables = sum(space.tables for space in (*residents, *jobs, guest.kernel))
    anonymous = sum(
        1
        for space in jobs
        for table in space.leaves.values()
        for index in range(guest.per_page)
        if (entry := guest.entry(table, index)) and (entry >> 12 & guest.frames_mask) not in files
    )
    used = sum(1 for count in guest.references if count)
    assert used == tables + KNOBS.pages + LIFE + anonymous


def test_pages_of_files_are_shared_by_all_jobs(ran: Compile) -> None:
    most = max(ran.guest.references[gfn] for gfn in ran.files)
    assert 2 < most <= JOBS + 1  # the page cache holds each of them too


def test_jobs_stand_at_different_ages_when_it_begins() -> None:
    program = Compile(replace(KNOBS, rounds=1))
    ages: list[int] = []

    def mark(part: str) -> None:
        if part != WARM_UP and not ages:
            ages.extend(len(job.mapped) for job in program.jobs)

    program.run(ENGINES["xi"], mark)
    assert ages == sorted(set(ages))
    assert JOB_FILL / 2 < ages[0] < ages[-1] < LIFE
