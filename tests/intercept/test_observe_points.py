"""A debugger beside the interception of observe mode, on a real guest: stepping, points, and standing when asked."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.catalogue import load_catalogue
from harness.intercept.interception import Outcome, Ran
from harness.intercept.observe import Observer
from harness.intercept.points import Point, PointKind
from harness.machine.deadline import Deadline
from harness.machine.errors import MachineError
from harness.options import RunOptions
from harness.session import Session
from tests.intercept.tiny_observed import COUNTER, DATA, LOOP, PAGE, PT, build, tiny_session


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def session(elf: Path) -> Iterator[Session]:
    with tiny_session(elf) as session:
        yield session


@pytest.fixture
def observer(session: Session) -> Observer:
    """The guest has been through its loop once: all is mapped, and every table has been in and out of sync."""
    observer = session.observer
    assert observer.run(Deadline(10), 12).outcome is Outcome.EVENTS
    return observer


def soon() -> Deadline:
    return Deadline(10)


def breakpoint_at(session: Session, symbol: str) -> Point:
    return Point(PointKind.SOFTWARE, session.image.symbols[symbol], 1)


def kinds(observer: Observer, since: int) -> list[str]:
    return [event.kind for event in observer.log.last() if event.index >= since]


def counter(session: Session) -> int:
    return int.from_bytes(session.target.ram[COUNTER : COUNTER + 4].tobytes(), "little")


def step_to(session: Session, observer: Observer, symbol: str) -> Ran:
    for _ in range(40):
        ran = observer.step(soon())
        assert ran.outcome is Outcome.STEPPED
        if ran.registers["rip"] == session.image.symbols[symbol]:
            return ran
    raise AssertionError(f"never came to {symbol}")


def missed(session: Session) -> int:
    return session.observer.self_check(session.machine.gdb.read_registers())


# ---- breakpoints


@pytest.mark.parametrize("kind", [PointKind.SOFTWARE, PointKind.HARDWARE])
def test_the_guest_stands_in_front_of_the_instruction(session: Session, observer: Observer, kind: PointKind) -> None:
    point = Point(kind, session.image.symbols["again"], 1)
    observer.set_point(point)
    ran = observer.run(soon())
    before = counter(session)
    assert (ran.outcome, observer.hit) == (Outcome.PAUSED, point)
    assert ran.registers["rip"] == point.address
    assert observer.step(soon()).outcome is Outcome.STEPPED
    assert counter(session) == before + 1, "it was executed by the step, and not before"


def test_an_intercepted_instruction_is_an_event_when_it_is_executed_and_not_when_it_is_reached(
    session: Session, observer: Observer
) -> None:
    point = breakpoint_at(session, "reload")
    observer.set_point(point)
    assert observer.run(soon()).outcome is Outcome.PAUSED
    events = observer.log.total
    # As gdb resumes from a breakpoint: away with it, one step, and back with it.
    observer.clear_point(point)
    assert observer.step(soon()).outcome is Outcome.STEPPED
    assert kinds(observer, events) == ["cr3_load"]
    observer.set_point(point)
    assert observer.run(soon()).outcome is Outcome.PAUSED
    assert observer.hit == point
    assert kinds(observer, events) == LOOP[2:] + LOOP[:2]


def test_a_breakpoint_where_the_guest_stands_is_hit_at_once(session: Session, observer: Observer) -> None:
    ran = step_to(session, observer, "other")
    observer.set_point(breakpoint_at(session, "other"))
    assert observer.run(soon()) == Ran(Outcome.PAUSED, ran.registers)


def test_a_point_that_is_taken_away_stops_nobody(session: Session, observer: Observer) -> None:
    point = breakpoint_at(session, "store")
    observer.set_point(point)
    observer.clear_point(point)
    observer.clear_point(point)
    assert observer.run(soon(), 12).outcome is Outcome.EVENTS
    assert observer.hit is None


def test_a_breakpoint_that_the_harness_has_too_stays_the_harness_s(session: Session, observer: Observer) -> None:
    point = breakpoint_at(session, "flush")
    observer.set_point(point)
    observer.clear_point(point)
    events = observer.log.total
    observer.run(soon(), len(LOOP))
    assert "invlpg" in kinds(observer, events)
    assert missed(session) == 0


# ---- stepping


def test_every_event_is_seen_when_the_guest_is_only_stepped(session: Session, observer: Observer) -> None:
    step_to(session, observer, "again")
    events = observer.log.total
    step_to(session, observer, "again")
    assert kinds(observer, events) == LOOP
    assert missed(session) == 0
    events = observer.log.total
    observer.run(soon(), len(LOOP))
    assert kinds(observer, events) == LOOP


def test_an_instruction_that_the_guest_stands_at_is_not_missed_when_it_runs_on(
    session: Session, observer: Observer
) -> None:
    step_to(session, observer, "flush")
    events = observer.log.total
    assert observer.run(soon(), 1).outcome is Outcome.EVENTS
    assert kinds(observer, events) == ["invlpg"]


def test_the_first_control_writes_are_events_of_single_steps(session: Session) -> None:
    """From the very first instruction on: CR4, CR3, and CR0 which turns paging on."""
    observer = session.observer
    step_to(session, observer, "again")
    assert kinds(observer, 0) == ["control", "cr3_load", "control"]
    assert observer.state.mode.name == "nopae"


def test_the_step_at_a_checkpoint_is_the_stop() -> None:
    with Session(load_catalogue()["basic"], "long4", RunOptions()) as session:
        observer = session.observer
        assert session.run_to_checkpoint() is not None
        point = breakpoint_at(session, "xi_stop")
        observer.set_point(point)
        assert session.run_to_checkpoint() is None
        assert observer.hit == point
        observer.clear_point(point)
        ran = observer.step(soon())
        assert ran.outcome is Outcome.STOP
        assert ran.registers["rip"] == point.address
        assert observer.step(soon()).outcome is Outcome.STEPPED


# ---- watchpoints


def run_to_hit(observer: Observer, point: Point) -> dict[str, int]:
    ran = observer.run(soon())
    assert (ran.outcome, observer.hit) == (Outcome.PAUSED, point)
    return ran.registers


@pytest.mark.parametrize("kind", [PointKind.WRITE, PointKind.ACCESS])
@pytest.mark.parametrize(("offset", "after"), [(0, "flush"), (0x20, None)])
def test_a_store_to_a_watched_table_entry_is_told_to_both(
    session: Session, observer: Observer, kind: PointKind, offset: int, after: str | None
) -> None:
    step_to(session, observer, "again")
    point = Point(kind, PT + offset, 4)
    observer.set_point(point)
    places = []
    for _ in range(6):
        events = observer.log.total
        registers = run_to_hit(observer, point)
        places.append(registers["rip"])
        assert "table_write" in kinds(observer, events), "the store that was shown is the engine's too"
        assert observer.engine.guest_tables()[PT >> 12] is False
    symbols = session.image.symbols
    wanted = symbols[after] if after else next_instruction(session, "other")
    assert wanted in places
    if kind is PointKind.ACCESS:
        assert set(places) == {wanted}, "a store beside it is the harness's alone"
    assert missed(session) == 0


def next_instruction(session: Session, symbol: str) -> int:
    """The address behind the instruction at `symbol`, one of ten bytes."""
    return session.image.symbols[symbol] + 10


def test_a_watchpoint_on_data_costs_no_event(session: Session, observer: Observer) -> None:
    point = Point(PointKind.WRITE, COUNTER, 4)
    observer.set_point(point)
    step_to(session, observer, "again")
    events = observer.log.total
    registers = run_to_hit(observer, point)
    assert registers["rip"] == session.image.symbols["store"]
    assert kinds(observer, events) == []


def test_an_instruction_with_two_stores_is_told_to_who_watches_the_second(session: Session, observer: Observer) -> None:
    """QEMU names the first: the harness's page."""
    spin_at(session, "wide")
    point = Point(PointKind.WRITE, PT + 0x68, 2)
    observer.set_point(point)
    run_to_hit(observer, point)
    assert observer.run(soon(), 1).outcome is Outcome.EVENTS
    events = observer.log.total
    run_to_hit(observer, point)
    assert kinds(observer, events) == ["table_write"]


