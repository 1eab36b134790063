"""What an exit costs in live mode, and what live mode costs a whole run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
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


def exit_ratios(exits: Sequence[Exit]) -> Measured:
    """Exits against the no-op exits that were made between them.

    What an exit costs is its no-op exit, which is the hardware's part, and the time from its hand-over to the next
    decision to run. The guest's own time, in which it also fills the TLB anew, is in neither.
    """
    both = [one for one in exits if one.no_op]
    floors = [one.no_op for one in both]
    floor = percentile(floors, 50)
    whole = [one.no_op + one.handled for one in both]
    on_cpu = [floor + one.cpu for one in both]
    figures = {f"live.exit_ratio_p{percent}": percentile(whole, percent) / floor for percent in SHOWN}
    figures |= {f"live.exit_ratio_cpu_p{percent}": percentile(on_cpu, percent) / floor for percent in SHOWN}
    figures["live.no_op_us"] = floor * 1e6
    raw = {
        "live.no_op_us": us(floors),
        "live.exit_us": us(whole),
        "live.handled_us": us([one.handled for one in both]),
        "live.handled_cpu_us": us([one.cpu for one in both]),
        "live.no_ops": len(both),
    }
    for kind in KINDS:
        of_kind = [one.no_op + one.handled for one in both if one.kind == kind]
        figures[f"live.{kind}_ratio"] = percentile(of_kind, 50) / floor
        raw[f"live.{kind}_us"] = us(of_kind)
    return figures, raw


def parts(exits: Sequence[Exit], floor: float) -> Measured:
    """Where the time of each kind of exit goes, at the median. floor: of a no-op exit, in seconds.

    hardware: the no-op exit. decode: fetching and decoding the instruction. engine: in its methods. controller: the
    rest of what is between the hand-over and the next decision to run. guest, only in the raw numbers: what the guest
    was away for beyond a no-op exit, its own work and what the flushed TLB costs it.
    """
    figures: Figures = {}
    raw: Raw = {}
    for kind in KINDS:
        of_kind = [one for one in exits if one.kind == kind]
        median = {
            "hardware": floor,
            "decode": statistics.median(one.decode for one in of_kind),
            "engine": statistics.median(one.engine for one in of_kind),
            "controller": statistics.median(one.handled - one.decode - one.engine for one in of_kind),
        }
        figures |= {f"live.{kind}_{part}_us": seconds * 1e6 for part, seconds in median.items() if seconds}
        raw[f"live.{kind}_parts"] = {
            "count": len(of_kind),
            "guest_us": round((statistics.median(one.away for one in of_kind) - floor) * 1e6, 2),
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
    the engine's and the decoder's share measured.
    """
    floor_exits: list[Exit] = []
    split_exits: list[Exit] = []
    speeds = []
    for _ in range(ROUNDS):
        plain = run_guest(timed=False)
        speeds.append(plain.count / plain.seconds)
        floor_exits += run_guest(no_ops=True).exits
        split_exits += run_guest(split=True).exits
    figures, raw = exit_ratios(floor_exits)
    of_parts: tuple[Figures, dict[str, Any]] = parts(split_exits, figures["live.no_op_us"] / 1e6)
    figures |= of_parts[0]
    raw |= of_parts[1]
    figures["live.exits_per_second"] = statistics.median(speeds)
    figures["live.exits_per_second_at_median"] = speed_at_median(split_exits)
    raw["live.exits_per_second"] = speeds
    of_wall = wall_ratios()
    return figures | of_wall[0], raw | of_wall[1]
