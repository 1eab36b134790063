"""What a user can choose travels to workers, compares, and can be pasted again."""

from __future__ import annotations

import pickle
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness import cli
from harness.jobs import Job
from harness.options import LARGEST_POOL, LEAST_POOL, RunOptions, parse_policies
from harness.xi.asi import PAE_ROOT_LIMIT
from harness.xi.pool import FRAMES_PER_SPTI, minimum_sptis

LIVE = RunOptions(mode="live", policies=(("zeroing", "critical-path"),), pool_spti=40, stress=True, seed=5)


def test_the_command_to_paste_asks_for_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    command = LIVE.command("churn", "pae")
    assert command == (
        "xi-harness run churn --paging pae --mode live --seed 5 --policy zeroing=critical-path --pool 40 --stress"
    )
    asked: list[RunOptions] = []

    def plan(guests: list[str], modes: list[str], options: RunOptions, every: bool, as_tour: bool) -> list[Job]:
        assert (guests, modes) == (["churn"], ["pae"])
        asked.append(options)
        return []

    monkeypatch.setattr("harness.plan.plan", plan)
    done = CliRunner().invoke(cli.app, [*shlex.split(command)[1:], "--dry-run", "--no-record"])
    assert done.exit_code == 0, done.output
    assert asked == [LIVE]


def test_the_command_to_look_around_goes_to_the_event() -> None:
    chosen = "--seed 5 --policy zeroing=critical-path --pool 40 --stress"
    debug = f"xi-harness debug churn --paging pae --mode live {chosen}"
    assert LIVE.debug_command("churn", "pae", 1234) == f"{debug} --stop-at 1234"
    assert replace(LIVE, mode="both").debug_command("churn", "pae") == debug
    kernel = RunOptions(kernel=Path("bzImage"), append="quiet x", paging="long4")
    assert kernel.debug_command("", "", 0) == (
        "xi-harness debug --kernel bzImage --append 'quiet x' --paging long4 --seed 1 --stop-at 0"
    )


def test_a_trace_is_written_beside_where_it_will_be_kept() -> None:
    assert RunOptions().trace_folder is None
    assert RunOptions(keep_traces=Path("/logs")).trace_folder == Path("/logs")
    assert RunOptions(record=Path("t.xitrace"), keep_traces=Path("/logs")).trace_folder == Path.cwd()


def test_an_observed_run_is_asked_for_as_ever() -> None:
    assert RunOptions().command("basic", "long4") == "xi-harness run basic --paging long4 --seed 1"
    kernel = RunOptions(kernel=Path("bzImage"), policies=(("zeroing", "idle"),))
    assert kernel.command("", "") == "xi-harness run --kernel bzImage --seed 1 --policy zeroing=idle"


def test_options_travel_to_workers_and_compare() -> None:
    assert pickle.loads(pickle.dumps(LIVE)) == LIVE
    assert len({LIVE, pickle.loads(pickle.dumps(LIVE)), RunOptions()}) == 2


def test_policies_are_the_same_in_any_order_and_as_a_mapping() -> None:
    one = RunOptions(policies=(("b", "1"), ("a", "2")))
    assert one == RunOptions(policies={"a": "2", "b": "1"})  # type: ignore[arg-type]
    assert dict(one.policies) == {"a": "2", "b": "1"}


@pytest.mark.parametrize("words", [["zeroing"], ["=idle"], ["zeroing="], ["zeroing=idle", "zeroing=critical-path"]])
def test_policies_that_say_nothing_or_two_things_are_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^--policy "):
        parse_policies(words)


def test_a_policy_may_be_named_twice_and_hold_an_equals_sign() -> None:
    assert parse_policies(["a=b=c", "a=b=c"]) == (("a", "b=c"),)


def test_a_mode_that_there_is_none_of() -> None:
    with pytest.raises(ValueError, match=r"unknown mode 'love' \(known: observe, live, both\)"):
        RunOptions(mode="love")


def test_the_limits_of_the_pool_are_the_engines() -> None:
    assert minimum_sptis() == LEAST_POOL
    assert LARGEST_POOL * FRAMES_PER_SPTI < PAE_ROOT_LIMIT, "a root in PAE format must lie below 4 GiB"
