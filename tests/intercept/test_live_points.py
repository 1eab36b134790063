"""A debugger's points and steps in live mode, with the real QEMU: the guest never notices them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.catalogue import FIRMWARE, load_catalogue
from harness.intercept.interception import Outcome, Ran
from harness.intercept.live_points import DIRECT_MAP, vmrun_address
from harness.intercept.points import Point, PointKind
from harness.live.session import LiveSession
from harness.machine.deadline import Deadline
from harness.machine.errors import MachineError, StubClosed
from harness.machine.gdbstub import STEP, breakpoint_packet
from harness.machine.mailbox import PROBE, Status
from harness.machine.qemu import Machine, MachineSpec
from harness.options import RunOptions
from harness.placement import place
from harness.x86.access import Access
from tests.intercept.tiny_debugged import FRAME_B, PAGE_A, STATUS, TABLE, TABLES, tiny_image, tiny_session
from tests.x86.assemble import needs_assembler

pytestmark = [needs_assembler, pytest.mark.two_cores]

EXIT = STATUS << 1 | 1
LVT0, EXTERNAL = 0xFEE0_0350, 0x700  # of the local APIC: the interrupts of the PIC come through
GPRS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip", "eflags", "cs")


@pytest.fixture(params=list(TABLES))
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LiveSession]:
    """The guest at its entry, in each paging mode."""
    with tiny_session(request.param, tmp_path) as one:
        yield one


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[LiveSession]:
    with tiny_session("nopae", tmp_path) as one:
        yield one


def run(session: LiveSession, seconds: float = 10.0) -> Ran:
    return session.live.run(Deadline(seconds))


def step(session: LiveSession, seconds: float = 10.0) -> Ran:
    return session.live.step(Deadline(seconds))


def at(session: LiveSession, label: str, kind: PointKind = PointKind.HARDWARE, length: int = 1) -> Point:
    return Point(kind, session.image.symbols[label], length)


def reach(session: LiveSession, label: str) -> Ran:
    """Runs to `label`, by a breakpoint that is gone afterwards."""
    point = at(session, label)
    session.live.set_point(point)
    ran = run(session)
    session.live.clear_point(point)
    assert ran.outcome is Outcome.PAUSED
    assert session.live.hit == point
    assert ran.registers["rip"] == point.address
    return ran


def go(session: LiveSession, label: str) -> None:
    """The guest goes on at `label`."""
    session.vcpu.vmcb_fields["rip"] = session.image.symbols[label]


def ends_well(session: LiveSession) -> None:
    assert run(session).outcome is Outcome.EXITED
    assert session.machine.wait_exit(5) == EXIT


# ---- breakpoints


def test_a_breakpoint_stops_in_front_of_its_instruction(session: LiveSession) -> None:
    assert reach(session, "inc").registers["rbx"] != 6
    assert reach(session, "edit").registers["rbx"] == 6
    ends_well(session)


def test_a_breakpoint_that_stays_is_met_again_where_the_guest_stands(narrow: LiveSession) -> None:
    """As in QEMU: a debugger takes it away and steps."""
    point = at(narrow, "store")
    narrow.live.set_point(point)
    first, hit = run(narrow), narrow.live.hit
    second, again = run(narrow), narrow.live.hit
    assert first.registers == second.registers
    assert hit == again == point
    stepped, hit = step(narrow), narrow.live.hit
    assert stepped.registers["rip"] == narrow.image.symbols["inc"]
    assert hit is None
    ends_well(narrow)


def test_one_that_is_set_twice_goes_with_the_second_removal(narrow: LiveSession) -> None:
    point = at(narrow, "store", PointKind.SOFTWARE)
    narrow.live.set_point(point)
    narrow.live.set_point(point)
    narrow.live.clear_point(point)
    assert run(narrow).outcome is Outcome.PAUSED
    narrow.live.clear_point(point)
    narrow.live.clear_point(point)  # nothing happens
    ends_well(narrow)


def test_a_page_that_the_shadow_does_not_have_yet_can_have_one(narrow: LiveSession) -> None:
    """QEMU looks for breakpoints before it fetches."""
    entry = Point(PointKind.HARDWARE, narrow.image.entry, 1)
    narrow.live.set_point(entry)
    assert run(narrow).outcome is Outcome.PAUSED
    assert narrow.live.log.total == 0
    narrow.live.clear_point(entry)
    ends_well(narrow)


def test_each_time_round_a_whole_guest(tmp_path: Path) -> None:
    """The guest's own checks pass with a breakpoint that it meets again and again."""
    del tmp_path
    with LiveSession(load_catalogue()["basic"], "long4", RunOptions(mode="live")) as one:
        point, met = at(one, "xi_stop"), 0
        one.live.set_point(point)
        while True:
            ran = run(one)
            if ran.outcome is Outcome.EXITED:
                break
            assert ran.outcome is Outcome.PAUSED
            assert one.live.hit == point
            met += 1
            assert step(one).outcome is Outcome.STOP  # its one instruction is the checkpoint's
        assert met > 5
        assert one.finish().verdict == "pass"


