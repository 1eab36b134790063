"""`ranges`: runs that are whole and right, filters, and where guest and shadow differ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from harness.debug.commands import runs as runs_module
from harness.debug.commands.ranges import SHOWN
from harness.debug.commands.runs import differences, guest_runs, shadow_runs
from harness.debug.commands.table import run_command
from harness.debug.commands.text import MARK
from harness.debug.commands.views import guest_path
from harness.debug.scene import CommandError
from harness.x86.access import Access
from harness.x86.bits import PTE_ADDR, PTE_NX, PTE_RW
from harness.x86.walk import EXECUTABLE, MAPPED, USER, WRITABLE
from tests.debug.commands.golden import check_commands
from tests.debug.commands.scene import CODE, DATA, KERNEL, Scripted, long4, nopae
from tests.debug.commands.test_walk import spte
from tests.xi.domain import US, USED, A, Domain, P


def test_what_it_shows() -> None:
    for name, guest in (("long4", long4()), ("nopae", nopae())):
        check_commands(
            f"ranges-{name}",
            guest.scene(),
            "ranges",
            "ranges guest u w",
            "ranges ro",
            "ranges shadow",
            "ranges shadow s",
            "ranges both",
            "ranges both has=start+0x1000",
            "ranges has=counter",
            "ranges range=0x401000:0x403000",
            "ranges nx",
        )


@pytest.mark.parametrize("make", [long4, nopae])
def test_the_guests_runs_are_what_single_walks_say(make: Callable[[], Scripted]) -> None:
    scene = make().scene()
    runs = guest_runs(scene)
    pages = 0
    for first, length, gfn, rights in zip(runs.first, runs.pages, runs.gfn, runs.rights, strict=True):
        for into in {0, int(length) // 2, int(length) - 1}:
            path = guest_path(scene, int(first) + into << 12)
            assert (path.outcome, path.gfn, path.rights) == (MAPPED, int(gfn) + into, int(rights))
        for outside in (int(first) - 1, int(first + length)):
            path = guest_path(scene, (outside << 12) % (1 << 64))
            joins = (
                path.outcome == MAPPED and path.rights == int(rights) and path.gfn == int(gfn) + outside - int(first)
            )
            assert not joins, "a run ends where rights change, or frames do not go on"
        pages += int(length)
    assert pages == 1031


@pytest.mark.parametrize("make", [long4, nopae])
def test_the_shadows_runs_are_what_the_hardware_does(make: Callable[[], Scripted]) -> None:
    guest = make()
    scene = guest.scene()
    runs = shadow_runs(scene)
    told: dict[int, tuple[int, int]] = {}
    for first, length, gfn, rights in zip(runs.first, runs.pages, runs.gfn, runs.rights, strict=True):
        told |= {int(first) + i: (int(gfn) + i, int(rights)) for i in range(int(length))}
    kernel = 0xC000_0000 if make is nopae else KERNEL
    pages = [start + i for start in (CODE >> 12, kernel >> 12) for i in range(-2, 20)] + [(kernel >> 12) + 0x3FF]
    for page in pages:
        for access in Access:
            frame = guest.domain.hardware(page << 12, access).frame
            gfn, rights = told.get(page, (-1, 0))
            allowed = page in told
            allowed &= not access.is_user or bool(rights & USER)
            allowed &= not access.is_store or bool(rights & WRITABLE)
            allowed &= not access.is_fetch or bool(rights & EXECUTABLE)
            assert (frame is not None) == allowed, f"{page:#x} {access.text}"
            if frame is not None:
                assert guest.domain.engine.p2m.m2p[frame] == gfn
    assert len(told) > 500


def test_runs_do_not_reach_over_the_hole_between_the_halves() -> None:
    domain = Domain("long4", frames=1024)
    domain.map(0x7FFF_FFFF_F000, 300)
    domain.map(0xFFFF_8000_0000_0000, 301)
    domain.map(0xFFFF_FFFF_FFFF_F000, 302)
    guest = Scripted("two pages side by side in the tables", domain)
    guest.start()
    for runs in (guest_runs(guest.scene()), shadow_runs(guest.scene())):
        assert [hex(int(first)) for first in runs.first] == ["0x7ffffffff", "0xffff800000000", "0xfffffffffffff"]
    assert "0xffffffffffffffff" in run_command(guest.scene(), "ranges")


def test_both_is_silent_about_what_is_alike_and_marks_what_must_not_be() -> None:
    guest = nopae()
    assert MARK not in run_command(guest.scene(), "ranges both")
    table, index = spte(guest, CODE)
    table[index] |= np.uint64(PTE_RW)
    table, index = spte(guest, DATA + 0x1000)
    table[index] = table[index] & ~np.uint64(PTE_ADDR) | np.uint64(0x3A1000)
    table, index = spte(guest, DATA + 0x6000)
    table[index] = np.uint64(0x1234567)
    lines = run_command(guest.scene(), "ranges both").split("\n")
    marks = [line for line in lines if line.endswith(MARK)]
    assert [line.split()[0] for line in marks] == [f"{va:#018x}" for va in (CODE, DATA + 0x1000, DATA + 0x6000)]
    assert "rw" in marks[0] and "0x3a1" in marks[1] and "?" in marks[2]
    assert lines.index(marks[-1]) < next(at for at, line in enumerate(lines) if "405000" in line), "marks come first"
    assert "out of sync" not in "\n".join(lines)


def test_a_shadow_that_executes_what_is_not_executable_is_marked() -> None:
    guest = long4()
    table, index = spte(guest, DATA)
    table[index] &= np.uint64(PTE_NX - 1)
    marks = [line for line in run_command(guest.scene(), "ranges both").split("\n") if line.endswith(MARK)]
    assert [line.split()[0] for line in marks] == [f"{CODE + 0x1000:#018x}", f"{DATA:#018x}"]


def test_differences_cover_each_page_once() -> None:
    scene = long4().scene()
    guest, shade = guest_runs(scene), shadow_runs(scene)
    rows, same = differences(scene, guest, shade)
    assert same + int(rows["pages"][rows["guest_maps"]].sum()) == int(guest.pages.sum())
    assert same + int(rows["pages"][rows["shadow_maps"]].sum()) == int(shade.pages.sum())
    assert (np.diff(rows["first"]) >= rows["pages"][:-1]).all()


def test_a_supervisor_that_writes_read_only_pages_is_no_difference() -> None:
    """CR0.WP=0: the shadow opens the page to the supervisor alone, the hardware's CR0.WP being set."""
    domain = Domain("long4", wp=False)
    domain.map(CODE, 300, P | US | A)
    guest = Scripted("without CR0.WP", domain)
    guest.start()
    guest.touch(CODE, Access.STORE)
    assert "rw- s" in run_command(guest.scene(), "ranges shadow").replace("rwx", "rw-")
    assert MARK not in run_command(guest.scene(), "ranges both")


