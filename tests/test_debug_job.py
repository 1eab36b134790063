"""Whole debugging sessions: the command, a real QEMU and a real gdb, in both modes."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from harness.options import Mode
from tests.debug.gdb import Gdb
from tests.debug.session import Debugging, command_of

LIVE = pytest.param(Mode.LIVE.value, marks=pytest.mark.two_cores)
BOTH = pytest.mark.parametrize("mode", [Mode.OBSERVE.value, LIVE])


def value(gdb: Gdb, expression: str) -> int:
    """What gdb makes of `expression`, as a number."""
    return int(gdb.do(f'printf "%#lx\\n", (unsigned long)({expression})').strip().splitlines()[-1], 16)


@BOTH
def test_from_32_bit_code_into_64_bit_code_and_through_address_spaces_to_the_verdict(mode: str) -> None:
    with Debugging("switch", "--paging", "long4", "--mode", mode) as session:
        assert "switch long4 stands at its entry" in session.invitation
        gdb = session.gdb()
        # 32-bit code, before paging: single steps, then a breakpoint behind the switch to 64-bit code.
        assert value(gdb, "$pc") == value(gdb, "&_start")
        gdb.do("stepi")
        assert value(gdb, "$pc") > value(gdb, "&_start")
        assert not value(gdb, "$cr0") >> 31
        assert "Breakpoint 1" in gdb.do("break long_mode")
        assert "long_mode" in gdb.do("continue")
        assert value(gdb, "$cr0") >> 31
        assert value(gdb, "$efer") & 0x500 == 0x500
        assert gdb.do("x/2i $pc").count("\n") >= 2
        gdb.do("delete")
        gdb.do("break scenario")
        gdb.do("continue")
        # Across address spaces.
        gdb.do("delete")
        gdb.do("break xi_space_load")
        seen = set()
        for _ in range(4):
            assert "Breakpoint" in gdb.do("continue")
            seen.add(value(gdb, "$cr3"))
        assert len(seen) > 2
        gdb.do("delete")
        assert "detach" in gdb.do("detach").lower()
        said = session.end()
        assert "gdb has detached" in said
        assert re.search(r"switch +long4 +\w+ +pass", said)
        assert session.status == 0
        assert session.left_behind() == []


@BOTH
def test_a_spinning_guest_is_interrupted_and_runs_on_to_its_time_limit(mode: str) -> None:
    with Debugging("hostile_loop", "--paging", "pae", "--mode", mode, "--time-limit", "2") as session:
        gdb = session.gdb()
        gdb.start("continue", "Continuing.")
        time.sleep(0.3)
        assert "SIGINT" in gdb.interrupt()
        first = value(gdb, "$pc")
        time.sleep(2.2)  # the time limit does not tick while somebody looks
        gdb.start("continue", "Continuing.")
        time.sleep(0.3)
        assert "SIGINT" in gdb.interrupt()
        assert abs(value(gdb, "$pc") - first) < 64
        gdb.do("detach")
        said = session.end()
        assert re.search(r"hostile_loop +pae +\w+ +timeout", said)
        assert session.status == 0
        assert session.left_behind() == []


@BOTH
def test_stores_to_a_page_table_are_followed_whether_the_guest_or_gdb_makes_them(mode: str) -> None:
    with Debugging("basic", "--paging", "long4", "--mode", mode, "--stop-at", "mapped, no flush needed") as session:
        assert "stands at checkpoint 'mapped, no flush needed'" in session.invitation
        gdb = session.gdb()
        # The guest's own: it is about to take a page away.
        gdb.do("break xi_set_entry")
        assert "Breakpoint 1" in gdb.do("continue")
        entry, page = value(gdb, "entry"), value(gdb, "$rdi")
        gdb.do("delete")
        assert value(gdb, f"*(unsigned long *){entry:#x}") & 1
        gdb.do(f"watch *(unsigned long *){entry:#x}")
        assert "New value = 0" in gdb.do("continue")
        assert "out of sync" in gdb.do(f"xi snapshot $xi_gpa({entry:#x})>>12")
        gdb.do("delete")
        gdb.do("break xi_invlpg")
        gdb.do("continue")
        page = value(gdb, "$rdi")
        gdb.do("finish")
        assert "no entries differ" in gdb.do(f"xi snapshot $xi_gpa({entry:#x})>>12")
        assert refused(gdb.do(f"xi walk {page:#x}"), "load ring 0")
        # gdb's: the page comes back, and nobody believes it until there is a flush.
        frame = value(gdb, "(unsigned long)frame[0]")
        gdb.do(f"set var *(unsigned long *){entry:#x} = {frame:#x} | 0x67")
        assert "out of sync" in gdb.do(f"xi walk {page:#x}")
        gdb.do("xi flush")
        walk = gdb.do(f"xi walk {page:#x}")
        assert "out of sync" not in walk
        assert f"{frame >> 12:#x}" in walk
        assert "<--" not in walk
        gdb.do(f"set var *(unsigned long *){entry:#x} = 0")
        gdb.do(f"xi flush {page:#x}")
        gdb.do("delete")
        gdb.do("detach")
        said = session.end()
        assert re.search(r"basic +long4 +\w+ +pass", said)
        assert session.status == 0


def lost(gdb: Gdb) -> bool:
    """Whether gdb hears, once it asks, that nobody is there any more."""
    told = gdb.do("stepi")
    return "Remote connection closed" in told or "Target disconnected" in told


def refused(walk: str, access: str) -> bool:
    """Whether the guest's tables refuse `access` (``load ring 0``), as `xi walk` tells it."""
    line = next(line for line in walk.splitlines() if line.strip().startswith(access))
    return line.split(access, 1)[1].strip().startswith("#PF")


