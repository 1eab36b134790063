"""The failure block holds everything that is needed to act, and points at the field that differs."""

from __future__ import annotations

from harness.check.render import render, side_by_side
from harness.check.target import Mismatch
from harness.report.record import RunRecord
from harness.x86.modes import LONG4
from tests.check.guest_tables import DATA, NX, small_guest
from tests.check.toy_engine import ToyEngine


class OffByOne(ToyEngine):
    def leaf(self, gfn: int, access: int) -> int:
        return super().leaf(gfn ^ (gfn == DATA), access)


def block(engine: type[ToyEngine], field: str) -> str:
    guest = small_guest(LONG4)
    guest.engine.__class__ = engine
    report = guest.checker.checkpoint(guest.stop())
    mismatch = next(one for one in report.mismatches if one.field == field)
    record = RunRecord("basic", "long4", seed=42, recent_events=[f"cr3_load {i}" for i in range(20)])
    record.repro = ["xi-harness run basic --paging long4 --seed 42", "xi-harness debug basic --paging long4"]
    return render(mismatch, record)


def test_all_of_it_is_there() -> None:
    text = block(OffByOne, "frame")
    for part in (
        "MISMATCH  probe: frame",
        "basic (long4, observe, engine xi), seed 42",
        "checkpoint  1 test",
        "0x0000100000000e",
        f"frame {DATA:#x}",
        f"shadow      frame {DATA ^ 1:#x}   <-- differs",
        "L4 table",
        "L1 table",
        "what the engine knows",
        "cr3_load 19",
        "xi-harness run basic --paging long4 --seed 42",
        "xi-harness debug",
    ):
        assert part in text
    assert "cr3_load 2\n" not in text
    assert text.isascii()


def test_a_caret_stands_under_the_frame_that_differs() -> None:
    lines = block(OffByOne, "frame").splitlines()
    at = next(i for i, line in enumerate(lines) if "^^^^" in line)
    assert lines[at].index("^") == lines[at - 1].rindex("0x")


def test_a_missing_flag_is_named() -> None:
    mismatch = Mismatch("probe", "verdict", "1 x", 0x1000, "fetch ring 0", "#PF", "frame 0x1", "#PF")
    row = {"level": 1, "table": 1, "index": 1, "note": ""}
    mismatch.guest_walk = [{**row, "entry": 0x1000 | 1 | NX, "flags": "P NX"}]
    mismatch.shadow_walk = [{**row, "entry": 0x1000 | 5, "flags": "P U"}]
    lines = render(mismatch, RunRecord("g", "pae")).splitlines()
    marked = next(line for line in lines if "lacks NX" in line)
    above = lines[lines.index(marked) - 1]
    assert marked.index("^") == above.rindex("U")


def test_three_different_answers_are_said_to_be() -> None:
    mismatch = Mismatch("probe", "frame", "1 x", 0, "load ring 0", "frame 0x1", "frame 0x2", "frame 0x3")
    assert "(all three differ)" in render(mismatch, RunRecord("g", "pae"))


def test_frames_that_are_named_are_compared_and_not_the_entries() -> None:
    row = {"level": 1, "table": 1, "index": 1, "note": "", "flags": "P"}
    guest, shadow = {**row, "entry": 0x5001, "gfn": 5}, {**row, "entry": 0x9001, "gfn": 5}
    assert not any("^" in line for line in side_by_side([guest], [shadow])), "another machine frame is the same gfn"
    assert any("^^^" in line for line in side_by_side([guest], [{**shadow, "gfn": 6}]))
