"""What is said follows from what was measured, whichever way it came out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.compare.measurement import Comparison, Domain, Measurement, Subject
from harness.compare.verdicts import Verdict, number, size, verdicts
from harness.work import Work
from tests.compare.made import RIVAL, XI, comparison, measurement, operation


def verdict(made: Comparison, topic: str, claim: str = "") -> Verdict:
    (found,) = [one for one in verdicts(made) if one.topic == topic and claim in one.claim]
    return found


def against(rival: Subject, us: float, words: int) -> Comparison:
    """xi's faults take 5 µs and 10 words."""
    own, other = measurement(XI, 1000, 10, 5.0, 4096), measurement(rival, 1000, words, us, 4096)
    return replace(comparison(), measurements=(own, other))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0421, "0.042"), (0.9996, "1.0"), (0.481, "0.48"), (3.14, "3.1"), (41.7, "42"), (12345.6, "12,346")],
)
def test_numbers_have_the_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_bytes() -> None:
    assert (size(4096), size(3 << 20)) == ("4 KiB", "3.0 MiB")


def test_the_headline_holds_where_the_ratio_says_so() -> None:
    found = verdict(against(RIVAL, 20.0, 45), "headline")
    assert found.claim == "a page fault is 4 times faster with xi than with xen302"
    assert found.holds is True
    assert "On faults (1,000 pages mapped) xen302 takes 4.0 times the time of xi for its shadow faults" in found.text
    assert "touches 4.5 times the words of tables (45 words a fault against 10)" in found.text
    assert "4 times or more in time in shadow_fault (4.0) and write_protect (4.0)." in found.text


def test_the_headline_does_not_hold_where_it_does_not() -> None:
    found = verdict(against(RIVAL, 19.0, 5), "headline")
    assert found.holds is False
    assert "takes 3.8 times the time" in found.text and "touches 0.50 times" not in found.text
    assert "touches 0.5 times the words" in found.text
    assert "below 4 times in time in all: shadow_fault (3.8) and write_protect (3.8)." in found.text


def test_of_another_rival_nobody_claimed_four_times() -> None:
    kvm = Subject("kvm")
    assert verdict(against(kvm, 6.0, 5), "headline").holds is True
    slower = verdict(against(kvm, 4.0, 5), "headline")
    assert slower.holds is False
    assert slower.claim == "a page fault is faster with xi than with kvm"


def test_how_the_ratio_grows_with_the_guest() -> None:
    found = verdict(comparison(), "headline")
    assert "As the guest grows (faults from 100 to 1,000 pages: in time 5.0 → 10, in work 4.0 → 8.0)." in found.text


def test_an_engine_that_tells_nothing_of_its_work_has_a_headline_by_time() -> None:
    made = against(RIVAL, 20.0, 45)
    quiet = replace(
        made.measurements[1],
        operations={name: replace(one, work=None) for name, one in made.measurements[1].operations.items()},
        whole=replace(made.measurements[1].whole, work=None),
    )
    text = verdict(replace(made, measurements=(made.measurements[0], quiet)), "headline").text
    assert "4.0 times the time of xi for its shadow faults (it tells nothing of its work)." in text
    assert "all else there it is 4.0 times the time." in text


@pytest.mark.parametrize(("last", "holds"), [(11, True), (13, False)])
def test_flat_is_flat_within_a_fifth(last: int, holds: bool) -> None:
    made = replace(comparison(), measurements=(measurement(XI, 100, 10, 5.0, 1), measurement(XI, 1000, last, 5.0, 1)))
    found = verdict(made, "growth")
    assert found.claim == "shadow_fault costs xi the same, however large the guest"
    assert found.holds is holds
    assert f"faults, 100 → 1,000 pages: xi 10 → {last} (5.0 → 5.0 µs)." in found.text


def test_growth_of_one_operation_is_one_verdict() -> None:
    more = [measurement(XI, each, 10, 5.0, 1, "mappings") for each in (100, 1000)]
    made = replace(comparison(), measurements=(*comparison().measurements, *more))
    assert "mappings, 100 → 1,000 pages: xi 10 → 10" in verdict(made, "growth").text


def test_where_it_is_not_the_guest_that_grows_nothing_is_claimed() -> None:
    found = [replace(one, knob="writes") for one in comparison().measurements]
    growth = verdict(replace(comparison(), measurements=tuple(found)), "growth")
    assert growth.holds is None and growth.claim == "how shadow_fault grows"


def test_searches_are_named_with_their_numbers() -> None:
    found = verdict(comparison(), "xi backlinks=none")
    assert "without backlinks" in found.claim and found.holds is None
    assert "50 % less memory in use (12 KiB against 24 KiB), and 16 KiB reserved instead of 32 KiB." in found.text
    assert (
        "It turns into searches: shadow_fault 10 → 1,000 words a call, 4.0 times the time (on faults); " in found.text
    )


def test_a_policy_that_makes_no_search_of_anything() -> None:
    usual = comparison().measurements[1]
    same = replace(usual, subject=Subject("xi", (("backlinks", "gpt-only"),)))
    text = verdict(replace(comparison(), measurements=(usual, same)), "xi backlinks=gpt-only").text
    assert "the same memory in use" in text
    assert "It turns nothing into a search." in text
    assert "The same work as before: shadow_fault and write_protect." in text


def test_what_dynamic_snapshots_cost_when_a_shadow_is_made() -> None:
    def making(subject: Subject, words: int, held: int) -> Measurement:
        one = measurement(subject, 1000, 10, 5.0, held, "fork")
        made = {"spti_make_shadow": replace(operation(10, 0, 1.0), work=Work(0, 10 * words, 0, 0, 0))}
        return replace(one, operations={**one.operations, **made})

    dynamic = Subject("xi", (("snapshots", "dynamic"),))
    made = replace(comparison(), measurements=(making(XI, 1, 8192), making(dynamic, 513, 4096)))
    text = verdict(made, "xi snapshots=dynamic").text
    assert "On fork: 50 % less memory in use" in text
    assert "It costs: spti_make_shadow 1.0 → 513 words a call, 1.0 times the time (on fork)." in text


@pytest.mark.parametrize(("beside", "holds"), [(90, True), (10, False)])
def test_a_quiet_domain_beside_a_greedy_one(beside: int, holds: bool) -> None:
    quiet = operation(10, 10, 5.0)
    domains = [
        Domain(pool, neighbour, faults, faults)
        for pool, greedy in (("reserved", quiet), ("shared", operation(beside, 10, 5.0)))
        for neighbour, faults in (("none", quiet), ("greedy", greedy))
    ]
    found = verdict(replace(comparison(), domains=tuple(domains)), "pool=shared")
    assert found.holds is holds
    assert f"With pools shared, a quiet domain beside a greedy one has {beside} faults, alone 10" in found.text
    assert "With pools reserved, a quiet domain beside a greedy one has 10 faults, alone 10" in found.text


def test_what_was_not_measured_is_not_spoken_of() -> None:
    nothing = replace(comparison(), measurements=(), domains=())
    assert verdicts(nothing) == []
    assert not [one for one in verdicts(replace(comparison(), domains=())) if one.topic == "pool=shared"]
