"""What an exit costs in live mode, and what live mode costs a whole run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.bench.exit_clock import Exit, ExitClock
from harness.bench.figures import PAGING, ROUNDS, Figures, Measured, Raw, percentile, us
from harness.bench.wall import wall_ratios
from harness.catalogue import load_catalogue
from harness.live.session import LiveSession
from harness.options import Mode, RunOptions

GUEST: Final = "churn"
KINDS: Final = ("fault_fill", "gpt_write", "invlpg", "cr3_load")
SHOWN: Final = (50, 99)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of GUEST. seconds: in the guest and its interception. count: of all its exits. exits: those timed."""

    seconds: float
    count: int
    exits: list[Exit]


def run_guest(timed: bool = True, no_ops: bool = False, split: bool = False) -> _Run:
    """Runs GUEST without checks, with an `ExitClock` if it is to be `timed`."""
    with LiveSession(load_catalogue()[GUEST], PAGING, RunOptions(mode=Mode.LIVE)) as session:
        clock = ExitClock(session, no_ops, split) if timed else None
        while session.run_to_checkpoint() is not None:
            if clock is not None:
                clock.stop()
        return _Run(session.live.run_seconds, session.live.exits.total(), [] if clock is None else clock.exits)


def with_floor(exits: Sequence[Exit]) -> list[tuple[Exit, float]]:
    """The exits of one run that were followed by a no-op exit, each with what one took at that time, in seconds: the
    mean of the medians of its own turn and of the one beside it, in which the sides were exchanged.

    So an exit and its floor have been on the same processors in the same milliseconds, and each side on either of them.
    A turn without another beside it is left out, unless the sides were never exchanged.
    """
    turns: dict[int, list[Exit]] = {}
    for one in exits:
        if one.no_op:
            turns.setdefault(one.turn, []).append(one)
    floors = {turn: statistics.median(one.no_op for one in own) for turn, own in turns.items()}
    return [
        (one, (floors[turn] + floors.get(turn ^ 1, floors[turn])) / 2)
        for turn, own in turns.items()
        if turn ^ 1 in turns or len(turns) == 1
        for one in own
    ]


def balanced(values: Iterable[tuple[Exit, float]], percent: float) -> float:
    """A percentile of what was measured at exits: the mean of those before and after the sides were exchanged."""
    by_placement: dict[int, list[float]] = {}
    for one, value in values:
        by_placement.setdefault(one.turn & 1, []).append(value)
    return statistics.mean(percentile(own, percent) for own in by_placement.values())


def exit_ratios(runs: Sequence[Sequence[Exit]]) -> Measured:
    """Exits against the no-op exits that were made between them: the same way through monitor and mailbox, answered at
    once and without a decision.

    What an exit costs is its no-op exit, which is the hardware's part, and the time from its hand-over to the next
    decision to run. The guest's own time, in which it also fills the TLB anew, is in neither. Each exit is divided by
    the no-op exits around it (`with_floor`), with the sides exchanged, since processors differ in speed and change it
    (`harness.bench.sides`): a figure is what it would be were both as fast.
    """
    both = [pair for exits in runs for pair in with_floor(exits)]
    whole = [(one, (one.no_op + one.handled) / floor) for one, floor in both]
    on_cpu = [(one, 1 + one.cpu / floor) for one, floor in both]
    figures = {f"live.exit_ratio_p{percent}": balanced(whole, percent) for percent in SHOWN}
    figures |= {f"live.exit_ratio_cpu_p{percent}": balanced(on_cpu, percent) for percent in SHOWN}
    for kind in KINDS:
        figures[f"live.{kind}_ratio"] = balanced([pair for pair in whole if pair[0].kind == kind], 50)
    floors = [one.no_op for one, _ in both]
    figures["live.no_op_us"] = percentile(floors, 50) * 1e6
    raw: Raw = {
        "live.no_op_us": us(floors),
        "live.exit_us": us([one.no_op + one.handled for one, _ in both]),
        "live.handled_us": us([one.handled for one, _ in both]),
        "live.handled_cpu_us": us([one.cpu for one, _ in both]),
        "live.no_ops": len(both),
        "live.placements": [
            {
                "no_op_us": us([one.no_op for one, _ in both if one.turn & 1 == placement]),
                "handled_us": us([one.handled for one, _ in both if one.turn & 1 == placement]),
            }
            for placement in sorted({one.turn & 1 for one, _ in both})
        ],
    }
    for kind in KINDS:
        raw[f"live.{kind}_us"] = us([one.no_op + one.handled for one, _ in both if one.kind == kind])
    return figures, raw


def parts(exits: Sequence[Exit]) -> Measured:
    """Where the time of each kind of exit goes, at the median, with the sides exchanged; of exits with a no-op.

    hardware: the no-op exit. decode: fetching and decoding the instruction. engine: in its methods. controller: the
    rest of what is between the hand-over and the next decision to run. guest, only in the raw numbers: what the guest
    was away for beyond a no-op exit, its own work and what the flushed TLB costs it.
    """
    measured = [one for one in exits if one.no_op]
    floor = balanced([(one, one.no_op) for one in measured], 50)
    figures: Figures = {}
    raw: Raw = {}
    for kind in KINDS:
        of_kind = [one for one in measured if one.kind == kind]
        median = {
            "hardware": floor,
            "decode": balanced([(one, one.decode) for one in of_kind], 50),
            "engine": balanced([(one, one.engine) for one in of_kind], 50),
            "controller": balanced([(one, one.handled - one.decode - one.engine) for one in of_kind], 50),
        }
        figures |= {f"live.{kind}_{part}_us": seconds * 1e6 for part, seconds in median.items() if seconds}
        raw[f"live.{kind}_parts"] = {
            "count": len(of_kind),
            "guest_us": round((balanced([(one, one.away) for one in of_kind], 50) - floor) * 1e6, 2),
            "ratios": {part: round(seconds / floor, 3) for part, seconds in median.items()},
            **{
                f"{part}_us": us([getattr(one, part) for one in of_kind])
                for part in ("away", "handled", "engine", "decode")
            },
        }
    return figures, raw


def speed_at_median(exits: Sequence[Exit]) -> float:
    """Exits a second if each took the median time of its kind: without what the scheduler gave to others."""
    seconds = 0.0
    for kind in {one.kind for one in exits}:
        of_kind = [one for one in exits if one.kind == kind]
        seconds += len(of_kind) * statistics.median(one.away + one.handled for one in of_kind)
    return len(exits) / seconds


def measure() -> Measured:
    """Exits of `churn` against no-op exits, where their time goes, and the whole catalogue in all three modes.

    Three runs in turn: one with nothing measured in it, one with a no-op exit after each of the guest's, and one with
    the engine's and the decoder's share measured as well.
    """
    runs: list[list[Exit]] = []
    split_exits: list[Exit] = []
    speeds = []
    for _ in range(ROUNDS):
        plain = run_guest(timed=False)
        speeds.append(plain.count / plain.seconds)
        runs.append(run_guest(no_ops=True).exits)
        split_exits += run_guest(no_ops=True, split=True).exits
    figures, raw = exit_ratios(runs)
    of_parts: tuple[Figures, dict[str, Any]] = parts(split_exits)
    figures |= of_parts[0]
    raw |= of_parts[1]
    figures["live.exits_per_second"] = statistics.median(speeds)
    figures["live.exits_per_second_at_median"] = speed_at_median(split_exits)
    raw["live.exits_per_second"] = speeds
    of_wall = wall_ratios()
    return figures | of_wall[0], raw | of_wall[1]