@BOTH
def test_every_command_answers_in_a_real_session(mode: str, tmp_path: Path) -> None:
    with Debugging("basic", "--paging", "pae", "--mode", mode, "--stop-at", "20", "--logs", str(tmp_path)) as session:
        assert "stands after event #20 " in session.invitation
        gdb = session.gdb()
        assert "  20  " in gdb.do("monitor xi events 3")
        said = {
            name: gdb.do(f"monitor xi {name}")
            for name in (
                *("help", "walk $rip", "ranges guest", "ranges shadow", "ranges both", "find gfn=0x101", "code $rip 3"),
                *("spti 0", "backlinks 0x101", "pool", "decide $rip r s", "events 5", "diff 10 20", "audit", "stats"),
                *("dirty", "gpa $rip"),
            )
        }
        for name, text in said.items():
            assert text.strip(), name
            assert "Traceback" not in text, name
            assert "unknown" not in text, name
        assert "xi-walk" in gdb.do("help user-defined") or gdb.do("xi-walk $rip") == gdb.do("xi walk $rip")
        assert value(gdb, "$xi_gpa($pc)") == value(gdb, "$pc")
        assert "`help` lists them" in gdb.do("monitor xi nonsense")
        assert "kill" in gdb.do("monitor quit")
        gdb.do("kill")
        said_last = session.end()
        assert "ended from gdb" in said_last
        assert not list(tmp_path.rglob("*.xitrace"))
        assert session.status == 0
        assert session.left_behind() == []


@BOTH
def test_a_gdb_that_is_killed_leaves_the_run_to_its_verdict(mode: str) -> None:
    with Debugging("basic", "--paging", "nopae", "--mode", mode) as session:
        gdb = session.gdb()
        gdb.do("break scenario")
        gdb.do("continue")
        gdb.child.kill(signal.SIGKILL)
        said = session.end()
        assert "gdb is gone" in said
        assert re.search(r"basic +nopae +\w+ +pass", said)
        assert session.status == 0
        assert session.left_behind() == []


@BOTH
def test_a_killed_qemu_is_said_to_gdb_and_in_the_terminal(mode: str) -> None:
    with Debugging("basic", "--paging", "long4", "--mode", mode) as session:
        gdb = session.gdb()
        gdb.do("break scenario")
        gdb.do("continue")
        os.kill(session.qemu, signal.SIGKILL)
        said = session.end()
        assert lost(gdb)
        assert "QEMU" in said
        assert session.status not in (0, None)
        assert session.left_behind() == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_harness_leaves_nothing(how: signal.Signals) -> None:
    with Debugging("basic", "--paging", "long4") as session:
        gdb = session.gdb()
        gdb.do("break scenario")
        qemu = session.qemu
        os.kill(session.harness.pid, how)
        said = session.end()
        assert lost(gdb)
        assert "Traceback" not in said
        assert session.left_behind() == []
        assert command_of(qemu) == ""


def test_the_guest_s_end_is_said_to_gdb() -> None:
    with Debugging("hostile_triple", "--paging", "long4") as session:
        gdb = session.gdb()
        told = gdb.do("continue")
        assert "crash" in told
        assert "exited" in told
        assert re.search(r"hostile_triple +long4 +\w+ +crash", session.end())
        assert session.status == 0
