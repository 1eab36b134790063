"""How many runs go at a time, and on which cores."""

from __future__ import annotations

import pytest

from harness.cores import share_cores


@pytest.mark.parametrize(
    ("monitored", "wanted", "cores", "workers"),
    [
        (False, None, 1, 1),
        (False, None, 8, 2),
        (False, 5, 2, 5),
        (True, None, 1, 1),
        (True, None, 2, 1),
        (True, None, 3, 1),
        (True, None, 4, 2),
        (True, None, 64, 2),
        (True, 6, 16, 6),
        (True, 3, 2, 3),
    ],
)
def test_how_many_run_at_a_time(monitored: bool, wanted: int | None, cores: int, workers: int) -> None:
    assert share_cores(100, monitored, wanted, range(cores)).workers == workers


@pytest.mark.parametrize(
    ("jobs", "monitored", "wanted", "cores", "warning"),
    [
        (10, True, None, 2, ""),
        (10, True, 2, 4, ""),
        (10, False, 9, 1, ""),
        (1, True, 8, 2, ""),  # one job is one job, however many may run
        (10, True, 2, 2, "--jobs 2: a live run keeps 2 cores busy and there are 2"),
        (10, True, 5, 9, "more than 4 at a time"),
        (10, True, None, 1, "one core"),
        (10, True, 3, 1, "one core"),
    ],
)
def test_a_warning_when_they_get_in_each_others_way(
    jobs: int, monitored: bool, wanted: int | None, cores: int, warning: str
) -> None:
    told = share_cores(jobs, monitored, wanted, range(cores)).warning
    assert warning in told
    assert bool(told) == bool(warning)


def test_live_runs_get_pairs_of_cores_that_nobody_else_has() -> None:
    assert share_cores(9, True, 2, {9, 2, 4, 7, 8}).cores == tuple(map(frozenset, ({2, 4}, {7, 8})))


def test_too_many_live_runs_are_spread_over_the_pairs() -> None:
    assert share_cores(9, True, 3, range(4)).cores == tuple(map(frozenset, ({0, 1}, {2, 3}, {0, 1})))


@pytest.mark.parametrize(("jobs", "monitored", "wanted", "cores"), [(9, False, 2, 4), (1, True, 2, 4), (9, True, 2, 2)])
def test_where_there_is_nothing_to_share_out_all_cores_are_everyones(
    jobs: int, monitored: bool, wanted: int, cores: int
) -> None:
    assert share_cores(jobs, monitored, wanted, range(cores)).cores == ()
