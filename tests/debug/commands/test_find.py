"""`find`: every mapping, and what the guest has changed meanwhile."""

from __future__ import annotations

import pytest

from harness.debug.commands.table import run_command
from harness.debug.commands.text import MARK
from harness.debug.scene import CommandError
from harness.xi import mappings
from tests.debug.commands.broken import silent
from tests.debug.commands.golden import check_commands
from tests.debug.commands.scene import ALIAS, CODE, DATA, HOLE, MFN_OF_GFN_0, long4, nopae
from tests.xi.domain import US, USED, A, P


def test_what_it_shows() -> None:
    check_commands(
        "find-long4",
        long4().scene(),
        "find 0x102040",
        "find gfn=5",
        f"find mfn={0x101 + MFN_OF_GFN_0:#x}",
        "find gfn=0x111",
        "find gfn=0x205",
        f"find gfn={HOLE.start:#x}",
        "find 0x40000000",
    )
    check_commands("find-nopae", nopae().scene(), "find 0x102040", "find gfn=3", "find gfn=0x205")


def test_the_three_ways_to_name_a_frame_are_one() -> None:
    scene = long4().scene()
    one = run_command(scene, "find 0x102000")
    assert one == run_command(scene, "find gfn=0x102") == run_command(scene, f"find mfn={0x102 + MFN_OF_GFN_0}")
    assert one == run_command(scene, "find pa=0x102000")
    assert f"{ALIAS:#018x}" in one and f"{DATA:#018x}" in one


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (0, "not mapped by the guest's tables"),
        (0x103 << 12 | USED, "gfn 0x103 in the guest's tables"),
        (0x102 << 12 | P | US | A, "r-x u in the guest's tables"),
    ],
)
def test_what_the_guest_changed_without_a_flush_is_marked(entry: int, told: str) -> None:
    guest = long4()
    guest.invlpg(CODE + 0x1000)
    assert MARK not in run_command(guest.scene(), "find gfn=0x102")
    guest.store(DATA, entry)
    (line,) = [line for line in run_command(guest.scene(), "find gfn=0x102").split("\n") if MARK in line]
    assert f"{DATA:#018x}" in line and line.endswith(f"{MARK} {told}")


def test_an_engine_that_does_not_explain_itself_tells_the_addresses() -> None:
    text = run_command(silent(long4()), "find gfn=0x102")
    assert "2 mappings" in text
    assert [line.split()[0] for line in text.split("\n")[2:4]] == [f"{DATA:#018x}", f"{ALIAS:#018x}"]
    assert [line.split()[2] for line in text.split("\n")[2:4]] == ["rw-", "r--"]


def test_more_mappings_than_are_told_are_owned_up_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mappings, "MOST", 1)
    assert "and more" in run_command(long4().scene(), "find gfn=0x102")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("find", "one frame, and just one"),
        ("find gfn=1 mfn=2", "just one"),
        ("find 1 2", "one word too many"),
        ("find gfn=abc", "0xabc"),
        ("find mfn=5", "machine frame 0x5 is not the guest's"),
        ("find spti=5", "spti= means nothing"),
    ],
)
def test_wrong_arguments(line: str, told: str) -> None:
    with pytest.raises(CommandError, match=told):
        run_command(long4().scene(), line)
