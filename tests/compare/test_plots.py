from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from harness.compare.measurement import Comparison
from harness.compare.plots import Picture, pictures
from tests.compare.made import comparison

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn() -> dict[str, Picture]:
    return {picture.name: picture for picture in pictures(comparison())}


def test_all_are_drawn_of_what_was_measured(drawn: dict[str, Picture]) -> None:
    assert list(drawn) == ["fault-cost", "growth", "latency", "memory", "policies", "domains"]


def test_each_is_one_element_with_ids_of_its_own(drawn: dict[str, Picture]) -> None:
    seen: set[str] = set()
    for picture in drawn.values():
        root = ElementTree.fromstring(picture.svg)
        assert root.tag == f"{SVG}svg"
        clips = {element.get("id", "") for element in root.iter(f"{SVG}clipPath")}
        assert clips and not clips & seen
        seen |= clips


def words(picture: Picture) -> str:
    return " ".join("".join(element.itertext()) for element in ElementTree.fromstring(picture.svg).iter(f"{SVG}text"))


@pytest.mark.parametrize("name", ["fault-cost", "growth", "latency", "memory"])
def test_every_engine_has_a_line(drawn: dict[str, Picture], name: str) -> None:
    assert {"xi", "xen302"} <= set(words(drawn[name]).split())


def test_policies_are_told_by_the_default(drawn: dict[str, Picture]) -> None:
    text = words(drawn["policies"])
    assert "backlinks=none: fault on faults" in text
    assert re.search(r"\b100\b", text)  # a hundred times the words
    assert re.search(r"\b50\b", text)  # half the memory


def test_domains_are_told_apart(drawn: dict[str, Picture]) -> None:
    text = words(drawn["domains"])
    assert "reserved pool, neighbour: none" in text
    assert "shared pool, neighbour: greedy" in text
    assert re.search(r"\b90\b", text)


def names(made: Comparison) -> list[str]:
    return [picture.name for picture in pictures(made)]


def test_what_was_not_measured_is_not_drawn() -> None:
    whole = comparison()
    one_size = tuple(one for one in whole.measurements if one.size == 1000 and not one.subject.policies)
    assert names(replace(whole, measurements=one_size, domains=())) == ["latency"]
    assert names(replace(whole, measurements=(), domains=())) == []


def test_engines_that_tell_nothing_of_their_work_have_times() -> None:
    whole = comparison()
    untold = tuple(
        replace(
            one,
            peak=None,
            operations={name: replace(each, work=None, words_at=()) for name, each in one.operations.items()},
            whole=replace(one.whole, work=None, words_at=()),
        )
        for one in whole.measurements
    )
    assert names(replace(whole, measurements=untold, domains=())) == ["fault-cost", "growth", "latency"]
