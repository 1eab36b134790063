"""What the words of a command line ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.catalogue import Guest, load_catalogue
from harness.options import RunOptions
from harness.plan import plan
from harness.tour import tour

OPTIONS = RunOptions()


def test_all_is_every_guest_in_every_mode() -> None:
    pairs = [(job.name, job.paging) for job in plan([], [], OPTIONS, every=True)]
    assert pairs == [(guest.name, mode) for guest in load_catalogue().values() for mode in guest.modes]


def test_modes_alone_mean_every_guest_in_those_modes() -> None:
    jobs = plan([], ["pae"], OPTIONS)
    assert {job.paging for job in jobs} == {"pae"}
    assert {job.name for job in jobs} == {g.name for g in load_catalogue().values() if "pae" in g.modes}


def test_one_run_is_recorded_and_no_more() -> None:
    recorded = RunOptions(record=Path("trace"))
    assert len(plan(["basic"], ["pae"], recorded)) == 1
    with pytest.raises(ValueError, match="--record keeps the trace of one run, and these are 2"):
        plan(["basic", "perm"], ["pae"], recorded)
    with pytest.raises(ValueError, match="name one guest and --paging"):
        plan([], [], recorded)


def test_nothing_asked_for_is_the_tour() -> None:
    assert plan([], [], OPTIONS) == plan([], [], OPTIONS, as_tour=True)


def test_the_tour_visits_each_guest_once_and_every_mode() -> None:
    modes = ("nopae", "pae", "long4", "long5")
    guests = [Guest(f"g{number}", "", modes) for number in range(5)]
    stops = tour(guests)
    assert [guest.name for guest, _ in stops] == [guest.name for guest in guests]
    assert {mode for _, mode in stops} == set(modes)


def test_a_tour_tag_names_the_mode() -> None:
    assert [mode for _, mode in tour([Guest("g", "", ("nopae", "pae"), tags=("tour-pae",))])] == ["pae"]


def test_a_kernel_is_one_job(tmp_path: Path) -> None:
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(b"")
    (job,) = plan([], ["long4"], RunOptions(kernel=kernel))
    assert (job.guest, job.name, job.paging, job.options.paging) == (None, "bzImage", "long4", "long4")


@pytest.mark.parametrize(
    ("guests", "modes", "options", "flags", "complaint"),
    [
        (["nobody"], [], OPTIONS, {}, "unknown guest 'nobody' .known: basic"),
        (["basic"], ["pea"], OPTIONS, {}, "unknown paging mode 'pea'"),
        (["basic"], [], OPTIONS, {"every": True}, "exclude each other"),
        (["basic"], [], OPTIONS, {"as_tour": True}, "--tour takes no"),
        ([], [], RunOptions(engine="yi"), {}, "unknown engine 'yi' .installed: .*xi"),
        ([], [], RunOptions(initrd=Path("x")), {}, "go with --kernel"),
        (["basic"], [], RunOptions(kernel=Path("x")), {}, "--kernel runs one kernel"),
        ([], ["pae", "long4"], RunOptions(kernel=Path("x")), {}, "at most one --paging"),
        ([], ["pea"], RunOptions(kernel=Path("x")), {}, "unknown paging mode"),
        ([], [], RunOptions(kernel=Path("/absent/bzImage")), {}, "no such file"),
        (
            [],
            [],
            RunOptions(kernel=Path("x"), mode="live"),
            {},
            "boot path does not fit the monitor. --mode live is for",
        ),
        ([], [], RunOptions(kernel=Path("x"), mode="both"), {}, "--mode both is for the catalogue's guests"),
        (["basic"], [], RunOptions(stress=True), {}, "--stress goes with --mode live or both"),
        (["basic"], [], RunOptions(policies=(("zeroing", "x"),)), {}, r"engine xi: .*idle\|critical-path"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(
    guests: list[str], modes: list[str], options: RunOptions, flags: dict[str, bool], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        plan(guests, modes, options, **flags)


@pytest.mark.parametrize("mode", ["live", "both"])
def test_every_guest_of_the_catalogue_can_be_asked_for_in_every_mode(mode: str) -> None:
    jobs = plan([], [], RunOptions(mode=mode, stress=True), every=True)
    assert [(job.name, job.paging) for job in jobs] == [(job.name, job.paging) for job in plan([], [], OPTIONS, True)]
    assert {job.mode for job in jobs} == {mode}
