"""How records are put into lines."""

from __future__ import annotations

from harness.debug.commands.told import decision_lines, grouped, guest_entry, paragraph, span, with_notes
from harness.xi.decision import PLACE
from harness.xi.explain import decision


def test_entries() -> None:
    assert guest_entry(0) == "empty"
    assert guest_entry(0x5023) == "0x5000 P W A"
    assert guest_entry(0x5000) == "0x5000 -"


def test_runs() -> None:
    runs = grouped([3, 4, 5, 9, 11, 12], lambda one, other: other == one + 1)
    assert runs == [(3, 5), (9, 9), (11, 12)]
    assert [span(*run) for run in runs] == ["3-5", "9", "11-12"]
    assert span(16, 31, "#x") == "0x10-0x1f"
    assert grouped([], lambda one, other: True) == []


def test_notes_stand_whole_below_their_row() -> None:
    lines = with_notes(("a", "b"), [(("1", "2"), ["x" * 50 + " " + "y" * 90]), (("3", "4"), [])])
    assert lines == ["  a  b", "  1  2", "      " + "x" * 50, "          " + "y" * 90, "  3  4"]


def test_paragraphs_keep_within_the_width() -> None:
    lines = paragraph("word " * 60, 2)
    assert max(map(len, lines)) <= 120 and lines[0].startswith("  word") and lines[1].startswith("      word")


def test_all_rows_that_fit() -> None:
    features = {"store": "yes", "frame": "backed", "gpt": "yes", "unlogged": "no", "override": "no"}
    lines = decision_lines(decision(PLACE, features))
    assert lines[0] == "  fault: the shadow's part: store=yes frame=backed gpt=yes unlogged=no override=no"
    assert [line.split(" -> ")[1].split(":")[0] for line in lines[1:]] == ["SET_AD", "UNSYNC", "FILL"]
