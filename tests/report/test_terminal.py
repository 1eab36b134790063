"""The terminal report: fixed columns, totals last, failures once, no control characters."""

from __future__ import annotations

import io

from rich.console import Console

from harness.report.failure import failure_block
from harness.report.live import PlainLines
from harness.report.terminal import COLUMNS, heading, live_lines, make_console, print_report, row
from tests.report.records import failed, passed, ran_both, ran_live


def _console() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return make_console(stream), stream


def test_cells_stand_under_their_headings() -> None:
    line, head = row(passed()).plain, heading().plain
    for name, cell in (("guest", "basic"), ("paging", "long4"), ("mode", "observe"), ("verdict", "pass")):
        assert line.index(cell) == head.index(name)
    assert line.index("34,567") + len("34,567") == head.index("checks") + len("checks")


def test_live_mode_adds_a_line_a_run_and_leaves_the_totals_last() -> None:
    console, stream = _console()
    print_report(console, [passed(), ran_live(), ran_live("churn")], 3.0)
    lines = stream.getvalue().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("live mode"))
    assert [line.split()[0] for line in lines[start + 1 : start + 3]] == ["basic", "churn"]
    assert lines[start + 3] == ""
    assert lines[-1].startswith("0 mismatches")
    for heading_, cell in (("exits", "12,345"), ("exits/s", "45,000"), ("taken/given", "7/6"), ("pool", "102 (5.0%)")):
        at = (
            lines[start].index(f" {heading_} " if heading_ != "pool" else "pool") + len(heading_) + (heading_ != "pool")
        )
        assert lines[start + 1][:at].endswith(cell)


def test_where_a_live_run_went_another_way_than_the_native_one_is_shown() -> None:
    block = failure_block(ran_both())
    assert "basic long4 (both, " in block
    assert "differences from the native run (41, first 2 shown):" in block
    assert "  fault, at 3 mapped, number 7: native #PF 0x3, live #PF 0x7\n" in block
    assert "  ending, at the end: native status \\x1b[2J, live shutdown\n" in block
    assert "xi-harness run basic --paging long4 --mode both --seed 7" in block


def test_what_was_compared_is_summed_up() -> None:
    console, stream = _console()
    print_report(console, [ran_both(), ran_both()], 3.0)
    assert "compared with native runs: 18 checkpoints, 8,642 faults; 82 differences\n" in stream.getvalue()


def test_why_live_mode_was_slow_is_said_once() -> None:
    records = [ran_live(), ran_live("churn"), ran_live("ad")]
    for record in records[1:]:
        record.live["pinned"] = "pinning is not permitted"
    lines = live_lines(records)
    assert len(lines) == 1 + 3 + 1
    assert lines[-1] == "pinning is not permitted"


def test_without_live_mode_nothing_is_said_of_it() -> None:
    console, stream = _console()
    print_report(console, [passed()], 3.0)
    assert "live" not in stream.getvalue()


def test_figures_that_a_run_does_not_have_are_none() -> None:
    (_, line) = live_lines([passed(mode="live", live={"exits": {}})])
    assert line.split()[2:] == ["0", "0", "0", "0", "0/0", "0", "0/0", "0", "0"]


def test_a_long_name_does_not_move_the_columns() -> None:
    assert row(passed("x" * 80)).plain.index("long4") == COLUMNS[0][1] + 2


def test_a_wrong_verdict_names_the_expected_one() -> None:
    assert "pass (not crash)" in row(passed(expected="crash")).plain


def test_a_pass_that_needs_explaining_is_explained() -> None:
    assert row(passed(reason="time limit of 15 s reached")).plain.endswith("  time limit of 15 s reached")
    assert "1 mismatch" not in row(failed()).plain, "the failure block says it"


def test_the_totals_come_last() -> None:
    console, stream = _console()
    print_report(console, [passed(), failed()], 3.0)
    lines = stream.getvalue().splitlines()
    assert lines[-3:] == [
        "2 runs (1 fail, 1 pass), 1 as expected, in 3.00 s",
        "2,400 events intercepted, 18 shadow faults handled; 69,134 probe checks, 69,134 checks in all",
        "1 mismatch, 1 audit failure, 1 interception miss",
    ]


def test_one_missing_qemu_is_reported_once() -> None:
    console, stream = _console()
    records = [passed(guest, verdict="error", reason="QEMU is not installed") for guest in ("basic", "large", "ad")]
    print_report(console, records, 0.1)
    assert stream.getvalue().count("QEMU is not installed") == 1
    assert "(and 2 more runs for the same reason)" in stream.getvalue()


def test_nothing_that_a_guest_prints_reaches_the_terminal_raw() -> None:
    console, stream = _console()
    print_report(console, [failed()], 3.0)
    assert all(char == "\n" or char.isprintable() for char in stream.getvalue())


def test_the_failure_block_has_what_is_needed_to_act() -> None:
    block = failure_block(failed())
    for part in (
        "perm pae",
        "seed 7",
        "0x0000000000401000",
        "F8",
        "gfn 0x42 changed unseen",
        "event 39",
        "/tmp/logs/perm.pae",
    ):
        assert part in block
    assert "xi-harness run perm --paging pae --seed 7" in block
    assert "xi-harness run basic --paging long4 --mode live --seed 7" in failure_block(ran_live())
    assert "remapped" in block
    assert "event 20\n" not in block  # only the newest events


def test_the_failure_block_names_the_trace_or_why_there_is_none() -> None:
    record = failed()
    assert "trace" not in failure_block(record)
    record.trace = "/tmp/perm-pae.xitrace"
    record.repro = ["xi-harness run perm", "xi-harness replay /tmp/perm-pae.xitrace"]
    lines = failure_block(record).splitlines()
    assert "trace kept in /tmp/perm-pae.xitrace" in lines
    assert lines[-2:] == [f"  {command}" for command in record.repro]
    record.trace, record.trace_lost = "", "No space left on device"
    assert "its trace was lost: No space left on device" in failure_block(record).splitlines()


def test_plain_lines_keep_the_order_of_the_batch() -> None:
    console, stream = _console()
    lines = PlainLines(console)
    lines.finished(1, passed("second"))
    assert stream.getvalue() == ""
    lines.finished(0, passed("first"))
    lines.finished(3, passed("fourth"))
    lines.close()
    words = [line.split()[0] for line in stream.getvalue().splitlines()]
    assert words == ["guest", "first", "second", "fourth"]


def test_a_lost_qemu_shows_its_command_and_its_last_words() -> None:
    reason = "QEMU ended (exit status 1)\n  command: qemu-system-x86_64 " + "-x " * 200 + "\n  stderr: no such file"
    block = failure_block(passed(verdict="error", reason=reason))
    assert "-x -x\n  stderr: no such file" in block.replace("-x \n", "-x\n")
