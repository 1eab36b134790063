"""The tables and sentences that people read."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from harness.compare.measurement import FILL, Comparison, Left
from harness.compare.terminal import count, milliseconds, print_comparison, times, titled_tables
from harness.report.terminal import make_console
from tests.compare.made import XI, comparison, measurement, operation


def printed(made: Comparison) -> list[str]:
    stream = io.StringIO()
    print_comparison(make_console(stream), made)
    return stream.getvalue().splitlines()


def below(lines: list[str], title: str) -> list[str]:
    """The lines after the title that begins so, up to the next empty one."""
    start = next(number for number, each in enumerate(lines) if each.startswith(title))
    end = next((number for number, each in enumerate(lines) if number > start and not each), len(lines))
    return lines[start + 1 : end]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0, "0"), (7, "7"), (7.25, "7.2"), (12345.6, "12,346"), (2000000, "2,000,000")]
)
def test_counts(value: float | None, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0421, "0.042×"), (0.5, "0.50×"), (3.14159, "3.14×"), (1234.5, "1,234×")]
)
def test_ratios(value: float | None, text: str) -> None:
    assert times(value) == text


def test_no_number_is_cut_off_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    wide = printed(comparison())
    monkeypatch.setenv("COLUMNS", "40")
    assert printed(comparison()) == wide


def test_milliseconds() -> None:
    assert (milliseconds(None), milliseconds(1234567.0)) == ("-", "1,234.6")


def test_the_heading_says_what_the_numbers_are() -> None:
    lines = printed(comparison())
    assert lines[0] == "xi, xen302, 5 measurements in 3.00 s on a processor, Python 3.11"
    assert "Words are 8-byte words of tables touched" in lines[1]
    assert "each call's fastest of 2 rounds" in lines[2]


def test_operations_by_engines() -> None:
    table = below(printed(comparison()), "Operations")
    assert table[0].split()[:4] == ["operation", "engine", "calls", "words"]
    assert table[1].split() == ["shadow_fault", "xi", "100", "10", "10", "0", "5", "5", "0.5"]
    assert " ".join(table[2].split()) == "on faults xen302 100 80 80 0 50 50 5.0 8.00× 10.00×"
    assert table[3].split()[:2] == ["write_protect", "xi"]


def test_an_engine_that_did_not_do_it_or_does_not_tell_has_dashes() -> None:
    made = comparison()
    plain = replace(
        made.measurements[3],
        operations={"shadow_fault": replace(operation(100, 1, 50.0), work=None, words_at=())},
        whole=replace(operation(120, 1, 50.0), work=None),
        peak=None,
    )
    lines = printed(replace(made, measurements=(*made.measurements[:3], plain)))
    table = below(lines, "Operations")
    assert " ".join(table[2].split()) == "on faults xen302 100 - - - 50 50 5.0 - 10.00×"
    assert table[4].split() == ["on", "faults", "xen302", *"-" * 9]
    rival = below(lines, "All that was asked")[2]
    assert " ".join(rival.split()) == "xen302 120 - 6.0 - 10.00× 1.50×"


def test_what_faults_came_to_is_set_in() -> None:
    one = measurement(XI, 1000, 10, 5.0, 4096)
    told = replace(one, operations={**one.operations, FILL: operation(60, 10, 5.0)})
    table = below(printed(replace(comparison(), measurements=(told,))), "Operations")
    assert table[2].startswith("  fill")


def test_growth() -> None:
    table = below(printed(comparison()), "Growth: shadow_fault on faults, by pages")
    assert table[0].split() == ["engine", "100", "1,000", "last", "by", "first"]
    assert table[1].split() == ["words", "xi", "10", "10", "1.00×"]
    assert table[2].split() == ["xen302", "40", "80", "2.00×"]
    assert table[3].split() == ["µs", "p50", "xi", "5", "5", "1.00×"]


def test_memory() -> None:
    table = below(printed(comparison()), "Memory on faults")
    assert table[1].split() == ["xi", "used", "12", "KiB", "24", "KiB"]
    assert table[2].split() == ["reserved", "16", "KiB", "32", "KiB"]
    assert table[3].split() == ["xen302", "used", "6", "KiB", "12", "KiB"]
    assert len(table) == 4  # it reserves nothing


def test_policies_stand_beside_the_defaults() -> None:
    table = below(printed(comparison()), "Policies of xi")
    assert table[0].split() == ["operation", "on", "defaults", "backlinks=none"]
    assert table[1].split() == ["shadow_fault", "faults", "10", "1,000", "4.00×"]
    assert table[-2].split() == ["memory", "in", "use", "faults", "24", "KiB", "12", "KiB"]
    assert table[-1].split() == ["reserved", "faults", "32", "KiB", "16", "KiB"]


def test_domains() -> None:
    table = below(printed(comparison()), "A quiet domain's faults")
    assert table[1].split()[:4] == ["reserved", "none", "10", "10"]
    assert table[2].split()[:4] == ["shared", "greedy", "90", "10"]


def test_verdicts_come_last_and_say_whether_it_holds() -> None:
    lines = printed(comparison())
    headline = next(each for each in lines if each.startswith("headline: "))
    assert headline.startswith(
        "headline: “a page fault is 4 times faster with xi than with xen302”. It holds. On faults"
    )
    assert lines.index(headline) > max(number for number, each in enumerate(lines) if "×" in each and "→" not in each)


def test_what_is_missing_is_told_and_a_hostile_reason_does_no_harm() -> None:
    left = (
        Left("kvm", "faults pages=100", "wrong at 0x1000\x1b[2J\nand on", True),
        Left("every engine", "trace:churn/long4", "no QEMU", False),
    )
    lines = printed(comparison(left=left))
    assert "WRONG: kvm on faults pages=100: wrong at 0x1000\\x1b[2J and on" in lines
    assert "not measured: every engine on trace:churn/long4: no QEMU" in lines


def test_nothing_measured_is_no_table() -> None:
    nothing = replace(comparison(), measurements=(), domains=())
    assert not list(titled_tables(nothing))
    assert len([each for each in printed(nothing) if each]) == 3
