"""The proxy under the real gdb: what its user types and sees. The guest is a toy, so only the proxy can be wrong."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.debug.proxy import STOPPED, Resume, StopReason
from tests.debug.fake_guest import CODE, DATA, FakeGuest, FakeRun, build
from tests.debug.gdb import Gdb, gdb


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("toy")
    return {bits: build(folder, bits) for bits in (32, 64)}


@pytest.fixture(params=[64, 32])
def run(request: pytest.FixtureRequest, images: dict[int, Path], tmp_path: Path) -> Iterator[FakeRun]:
    bits = request.param
    one = FakeRun(FakeGuest(images[bits]), tmp_path / "gdb", narrow=bits == 32)
    yield one
    one.close()


@pytest.fixture
def image(run: FakeRun, images: dict[int, Path]) -> Path:
    """The file of the guest in `run`."""
    return images[32 if run.narrow else 64]


@pytest.fixture
def user(run: FakeRun, image: Path) -> Iterator[Gdb]:
    run.start()
    with gdb(image) as one:
        attached = one.do(f"target remote {run.server.path}")
        assert "_start () at" in attached
        assert "warning" not in attached
        yield one


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.01)


def test_registers_and_code_are_shown_in_the_width_of_the_file(user: Gdb, run: FakeRun, image: Path) -> None:
    letter = "e" if "32" in image.name else "r"
    registers = user.do("info registers")
    assert f"{letter}bx            {DATA:#x}" in registers
    assert f"{letter}ip            {CODE:#x}            {CODE:#x} <_start>" in registers
    assert "cr3            0x300000" in registers
    assert f"mov    %eax,(%{letter}bx)" in user.do("x/4i $pc")
    assert "* 1    Thread 1 (vCPU 0)" in user.do("info threads")


def test_a_breakpoint_stops_at_its_symbol_each_time_round(user: Gdb, run: FakeRun) -> None:
    user.do("break store")
    for turn in (1, 2, 3):
        assert "Breakpoint 1, store () at" in user.do("continue")
        assert user.do("print $eax").strip().endswith(f"= {turn}")
    user.do("delete")
    assert len(run.guest.points) == 0


def test_a_hardware_breakpoint_too(user: Gdb) -> None:
    user.do("hbreak load")
    assert "Breakpoint 1, load () at" in user.do("continue")


def test_the_address_behind_a_one_byte_instruction_is_not_taken_for_its_breakpoint(user: Gdb, run: FakeRun) -> None:
    user.do("break *_start")
    user.do("tbreak again")
    assert "again () at" in user.do("continue")
    assert run.guest.registers["rip"] == CODE + 1
    assert f"{CODE + 1:#x}" in user.do("print $pc")


def test_stepping_goes_by_one_instruction_or_line(user: Gdb) -> None:
    assert "inc %eax" in user.do("stepi")
    assert "mov %eax" in user.do("next")
    assert "mov (%" in user.do("nexti")
    assert f"{CODE:#x}" not in user.do("print $pc")


def test_a_watchpoint_shows_both_values(user: Gdb) -> None:
    assert "Hardware watchpoint 1" in user.do("watch *(int *)&counter")
    shown = user.do("continue")
    assert "Old value = 0" in shown
    assert "New value = 1" in shown
    user.do("delete")
    assert "read watchpoint 2" in user.do("rwatch *(int *)&counter")
    assert "Value = 1" in user.do("continue")
    user.do("delete")
    assert "(read/write) watchpoint 3" in user.do("awatch *(int *)&counter")
    assert "New value = 2" in user.do("continue")
    assert "Value = 2" in user.do("continue")


def test_registers_and_memory_are_written(user: Gdb, run: FakeRun) -> None:
    user.do("set var $eax = 0x1234")
    assert run.guest.registers["rax"] == 0x1234
    user.do("set var $cr3 = 0x555000")
    assert run.guest.registers["cr3"] == 0x555000
    user.do("set var {int} &counter = -1")
    assert run.guest.read_memory(DATA, 4) == b"\xff" * 4
    assert "-1" in user.do("print {int} &counter")


def test_what_is_refused_is_said_and_the_session_goes_on(user: Gdb, run: FakeRun) -> None:
    run.guest.refused = {29: "CR3 0x1: bits beyond the physical address are set (#GP)"}
    assert "bits beyond the physical address are set" in user.do("set var $cr3 = 1")
    assert "Cannot access memory at address 0x999000" in user.do("x/4x 0x999000")
    assert "Cannot access memory at address 0x999000" in user.do("set var {int} 0x999000 = 1")
    assert "Run till exit" not in user.do("stepi")


def test_ctrl_c_stops_a_guest_that_spins(user: Gdb, run: FakeRun) -> None:
    user.do("set var $pc = &spin")
    for _ in range(3):
        user.start("continue", "Continuing.")
        eventually(lambda: run.proxy.waiting and run.ways[-1:] == [Resume.CONTINUE])
        assert "Program received signal SIGINT" in user.interrupt()
        assert "jmp spin" in user.do("frame")


def test_monitor_reaches_xi_and_qemu(user: Gdb) -> None:
    user.do("monitor")  # the news of the stop
    assert user.do("monitor xi help") == "walk VA\n"
    assert user.do("monitor xi nonsense") == "xi knows no command 'nonsense'\n"
    assert user.do("monitor info tlb") == "QEMU ran: info tlb\n"
    assert "`continue`" in user.do("monitor cont")
    assert "xi-harness migrate" in user.do("monitor migrate tcp:0:1")
    long = user.do("monitor xi long").splitlines()
    assert [line[:9] for line in long] == [f"line {number:04}" for number in range(1000)]
    assert long[-1].endswith("äöü€𝄞")


def test_a_mistake_in_a_command_is_shown_and_ends_nothing(user: Gdb) -> None:
    assert "ZeroDivisionError" in user.do("monitor xi mistake")
    assert user.do("monitor xi help") == "walk VA\n"


def test_why_the_guest_stands_is_told_to_a_gdb_that_came_later(user: Gdb) -> None:
    assert user.do("monitor") == "at the entry\n"


def test_a_stop_of_the_harness_ends_a_next_with_its_text_and_without_a_signal(user: Gdb, run: FakeRun) -> None:
    run.asked = StopReason(STOPPED, text="event 17: CR3 load")
    shown = user.do("next")
    assert "event 17: CR3 load" in shown
    assert "stopped" in shown
    assert "SIG" not in shown
    assert "mov %eax" in user.do("next")


def test_the_end_of_the_guest_is_an_exit(user: Gdb, run: FakeRun) -> None:
    user.do("set var $pc = &finish")
    user.do("set var $eax = 3")
    shown = user.do("continue")
    assert "the guest has ended: verdict pass" in shown
    assert "exited with code 03" in shown
    run.wait()


def test_detach_takes_the_points_away_and_lets_the_guest_run(user: Gdb, run: FakeRun) -> None:
    user.do("break store")
    user.do("watch *(int *)&counter")
    user.do("continue")
    user.do("set var $pc = &finish")
    assert "Ending remote debugging" in user.do("detach")
    run.wait()
    assert run.ways[-1] is Resume.DETACH
    assert len(run.guest.points) == 0


def test_quitting_detaches(user: Gdb, run: FakeRun) -> None:
    user.do("set var $pc = &finish")
    user.child.sendline("quit")
    run.wait()
    assert run.ways[-1] is Resume.DETACH


def test_kill_ends_the_run(user: Gdb, run: FakeRun) -> None:
    user.do("break store")
    user.do("continue")
    assert "killed" in user.do("kill")
    run.wait()
    assert run.ways[-1] is Resume.KILL
    assert len(run.guest.points) == 0


@pytest.mark.parametrize("running", [False, True])
def test_a_gdb_that_is_killed_leaves_no_point_and_the_next_one_is_served(
    user: Gdb, run: FakeRun, image: Path, running: bool
) -> None:
    user.do("set breakpoint always-inserted on")
    user.do("break finish")
    user.do("stepi")
    assert len(run.guest.points) == 1
    if running:
        user.do("set var $pc = &spin")
        user.start("continue", "Continuing.")
    else:
        user.do("set var $pc = &again")
    os.kill(user.child.pid, signal.SIGKILL)
    eventually(lambda: run.ways[-1:] == [Resume.GONE])
    assert len(run.guest.points) == 0
    with gdb(image) as second:
        assert "() at" in second.do(f"target remote {run.server.path}")
        assert "inc %eax" in second.do("tbreak again") + second.do("set var $pc = &_start") + second.do("continue")


def test_a_second_gdb_is_turned_away_and_told_why(user: Gdb, run: FakeRun, image: Path) -> None:
    with gdb(image) as second:
        shown = second.do(f"target remote {run.server.path}")
        assert "another gdb is attached" in shown
        assert "Remote connection closed" in shown
    assert "inc %eax" in user.do("stepi")


def test_a_gdb_that_detached_can_come_back(user: Gdb, run: FakeRun) -> None:
    user.do("set var $pc = &spin")
    user.do("detach")
    eventually(lambda: run.ways[-1:] == [Resume.DETACH])
    assert "jmp spin" in user.do(f"target remote {run.server.path}")


def test_a_lost_machine_is_said_to_a_gdb_that_waits(user: Gdb, run: FakeRun) -> None:
    user.do("set var $pc = &spin")
    user.start("continue", "Continuing.")
    eventually(lambda: run.ways[-1:] == [Resume.CONTINUE])
    run.proxy.lost("QEMU has ended (exit status -9)")
    shown = user.rest()
    assert "QEMU has ended (exit status -9)" in shown
    assert "SIGKILL" in shown


def test_a_machine_lost_while_gdb_is_at_its_prompt_ends_the_session(user: Gdb, run: FakeRun) -> None:
    run.alive = False
    run.guest.broken = True
    run.wait()
    shown = user.do("stepi")
    assert "Remote connection closed" in shown or "Broken pipe" in shown
    assert "no registers" in user.do("info registers")


def test_what_gdb_asks_of_a_machine_that_was_lost_just_now_is_refused_in_words(user: Gdb, run: FakeRun) -> None:
    run.guest.broken = True
    assert "QEMU has ended" in user.do("maintenance flush register-cache") + user.do("info registers")
    run.guest.broken = False


def test_extended_remote_works_too(run: FakeRun, image: Path) -> None:
    run.start()
    with gdb(image) as user:
        assert "_start ()" in user.do(f"target extended-remote {run.server.path}")
        assert "inc %eax" in user.do("stepi")
        assert "killed" in user.do("kill")
    run.wait()
    assert run.ways[-1] is Resume.KILL


def test_a_32_bit_session_shows_16_bit_code_when_asked(images: dict[int, Path], tmp_path: Path) -> None:
    run = FakeRun(FakeGuest(images[32]), tmp_path / "gdb", narrow=True)
    run.start()
    with gdb(images[32]) as user:
        user.do(f"target remote {run.server.path}")
        user.do("set architecture i8086")
        assert "mov    %ax,(%bp,%di)" in user.do("x/i store")
        assert "inc %eax" in user.do("stepi")
        user.do("set architecture i386")
        assert "mov    %eax,(%ebx)" in user.do("x/i store")
    run.close()
