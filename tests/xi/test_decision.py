"""The decision tables, exhaustively: each combination against a plain statement of what must happen."""

from __future__ import annotations

import pytest

from harness.xi.decision import (
    NO_YES,
    PLACE,
    RESYNC,
    RIGHTS,
    TABLES,
    UNDEFINED,
    DecisionTable,
    Feature,
    Resync,
    Row,
    Step,
    Verdict,
    text,
)


def wanted_resync(c: dict[str, str]) -> Resync:
    gone = Resync.CLEAR if c["was"] == "leaf" else Resync.UNLINK
    if c["was"] == "empty":
        if c["now"] == "absent" or c["fill"] == "no":
            return Resync.KEEP
        return Resync.DIVIDE if c["now"] == "large" and c["whole"] == "no" else Resync.FILL
    if c["now"] == "absent":
        return gone
    kinds = {"leaf": ("leaf", "large"), "divided": ("large",), "table": ("table",)}[c["was"]]
    if c["same"] == "yes" and c["now"] in kinds:
        must_divide = c["was"] == "leaf" and c["now"] == "large" and c["whole"] == "no"
        return Resync.DIVIDE if must_divide else Resync.REFLAG
    return Resync.REPLACE if c["fill"] == "yes" else gone


def test_every_resync_combination() -> None:
    for combination in RESYNC.combinations():
        assert RESYNC.lookup[RESYNC.pack(**combination)] == wanted_resync(combination), combination


def wanted_verdict(c: dict[str, str]) -> Verdict:
    def on(name: str) -> bool:
        return c[name] == "yes"

    if c["walk"] != "complete":
        return {"absent": Verdict.NOT_PRESENT, "reserved": Verdict.RESERVED, "away": Verdict.AWAY}[c["walk"]]
    data = c["kind"] != "fetch"
    store = c["kind"] == "store"
    if on("user") and not on("us"):
        return Verdict.PROTECTION
    if data and on("us"):
        no_write = on("key_wd") and (on("user") or on("wp"))
        if on("key_ad") or (store and no_write):
            return Verdict.KEY
    refused = (
        (c["kind"] == "fetch" and on("nx"))
        or (store and not on("rw") and (on("user") or on("wp")))
        or (not on("user") and on("us") and on("smap" if data else "smep"))
    )
    return Verdict.PROTECTION if refused else Verdict.ALLOW


def test_every_combination_of_rights() -> None:
    seen = set()
    for combination in RIGHTS.combinations():
        verdict = wanted_verdict(combination)
        seen.add(verdict)
        assert RIGHTS.lookup[RIGHTS.pack(**combination)] == verdict, combination
    assert seen == set(Verdict)


def test_every_place_combination() -> None:
    for c in PLACE.combinations():
        steps = Step(PLACE.lookup[PLACE.pack(**c)])
        backed, store = c["frame"] == "backed", c["store"] == "yes"
        assert (Step.SET_AD in steps) == (c["frame"] != "away"), "what is away leaves no trace until it is back"
        assert (Step.MMIO in steps) == (c["frame"] == "none")
        assert (Step.AWAY in steps) == (c["frame"] == "away")
        assert (Step.FILL in steps) == backed
        assert (Step.UNSYNC in steps) == (backed and store and c["gpt"] == "yes")
        assert (Step.LOG in steps) == (backed and store and c["unlogged"] == "yes")
        assert (Step.OVERRIDE in steps) == (backed and c["override"] == "yes")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_row_decides_something(table: DecisionTable) -> None:
    """A row that no combination reaches would be a decision that cannot be tested."""
    for left_out in range(len(table.rows)):
        rows = table.rows[:left_out] + table.rows[left_out + 1 :]
        try:
            other = DecisionTable("without one row", table.features, rows, table.first_match)
        except ValueError:
            continue
        assert other.lookup != table.lookup, table.rows[left_out]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_indices_that_mean_nothing_decide_nothing(table: DecisionTable) -> None:
    legal = {table.pack(**combination) for combination in table.combinations()}
    for index, action in enumerate(table.lookup):
        assert (action == UNDEFINED) == (index not in legal)
        if index in legal:
            assert table.pack(**table.unpack(index)) == index


def test_a_table_with_a_hole_is_refused() -> None:
    feature = Feature("store", NO_YES)
    with pytest.raises(ValueError, match="no row for"):
        DecisionTable("hole", (feature,), (Row(Verdict.ALLOW, {"store": "yes"}, "only half"),))
    with pytest.raises(ValueError, match="unknown feature"):
        DecisionTable("typo", (feature,), (Row(Verdict.ALLOW, {"stor": "yes"}, "typo"),))


def test_the_tables_print_every_row_with_its_reason() -> None:
    printed = text()
    for table in TABLES:
        assert table.name in printed
        for row in table.rows:
            assert row.why in printed