def test_a_load_is_told_where_loads_are_watched(session: Session, observer: Observer) -> None:
    point = Point(PointKind.READ, PAGE, 4)
    observer.set_point(point)
    assert run_to_hit(observer, point)["rip"] == session.image.symbols["other"]


def test_a_store_to_a_table_by_the_instruction_that_hit_elsewhere_is_followed(
    session: Session, observer: Observer
) -> None:
    """MOVS loads from a watched place and stores to a table: QEMU tells the load only."""
    point = Point(PointKind.READ, DATA, 4)
    step_to(session, observer, "again")
    observer.set_point(point)
    run_to_hit(observer, point)
    session.target.ram[DATA] ^= 1  # another entry than the last time, one that is not present
    session.target.ram[DATA + 1] = 0x55
    events = observer.log.total
    run_to_hit(observer, point)
    assert kinds(observer, events)[-1] == "table_write"
    assert missed(session) == 0


def test_a_step_over_a_watched_store_names_the_watchpoint(session: Session, observer: Observer) -> None:
    step_to(session, observer, "again")
    point = Point(PointKind.WRITE, COUNTER, 4)
    observer.set_point(point)
    ran = observer.step(soon())
    assert (ran.outcome, observer.hit) == (Outcome.STEPPED, point)
    assert ran.registers["rip"] == session.image.symbols["store"]
    observer.clear_point(point)
    assert observer.run(soon(), 3).outcome is Outcome.EVENTS
    assert observer.hit is None
    assert observer.false_breakpoints == 0, "QEMU's second stop for the same store is none"


