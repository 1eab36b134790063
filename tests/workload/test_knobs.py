"""Knobs: what they may be, and how they are named on a command line."""

from __future__ import annotations

import json

import pytest

from harness.workload.knobs import Knobs


def test_texts_become_values_of_their_kind() -> None:
    changed = Knobs().changed({"spaces": "3", "locality": "0.5", "mode": "pae"})
    assert (changed.spaces, changed.locality, changed.mode) == (3, 0.5, "pae")
    assert changed.tables == Knobs().tables


def test_they_go_into_a_document() -> None:
    assert json.loads(json.dumps(Knobs().flat())) == Knobs().flat()


def test_sizes_follow_from_them() -> None:
    knobs = Knobs(spaces=3, tables=5, fill=7)
    assert (knobs.leaves, knobs.pages) == (15, 105)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"colour": "3"}, "unknown knob 'colour'"),
        ({"spaces": "many"}, "is no int"),
        ({"spaces": "0"}, "at least 1"),
        ({"locality": "1.5"}, "0 .. 1"),
        ({"mode": "unpaged"}, "nopae"),
        ({"direct": "huge"}, "large or small"),
        ({"fill": "513"}, "512 entries"),
        ({"pool": "-1"}, "not negative"),
    ],
)
def test_what_no_guest_can_be_is_refused_in_one_line(values: dict[str, str], word: str) -> None:
    with pytest.raises(ValueError, match=word) as error:
        Knobs().changed(values)
    assert "\n" not in str(error.value)


def test_a_table_of_a_32_bit_guest_has_twice_the_entries() -> None:
    assert Knobs(mode="nopae", fill=1024).fill == 1024