# ---- steps


def native_steps(directory: Path, paging: str, registers: tuple[str, ...]) -> list[tuple[int, ...]]:
    """What every instruction of the guest leaves behind when QEMU itself steps it, without a harness."""
    image = tiny_image(paging, directory)
    seen = []
    with Machine(MachineSpec(bios=FIRMWARE), place(image, 1)) as machine:
        gdb = machine.gdb
        gdb.checked(breakpoint_packet(image.entry))
        gdb.resume()
        gdb.wait_stop(Deadline(10))
        while True:
            seen.append(tuple(map(gdb.read_registers().__getitem__, registers)))
            gdb.resume(how=STEP)
            try:
                if gdb.wait_stop(Deadline(10)).exited:
                    return seen
            except StubClosed:
                return seen


@pytest.mark.parametrize("paging", list(TABLES))
def test_each_step_does_what_it_does_without_a_harness(paging: str, tmp_path: Path) -> None:
    """From the entry in 32-bit code without paging to the end: control registers, faults and their handlers, string
    instructions, a load that the harness carries out."""
    native = native_steps(tmp_path, paging, GPRS)
    with tiny_session(paging, tmp_path) as one:
        labels = one.image.symbols
        live = [tuple(map(one.live.registers().__getitem__, GPRS))]
        while True:
            ran = step(one)
            if ran.outcome is Outcome.EXITED:
                break
            assert ran.outcome is Outcome.STEPPED
            live.append(tuple(map(ran.registers.__getitem__, GPRS)))
        assert one.machine.wait_exit(5) == EXIT
    masked = GPRS.index("eflags")
    hidden = set(range(labels["reload"], labels["rom"]))  # CPUID is not the same

    def told(steps: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        rip = GPRS.index("rip")
        return [(*s[:masked], *s[masked + 1 :]) if s[rip] not in hidden else (s[rip],) for s in steps]

    assert told(live) == told(native)
    assert {labels["h14"], labels["h6"], labels["sub"], labels["leave"]} <= {s[GPRS.index("rip")] for s in live}


def test_steps_and_runs_may_alternate(session: LiveSession) -> None:
    reach(session, "store")
    assert step(session).registers["rip"] == session.image.symbols["inc"]
    reach(session, "fault")
    assert step(session).registers["rip"] == session.image.symbols["h14"]
    reach(session, "leave")
    ends_well(session)


def test_a_step_is_over_a_breakpoint(narrow: LiveSession) -> None:
    """QEMU does not stop at a breakpoint while it steps."""
    reach(narrow, "store")
    narrow.live.set_point(at(narrow, "store"))
    narrow.live.set_point(at(narrow, "inc"))
    assert step(narrow).outcome is Outcome.STEPPED
    assert narrow.live.hit is None
    assert run(narrow).registers["rip"] == narrow.image.symbols["inc"]


def test_stepping_under_stress() -> None:
    """Frames move and are taken away between the exits of a step as between others."""
    with LiveSession(load_catalogue()["basic"], "pae", RunOptions(mode="live", stress=True)) as one:
        for _ in range(150):
            assert step(one).outcome is Outcome.STEPPED
        assert one.stress is not None
        assert one.stress.counts["moved"] > 5
        assert one.finish().verdict == "pass"


# ---- watchpoints


def test_stores_loads_and_both(session: LiveSession) -> None:
    labels = session.image.symbols
    both, store, load = (
        at(session, "counter", kind, 4) for kind in (PointKind.ACCESS, PointKind.WRITE, PointKind.READ)
    )
    met = []
    for point, behind in ((store, "inc"), (store, "load"), (load, "edit")):
        session.live.set_point(point)
        ran = run(session)
        assert (ran.outcome, session.live.hit) == (Outcome.PAUSED, point)
        met.append((ran.registers["rip"], labels[behind]))
        session.live.clear_point(point)
    assert [here for here, _ in met] == [there for _, there in met]
    go(session, "load")
    session.live.set_point(both)
    assert step(session).outcome is Outcome.STEPPED
    assert session.live.hit == both
    session.live.clear_point(both)
    ends_well(session)


def test_a_table_entry_that_the_engine_keeps_read_only(session: LiveSession) -> None:
    """The store faults first, so that the engine hears of it; made again, it meets the watchpoint."""
    reach(session, "edit")
    gfn = TABLE >> 12
    assert session.engine.guest_tables()[gfn]
    point = Point(PointKind.WRITE, TABLE, 4)
    session.live.set_point(point)
    ran = run(session)
    assert (ran.outcome, session.live.hit) == (Outcome.PAUSED, point)
    assert ran.registers["rip"] == session.image.symbols["flush"]
    assert not session.engine.guest_tables()[gfn]
    assert session.memory.ram[TABLE : TABLE + 4].tobytes() == (FRAME_B | 3).to_bytes(4, "little")
    session.live.clear_point(point)
    assert reach(session, "moved").registers["rip"]
    assert step(session).registers["rbx"] == 0x22
    assert not session.live.self_check({})
    ends_well(session)


def test_a_watched_page_that_is_not_mapped_yet(session: LiveSession) -> None:
    point = Point(PointKind.WRITE, PAGE_A, 8)
    session.live.set_point(point)
    ran = run(session)
    assert (ran.outcome, session.live.hit) == (Outcome.PAUSED, point)
    assert session.live.log.counts["page_fault"]
    session.live.clear_point(point)
    ends_well(session)


def test_probes_meet_none(session: LiveSession) -> None:
    """While the guest stands no point is set: what a check touches is none of the guest's."""
    reach(session, "moved")
    session.live.set_point(Point(PointKind.ACCESS, PAGE_A, 4096))
    assert run(session).outcome is Outcome.PAUSED
    assert session.live.hit is not None
    with session.live.lifted():
        probes = np.zeros(1, PROBE)
        probes["va"], probes["op"] = PAGE_A, Access.LOAD
        done = session.target.run_probes(probes)
    assert done["status"][0] == Status.DONE
    assert int(done["value"][0]) & 0xFF == 0x22
    session.live.clear_point(Point(PointKind.ACCESS, PAGE_A, 4096))
    ends_well(session)


# ---- somebody wants the guest to stand


def test_attention_is_asked_after_each_event(narrow: LiveSession) -> None:
    live = narrow.live
    wanted = 0
    live.attention = lambda: live.log.total >= wanted
    for wanted in (3, 4, 9):
        assert run(narrow).outcome is Outcome.PAUSED
        assert live.log.total == wanted
        assert live.hit is None
    live.attention = None
    ends_well(narrow)


@pytest.mark.parametrize(
    ("label", "stands", "move"), [("spin", "spin", "run"), ("idle", "halt", "run"), ("idle", "halt", "step")]
)
def test_a_guest_that_never_leaves_is_poked(narrow: LiveSession, label: str, stands: str, move: str) -> None:
    """One that waits in a HLT waits on afterwards."""
    reach(narrow, "paged")
    go(narrow, label)
    if label == "idle":
        step(narrow)  # STI
    asked: list[bool] = []

    def attention() -> bool:
        """Nobody wants anything until the first poke, which is the only thing that makes the guest leave."""
        asked.append(True)
        return len(asked) > 1

    live = narrow.live
    live.attention = attention
    for _ in range(3):
        asked[:] = [True] if label == "spin" or move == "step" else []  # else its HLT is an event, and is asked about
        timer = threading.Timer(0.2, live.poke)
        timer.start()
        ran = (run if move == "run" else step)(narrow)
        timer.join()
        assert len(asked) == 2
        assert (ran.outcome, live.hit) == (Outcome.PAUSED, None)
        assert ran.registers["rip"] == narrow.image.symbols[stands]
    live.attention = None
    go(narrow, "end")
    ends_well(narrow)


def test_a_poke_that_nobody_minds(narrow: LiveSession) -> None:
    reach(narrow, "paged")
    go(narrow, "spin")
    narrow.live.attention = lambda: False
    timer = threading.Timer(0.1, narrow.live.poke)
    timer.start()
    assert run(narrow, 0.4).outcome is Outcome.DEADLINE
    timer.join()
    go(narrow, "end")
    ends_well(narrow)


def test_a_poke_that_nobody_minds_leaves_the_points_where_they_are(narrow: LiveSession) -> None:
    """As of a gdb that has connected: it pokes, and all is said before the guest is let go."""
    live = narrow.live
    reach(narrow, "paged")
    point = at(narrow, "inc")
    live.set_point(point)
    live.attention = lambda: False
    go(narrow, "spin")

    def once() -> None:
        live.between.remove(once)
        go(narrow, "store")

    live.between.append(once)
    live.poke()
    assert run(narrow).outcome is Outcome.PAUSED
    assert live.hit == point


def test_a_poke_while_the_guest_stands_is_for_its_next_run(narrow: LiveSession) -> None:
    reach(narrow, "paged")
    go(narrow, "spin")
    narrow.live.attention = lambda: True
    narrow.live.poke()
    assert run(narrow).outcome is Outcome.PAUSED


# ---- HLT


def test_a_step_into_a_halt_ends_in_the_handler_that_wakes_it(session: LiveSession) -> None:
    session.vcpu.write_device(LVT0, 4, EXTERNAL)
    reach(session, "paged")
    go(session, "timer")
    reach(session, "halt")
    ran = step(session)
    assert ran.outcome is Outcome.STEPPED
    assert ran.registers["rip"] == session.image.symbols["h32"]
    reach(session, "end")
    ends_well(session)


def test_a_step_into_a_halt_that_nothing_ends(narrow: LiveSession) -> None:
    reach(narrow, "paged")
    go(narrow, "idle")
    step(narrow)
    ran = step(narrow, 0.3)
    assert ran.outcome is Outcome.DEADLINE
    assert ran.registers["rip"] == narrow.image.symbols["halt"]
    go(narrow, "end")
    ends_well(narrow)


# ---- ends


@pytest.mark.parametrize("move", ["run", "step"])
def test_the_time_is_over_at_a_point(narrow: LiveSession, move: str) -> None:
    reach(narrow, "paged")
    go(narrow, "spin")
    narrow.live.set_point(at(narrow, "spin"))
    for _ in range(20):
        ran = run(narrow, 0.0) if move == "run" else step(narrow, 0.0)
        assert ran.outcome in (Outcome.PAUSED, Outcome.DEADLINE, Outcome.STEPPED)
        assert ran.registers["rip"] == narrow.image.symbols["spin"]
    narrow.live.clear_point(at(narrow, "spin"))
    go(narrow, "end")
    ends_well(narrow)


@pytest.mark.parametrize("move", ["run", "step"])
def test_qemu_is_killed(narrow: LiveSession, move: str) -> None:
    reach(narrow, "paged")
    go(narrow, "spin" if move == "run" else "halt")
    narrow.vcpu.vmcb_fields["rflags"] |= 1 << 9
    narrow.live.set_point(at(narrow, "end"))
    timer = threading.Timer(0.2, narrow.machine.process.kill)
    timer.start()
    ran = run(narrow) if move == "run" else step(narrow)
    timer.join()
    assert ran == Ran(Outcome.EXITED, {})
    assert (run(narrow) if move == "run" else step(narrow)) == Ran(Outcome.EXITED, {})


# ---- what cannot be


@pytest.mark.parametrize(
    "point",
    [
        Point(PointKind.HARDWARE, DIRECT_MAP.start + 0xFFFF_1000, 1),
        Point(PointKind.WRITE, DIRECT_MAP.start - 1, 2),
        Point(PointKind.WRITE, 0x1000, 0),
        Point(PointKind.WRITE, (1 << 64) - 1, 2),
    ],
)
def test_refused(narrow: LiveSession, point: Point) -> None:
    with pytest.raises(MachineError):
        narrow.live.set_point(point)
    ends_well(narrow)


def test_a_firmware_without_a_monitor() -> None:
    image = FIRMWARE.read_bytes()
    assert vmrun_address(image) in DIRECT_MAP
    with pytest.raises(MachineError, match="make guests"):
        vmrun_address(bytes(65536))
    with pytest.raises(MachineError, match="make guests"):
        vmrun_address(image + image)