def test_what_qemu_refuses_is_an_error_and_is_not_kept(session: Session, observer: Observer) -> None:
    point = Point(PointKind.WRITE, COUNTER, 0)
    with pytest.raises(MachineError, match="E22"):
        observer.set_point(point)
    observer.clear_point(point)
    assert observer.run(soon(), 6).outcome is Outcome.EVENTS


# ---- points that are not there while a check runs


def test_lifted_points_stop_nobody_and_come_back(session: Session, observer: Observer) -> None:
    points = [breakpoint_at(session, "again"), Point(PointKind.WRITE, PT, 4), Point(PointKind.READ, PAGE, 4)]
    for point in points:
        observer.set_point(point)
    observer.attention = lambda: True
    with observer.lifted():
        assert observer.run(soon(), 12).outcome is Outcome.EVENTS
        assert observer.hit is None
    assert observer.run(soon()).outcome is Outcome.PAUSED
    assert observer.hit is None, "attention comes first"
    observer.attention = None
    assert {hit_in_turn(observer) for _ in range(8)} == set(points)


def hit_in_turn(observer: Observer) -> Point:
    ran, hit = observer.run(soon()), observer.hit
    assert ran.outcome is Outcome.PAUSED
    assert hit is not None
    if hit.breaks:
        observer.step(soon())
    return hit


def test_a_whole_run_with_points_that_are_lifted_for_its_checks_passes() -> None:
    with Session(load_catalogue()["basic"], "pae", RunOptions(probe_budget=60)) as session:
        observer = session.observer
        stop, hits = session.run_to_checkpoint(), 0
        points = [breakpoint_at(session, "xi_invlpg"), Point(PointKind.WRITE, session.image.symbols["xi_mailbox"], 64)]
        for point in points:
            observer.set_point(point)
        while not session.ended:
            if stop is not None:
                with observer.lifted():
                    session.check()
            elif observer.hit is not None and observer.hit.breaks:
                hits += 1
                observer.clear_point(observer.hit)
                again = observer.hit
                assert observer.step(soon()).outcome is Outcome.STEPPED
                observer.set_point(again)
            stop = session.run_to_checkpoint()
        record = session.conclude()
    assert record.verdict == "pass", record.reason
    assert record.interception_misses == 0
    assert hits


# ---- attention


@contextmanager
def poking(poke: Callable[[], None], pause: float) -> Iterator[None]:
    """Somebody does it every `pause` seconds, about."""
    done = threading.Event()
    chance = random.Random(1)

    def turn() -> None:
        while not done.wait(pause * 2 * chance.random()):
            poke()

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def spin_at(session: Session, symbol: str) -> None:
    rip = session.machine.gdb.registers["rip"].number
    session.machine.gdb.write_register(rip, session.image.symbols[symbol].to_bytes(8, "little"))


@pytest.mark.parametrize("place", ["spin", "rest"])
def test_a_guest_that_makes_no_event_stands_soon_after_a_poke(session: Session, observer: Observer, place: str) -> None:
    spin_at(session, place)
    wanted = threading.Event()
    observer.attention = wanted.is_set

    def want() -> None:
        wanted.set()
        observer.poke()

    timer = threading.Timer(0.2, want)
    timer.start()
    began = time.monotonic()
    ran = observer.run(soon())
    timer.join()
    assert (ran.outcome, observer.hit) == (Outcome.PAUSED, None)
    assert time.monotonic() - began < 2
    assert session.image.symbols[place] <= ran.registers["rip"] < session.image.symbols[place] + 4