def test_an_unpaged_guest_maps_its_memory_to_itself() -> None:
    guest = Scripted("unpaged", Domain("unpaged"))
    guest.start()
    assert "0x0..0x3ff" in run_command(guest.scene(), "ranges")
    assert MARK not in run_command(guest.scene(), "ranges both")


def test_filters_pick_runs_and_ranges_clip_them() -> None:
    scene = nopae().scene()
    assert "2 pages" in run_command(scene, "ranges range=0x401000:0x403000")
    assert "0 runs" in run_command(scene, "ranges range=0x500000:0x600000")
    assert "0xc0000000" in run_command(scene, "ranges s").replace("0x00000000c", "0xc")
    assert "0 runs" in run_command(scene, "ranges nx"), "there is no NX in this mode"
    assert "5 pages" in run_command(scene, f"ranges has={DATA + 0x2ABC:#x}")
    assert "0x102..0x106" in run_command(scene, "ranges u w x")


def test_long_lists_are_cut_and_say_so() -> None:
    domain = Domain("long4", frames=2048, sptis=64)
    for page in range(2 * SHOWN + 6):
        domain.map(CODE + page * 0x2000, 0x200 + page % 8, USED)
    guest = Scripted("many", domain)
    guest.start()
    text = run_command(guest.scene(), "ranges")
    assert f"{2 * SHOWN + 6} runs" in text and f"... and {SHOWN + 6} more" in text


def test_more_tables_than_are_looked_at_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "TABLES_PER_LEVEL", 1)
    for line in ("ranges", "ranges shadow", "ranges both"):
        assert "runs are missing" in run_command(long4().scene(), line)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ranges guest shadow", "only one of"),
        ("ranges z", "none of"),
        ("ranges w ro", "nothing can be w and ro"),
        ("ranges range=1", "no range A:B"),
        ("ranges range=2:1", "is empty"),
        ("ranges has=1 range=1:2", "not both"),
        ("ranges has=", "no value"),
        ("ranges has=1 has=2", "twice"),
        ("ranges at=1", "at= means nothing"),
        ("ranges u s w x ro nx guest both", "one word too many"),
    ],
)
def test_wrong_arguments(line: str, told: str) -> None:
    with pytest.raises(CommandError, match=f"{told}[\\s\\S]*usage: ranges"):
        run_command(long4().scene(), line)
