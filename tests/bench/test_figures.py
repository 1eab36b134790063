"""What is made of measured times: percentiles, ratios, and the document that `bench` writes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness import bench
from harness.bench import live, migration
from harness.bench.exit_clock import Exit
from harness.bench.figures import Bench, us
from harness.migration.report import MigrationReport, Round

US = 1e-6


def exit_of(kind: str, handled: float, turn: int = 0, **more: float) -> Exit:
    """An Exit from microseconds."""
    times = {"away": 20.0, "cpu": handled, "decode": 0.0, "engine": 0.0, "no_op": 10.0} | more
    return Exit(kind, handled=handled * US, turn=turn, **{name: value * US for name, value in times.items()})


def one_of_each(turn: int = 0, **more: float) -> list[Exit]:
    return [exit_of(kind, 10.0 * number, turn, **more) for number, kind in enumerate(live.KINDS, 1)]


def test_an_exit_costs_its_no_op_and_what_is_done_about_it() -> None:
    exits = [exit for exit in one_of_each() for _ in range(25)]
    figures, raw = live.exit_ratios([exits])
    assert figures["live.no_op_us"] == pytest.approx(10)
    assert [figures[f"live.{kind}_ratio"] for kind in live.KINDS] == pytest.approx([2, 3, 4, 5])
    assert figures["live.exit_ratio_p50"] == pytest.approx(3.5)
    assert figures["live.exit_ratio_p99"] == pytest.approx(5)
    assert raw["live.no_ops"] == 100


@pytest.mark.parametrize("slow", [1.0, 1.8, 3.0])
def test_a_slow_processor_is_slow_for_either_side(slow: float) -> None:
    """What it makes of their times shows in no ratio: that is what it would be on processors of one speed."""
    exits = [exit_of(kind, 15.0 * slow, turn) for turn in (0, 2) for kind in live.KINDS]
    exits += [exit_of(kind, 15.0, turn, no_op=10.0 * slow) for turn in (1, 3) for kind in live.KINDS]
    figures, raw = live.exit_ratios([exits])
    assert [figures[f"live.{kind}_ratio"] for kind in live.KINDS] == pytest.approx([2.5] * 4)
    for name in ("p50", "p99", "cpu_p50", "cpu_p99"):
        assert figures[f"live.exit_ratio_{name}"] == pytest.approx(2.5)
    first, second = raw["live.placements"]
    assert second["no_op_us"]["p50"] / first["no_op_us"]["p50"] == pytest.approx(slow)
    assert first["handled_us"]["p50"] / second["handled_us"]["p50"] == pytest.approx(slow)


def test_an_exit_is_compared_with_the_no_ops_around_it() -> None:
    """The whole machine becomes slow between two pairs of turns."""
    exits = [one for turn in (0, 1) for one in one_of_each(turn)]
    exits += [exit_of(kind, 20.0 * n, turn, no_op=20.0) for turn in (2, 3) for n, kind in enumerate(live.KINDS, 1)]
    figures, _ = live.exit_ratios([exits])
    assert [figures[f"live.{kind}_ratio"] for kind in live.KINDS] == pytest.approx([2, 3, 4, 5])


def test_the_turns_of_different_runs_are_not_the_same() -> None:
    runs = [one_of_each(), [exit_of(kind, 20.0 * n, no_op=20.0) for n, kind in enumerate(live.KINDS, 1)]]
    figures, _ = live.exit_ratios(runs)
    assert figures["live.cr3_load_ratio"] == pytest.approx(5)


def test_a_turn_without_another_beside_it_is_left_out() -> None:
    exits = [one for turn in (0, 1, 2) for one in one_of_each(turn)]
    figures, raw = live.exit_ratios([exits])
    assert raw["live.no_ops"] == 2 * len(live.KINDS)
    assert figures["live.exit_ratio_p50"] == pytest.approx(3.5)


def test_what_the_scheduler_gave_to_others_is_in_the_wall_figures_only() -> None:
    exits = [exit for exit in one_of_each() for _ in range(25)]
    exits[:3] = [exit_of("fault_fill", 8000.0, cpu=10.0)] * 3
    figures, _ = live.exit_ratios([exits])
    assert figures["live.exit_ratio_p99"] > 500
    assert figures["live.exit_ratio_cpu_p99"] == pytest.approx(5)


def test_an_exit_without_a_no_op_is_compared_with_none() -> None:
    exits = [*one_of_each(), *one_of_each(no_op=0.0, away=1e6)]
    figures, raw = live.exit_ratios([exits])
    assert raw["live.no_ops"] == len(live.KINDS)
    assert figures["live.no_op_us"] == pytest.approx(10)


def test_the_parts_of_an_exit_add_up() -> None:
    exits = one_of_each(decode=2.0, engine=5.0)
    figures, raw = live.parts(exits)
    for exit in exits:
        shares = [figures[f"live.{exit.kind}_{part}_us"] for part in ("decode", "engine", "controller")]
        assert sum(shares) == pytest.approx(exit.handled / US)
        assert raw[f"live.{exit.kind}_parts"]["guest_us"] == pytest.approx(10)
        assert raw[f"live.{exit.kind}_parts"]["ratios"]["engine"] == pytest.approx(0.5)


def test_a_part_that_takes_no_time_is_no_figure() -> None:
    figures, _ = live.parts(one_of_each(engine=5.0))
    assert "live.fault_fill_decode_us" not in figures


def test_exits_a_second_without_the_outliers() -> None:
    exits = [exit_of("fault_fill", 30.0)] * 9 + [exit_of("fault_fill", 9000.0)]
    assert live.speed_at_median(exits) == pytest.approx(1e6 / 50)


def test_percentiles_are_told_in_microseconds() -> None:
    assert us([n * US for n in range(101)]) == {"p10": 10, "p50": 50, "p99": 99}


def report_of(rounds: list[Round], stopped_us: float) -> MigrationReport:
    return MigrationReport("churn", "long4", 1, rounds=rounds, stopped_us=stopped_us, done=True, verdict="pass")


def test_the_first_round_of_a_migration_stands_apart() -> None:
    first = Round(0, 8000, protected=300, protection_us=900.0, copied=8000)
    reports = [
        report_of([first, Round(1, 100, 80, 40.0, copied=100), Round(2, 50, 20, 20.0, copied=50)], 1000.0),
        report_of([first], 3000.0),
    ]
    figures, raw = migration.figures_of(reports, [0.004, 0.004])
    assert figures["migration.rounds"] == 2
    assert figures["migration.frames_per_round"] == 75
    assert figures["migration.round_start_us"] == 30
    assert figures["migration.round_start_sptes"] == 50
    assert figures["migration.first_start_us"] == 900
    assert figures["migration.stopped_ratio"] == pytest.approx(0.5)
    assert len(raw["migration.reports"]) == 2


def test_a_migration_of_one_round_has_no_later_ones() -> None:
    figures, _ = migration.figures_of([report_of([Round(0, 10, 5, 1.0, copied=10)], 10.0)], [1.0])
    assert figures["migration.frames_per_round"] == figures["migration.round_start_us"] == 0


def test_a_full_copy_takes_time() -> None:
    assert 0 < migration.full_copy_seconds(64) < 1


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The benches, each of which only tells that it was asked."""
    asked: list[str] = []

    def stub(name: str) -> Bench:
        def measure() -> tuple[dict[str, float], dict[str, str]]:
            asked.append(name)
            return {f"{name}.ratio": 1.0}, {f"{name}.floor": "a"}

        return Bench(name, "", measure)

    monkeypatch.setattr(bench, "BENCHES", {name: stub(name) for name in bench.BENCHES})
    yield asked


def test_only_what_is_named_is_measured(measured: list[str]) -> None:
    found = bench.run_bench(["migration", "boot"])
    assert measured == ["migration", "boot"]
    assert found == {
        "schema": 1,
        "figures": {"migration.ratio": 1.0, "boot.ratio": 1.0},
        "raw": {"migration.floor": "a", "boot.floor": "a"},
    }


def test_all_are_measured_without_a_name(measured: list[str]) -> None:
    bench.run_bench()
    assert measured == list(bench.FIGURES) == ["observe", "boot", "probe", "live", "migration", "debug", "replay"]


def test_an_unknown_name_is_told_before_anything_is_measured(measured: list[str]) -> None:
    with pytest.raises(ValueError, match=r"unknown bench 'exits' .*live, migration"):
        bench.run_bench(["boot", "exits"])
    assert not measured