def test_a_poke_that_nobody_stands_behind_changes_nothing(session: Session, observer: Observer) -> None:
    spin_at(session, "spin")
    observer.attention = lambda: False
    with poking(observer.poke, 0.01):
        assert observer.run(Deadline(0.5)).outcome is Outcome.DEADLINE


def test_attention_is_asked_after_each_event(session: Session, observer: Observer) -> None:
    total = observer.log.total
    observer.attention = lambda: observer.log.total >= total + 3
    assert observer.run(soon()).outcome is Outcome.PAUSED
    assert observer.log.total == total + 3


def test_a_poke_before_the_guest_runs_is_not_lost(session: Session, observer: Observer) -> None:
    """QEMU ignores it while the guest stands; who is wanted between the last question and the run is asked again."""
    spin_at(session, "spin")
    answers = iter([False, True, True])
    observer.attention = lambda: next(answers)
    began = time.monotonic()
    assert observer.run(soon()).outcome is Outcome.PAUSED
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("pause", [0.0003, 0.001, 0.004])
def test_no_event_is_lost_to_pokes_and_none_is_told_twice(session: Session, observer: Observer, pause: float) -> None:
    """An interrupt may overtake the stop at a watchpoint, or end a step before its instruction."""
    wanted = threading.Event()
    observer.attention = wanted.is_set

    def want() -> None:
        wanted.set()
        observer.poke()

    step_to(session, observer, "again")
    events, deadline, paused = observer.log.total, Deadline(2), 0
    with poking(want, pause):
        while not deadline.passed:
            wanted.clear()
            paused += observer.run(soon()).outcome is Outcome.PAUSED
            assert missed(session) == 0
    observer.attention = None
    step_to(session, observer, "again")
    rounds, rest = divmod(observer.log.total - events, len(LOOP))
    assert rest == 0
    assert rounds > 5
    assert paused > 100


def test_no_event_is_lost_to_deadlines(session: Session, observer: Observer) -> None:
    for turn in range(400):
        assert observer.run(Deadline(0.0002 + turn * 3e-6)).outcome is Outcome.DEADLINE
        assert missed(session) == 0, turn


def test_a_step_of_a_halted_processor_ends_at_the_deadline(session: Session, observer: Observer) -> None:
    spin_at(session, "rest")
    assert observer.run(Deadline(0.3)).outcome is Outcome.DEADLINE
    assert observer.step(Deadline(0.3)).outcome is Outcome.DEADLINE


def test_a_step_of_a_halted_processor_ends_when_somebody_wants_it(session: Session, observer: Observer) -> None:
    spin_at(session, "rest")
    assert observer.run(Deadline(0.3)).outcome is Outcome.DEADLINE
    observer.attention = lambda: True
    with poking(observer.poke, 0.1):
        assert observer.step(soon()).outcome is Outcome.PAUSED


# ---- the end, and the price


@pytest.mark.parametrize("go", [Observer.run, Observer.step])
def test_a_qemu_that_goes_away_is_an_exit(
    session: Session, observer: Observer, go: Callable[[Observer, Deadline], Ran]
) -> None:
    spin_at(session, "rest")
    observer.run(Deadline(0.3))
    timer = threading.Timer(0.3, os.kill, (session.machine.process.pid, signal.SIGKILL))
    timer.start()
    assert go(observer, soon()) == Ran(Outcome.EXITED, {})
    timer.join()


def test_without_a_debugger_an_event_is_one_round_trip_or_two(
    session: Session, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_to(session, observer, "again")
    gdb = session.machine.gdb
    sent: list[bytes] = []
    send = gdb._send

    def counted(payloads: Sequence[bytes]) -> None:
        sent.append(payloads[-1])
        send(payloads)

    monkeypatch.setattr(gdb, "_send", counted)
    events = observer.log.total
    observer.run(soon(), len(LOOP))
    assert kinds(observer, events) == LOOP
    # Each event a resume, each breakpoint a write with registers and step, and the registers at the end.
    assert sent == [write for kind in LOOP for write in ([b"c"] if kind == "table_write" else [b"c", b"s"])] + [b"g"]
