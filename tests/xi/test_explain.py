"""Explanations against the engine: the features, the row and the result are those that it then goes by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from harness.engine import AWAY, GENERAL_PROTECTION, MMIO, RETRY
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.bits import CR4_PKE, PTE_PK_SHIFT, error_code_text
from harness.xi.decision import PLACE, RESYNC, RIGHTS, TABLES, DecisionTable
from harness.xi.engine import XiEngine
from harness.xi.explain import decision, explain_access, explain_entry, resync_decision, rows_for
from harness.xi.pool import Spti
from tests.xi.domain import NX, PS, RW, US, USED, A, D, Domain, P
from tests.xi.storm import Storm

MODES = ("unpaged", "nopae", "pae", "long4", "long5")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_rows_found_are_the_action_of_the_compiled_table(table: DecisionTable) -> None:
    for features in table.combinations():
        action = 0
        rows = rows_for(table, features)
        for _, row in rows:
            action |= int(row.action)
        assert action == table.array[table.pack(**features)] == table.lookup[table.pack(**features)], features
        assert len(rows) == 1 or not table.first_match, features


def test_a_decision_is_a_record() -> None:
    features = {"was": "empty", "now": "large", "same": "no", "whole": "no", "fill": "yes"}
    assert decision(RESYNC, features) == {
        "table": "resync",
        "of": 13,
        "features": features,
        "rows": [
            {
                "number": 3,
                "when": {"was": "empty", "now": "large", "whole": "no"},
                "action": "DIVIDE",
                "why": "holds a GPT, or scattered frames",
            }
        ],
    }


class Spied:
    """A compiled table that notes what it is asked."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.asked: list[Any] = []

    def __getitem__(self, packed: Any) -> Any:
        self.asked.append(packed)
        return self.inner[packed]


def decided(asked: list[dict[str, str]]) -> list[dict[str, str]]:
    """The features of a decision, asked for once, or twice: where the short way of a fault does not lead."""
    assert asked[1:] in ([], asked[:1])
    return asked[:1]


def features_of(record: dict[str, Any] | None) -> list[dict[str, str]]:
    return [] if record is None else [record["features"]]


class Comparison:
    """Every decision of an engine explained before it is made, and compared with it after."""

    def __init__(self, engine: XiEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        self.counts: Counter[str] = Counter()
        self.spies: dict[str, Spied] = {}
        for table in TABLES:
            self.spies[table.name] = Spied(table.lookup)
            monkeypatch.setattr(table, "lookup", self.spies[table.name])
        self.many = Spied(RESYNC.array)
        monkeypatch.setattr(RESYNC, "array", self.many)
        self.fault = engine.shadow_fault
        monkeypatch.setattr(engine, "shadow_fault", self.shadow_fault)
        for name in ("resync_spte", "fill_page"):
            monkeypatch.setattr(engine, name, self.one_entry(getattr(engine, name)))
        self.resync_many = engine.resync_many
        monkeypatch.setattr(engine, "resync_many", self.many_entries)

    def asked(self, table: DecisionTable) -> list[dict[str, str]]:
        """What the table was asked since the last call."""
        spy = self.spies[table.name]
        out = [table.unpack(packed) for packed in spy.asked]
        spy.asked.clear()
        return out

    def shadow_fault(self, va: int, access: int) -> int:
        record = explain_access(self.engine, va, access)
        for table in (RIGHTS, PLACE):
            self.asked(table)
        code = self.fault(va, access)
        rights, place = decided(self.asked(RIGHTS)), decided(self.asked(PLACE))
        assert rights == features_of(record["rights"])
        self.counts["rights"] += len(rights)
        if record["behind"]:  # what is synchronised first can change what PLACE is asked
            assert len(place) == 1 and code == RETRY
            return code
        assert place == features_of(record["place"])
        self.counts["place"] += len(place)
        words = {RETRY: "RETRY", MMIO: "MMIO", AWAY: "AWAY", GENERAL_PROTECTION: "#GP"}
        wanted = words[code] if code < 0 else f"#PF {error_code_text(code)}"
        assert record["result"].partition(":")[0] == wanted and record["code"] == code
        return code

    def one_entry(self, real: Callable[..., None]) -> Callable[..., None]:
        """`resync_spte`, or `fill_page` whose third argument is a gfn and that always fills."""

        def resync(spti: Spti, index: int, entry: int, fill: int | bool, *force: bool) -> None:
            fills = True if real.__name__ == "fill_page" else bool(fill)
            record = resync_decision(self.engine, spti, index, entry, fills)
            assert record is not None
            self.asked(RESYNC)
            real(spti, index, entry, fill, *force)
            assert self.asked(RESYNC)[0] == record["features"]
            self.counts["entry"] += 1

        return resync

    def many_entries(self, spti: Spti, index: Any, entries: Any, fill: bool) -> None:
        records = [
            resync_decision(self.engine, spti, at, entry, fill)
            for at, entry in zip(index.tolist(), entries.tolist(), strict=True)
        ]
        self.many.asked.clear()
        self.resync_many(spti, index, entries, fill)
        asked = [RESYNC.unpack(packed) for packed in self.many.asked[0].tolist()]
        assert asked == [record["features"] for record in records if record is not None]
        self.counts["many"] += 1


@pytest.mark.parametrize("fill", ["demand", "eager"])
@pytest.mark.parametrize("mode", MODES)
def test_the_engine_goes_by_what_was_explained(mode: str, fill: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    for seed in (1, 3, 5):
        with monkeypatch.context() as patch:
            storm = Storm(mode, 48, seed, fill)
            comparison = Comparison(storm.engine, patch)
            storm.rage(100)
            counts += comparison.counts
    assert counts["place"] > 10, counts
    if mode != "unpaged":
        assert counts["rights"] > 20 and counts["entry"] > 10, counts


def test_many_changed_entries_at_once_are_explained_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made, va = Domain("long4", "eager"), 0x400000
    made.start()
    comparison = Comparison(made.engine, monkeypatch)
    for page in range(40):
        made.map(va + page * 0x1000, 601 + page % 3, (P if page % 7 else 0) | US | A | (RW | D if page % 2 else 0))
    made.flush()
    for page in range(20):
        made.map(va + page * 0x1000, 602 + page % 5, (P if page % 5 else 0) | US | A | (RW | D if page % 3 else 0))
    made.flush()
    assert comparison.counts["many"] == 2


# What the records say, in a guest whose every entry is known.

VA = 0x400000


def domain(**how: Any) -> Domain:
    made = Domain("long4", "demand", **how)
    made.map(VA, 0x100, P | US | A)
    made.map(VA + 0x1000, 0x101, USED | NX)
    made.start()
    return made


def row(record: dict[str, Any] | None) -> tuple[str, str]:
    assert record is not None
    (only,) = record["rows"]
    return only["action"], only["why"]


def test_an_access_that_the_guest_forbids() -> None:
    record = explain_access(domain().engine, VA, Access.USER_STORE)
    assert record["result"] == "#PF 0x7 [P W U]"
    assert row(record["rights"]) == ("PROTECTION", "read-only")
    assert record["place"] is None and record["path"] == []
    assert [level for level, _ in record["walk"]] == [4, 3, 2, 1]


def test_an_access_that_the_shadow_lacks() -> None:
    made = domain()
    record = explain_access(made.engine, VA + 0x1000, Access.STORE)
    assert [only["action"] for only in record["place"]["rows"]] == ["SET_AD", "FILL"]
    assert record["result"].startswith("RETRY")
    assert [row(step["resync"])[0] for step in record["path"]] == ["FILL"]
    made.run(VA + 0x1000, Access.STORE)
    path = explain_access(made.engine, VA + 0x1000, Access.STORE)["path"]
    assert [row(step["resync"])[0] for step in path] == ["REFLAG"] * 4
    assert not any(step["behind"] for step in path)


def test_a_path_that_has_fallen_behind() -> None:
    made = domain()
    made.run(VA, Access.USER_LOAD)
    made.map(VA, 0x105, P | US | A)
    record = explain_access(made.engine, VA, Access.USER_LOAD)
    assert record["behind"] and record["path"][-1]["behind"]
    assert row(record["path"][-1]["resync"]) == ("REPLACE", "leads elsewhere now")


def test_a_table_that_was_never_synchronised_is_not_behind() -> None:
    made = domain()
    made.run(VA, Access.USER_LOAD)
    spti = made.engine.sptis[made.engine.describe_walk(VA)[-1]["spti"]]
    made.engine.drop(spti, spti.base)
    spti.entries[:] = 0
    made.engine.set_out_of_sync(spti)
    spti.fresh = True
    record = explain_access(made.engine, VA, Access.USER_LOAD)
    assert not record["behind"] and record["path"][-1]["state"] == "fresh"
    assert row(record["path"][-1]["resync"]) == ("FILL", "new translation")


def test_a_key_that_forbids_stores() -> None:
    made = domain(cr4=CR4_PKE)
    made.map(VA + 0x2000, 0x102, USED | 5 << PTE_PK_SHIFT)
    made.flush()
    assert explain_access(made.engine, VA + 0x2000, Access.USER_STORE)["code"] == RETRY
    made.engine.set_pkru(2 << 2 * 5)
    record = explain_access(made.engine, VA + 0x2000, Access.USER_STORE)
    assert row(record["rights"]) == ("KEY", "the key forbids stores")
    assert record["result"] == "#PF 0x27 [P W U PK]"
    assert made.engine.shadow_fault(VA + 0x2000, Access.USER_STORE) == record["code"]


def test_accesses_that_need_no_table() -> None:
    made = domain()
    assert explain_access(made.engine, 1 << 60, Access.LOAD)["result"].startswith("#GP")
    made.map(VA + 0x2000, 0x5000, USED)
    record = explain_access(made.engine, VA + 0x2000, Access.LOAD)
    assert record["result"].startswith("MMIO") and record["path"] == []
    unpaged = Domain("unpaged")
    unpaged.start()
    record = explain_access(unpaged.engine, 0x3000, Access.LOAD)
    assert record["rights"] is None and record["walk"] == [] and record["place"] is not None
    assert [step["resync"] for step in record["path"]] == [None] * 2


def test_a_frame_that_is_away() -> None:
    made = domain()
    made.take(0x101)
    record = explain_access(made.engine, VA + 0x1000, Access.LOAD)
    assert record["result"] == "AWAY: gfn 0x101 is awaited"
    assert [only["action"] for only in record["place"]["rows"]] == ["AWAY"]


def test_an_entry_of_a_table() -> None:
    made = domain()
    made.run(VA, Access.USER_LOAD)
    address = made.map(VA, 0x105, P | US | A)
    (record,) = explain_entry(made.engine, address >> 12, (address & 0xFFF) >> 3)
    assert record["then"] == 0x100 << 12 | P | US | A and record["now"] == 0x105 << 12 | P | US | A
    assert row(record["flush"])[0] == "CLEAR" and row(record["fault"])[0] == "REPLACE"
    assert record["state"] == "out of sync" and not record["latched"]
    assert explain_entry(made.engine, 0x3FF, 0) == []


def test_a_page_directory_entry_of_32_bits_has_two_sptes() -> None:
    made = Domain("nopae")
    made.map(0x40_0000, 0x100, USED)
    made.map(0xC000_0000, 0, USED & ~PS, 2)
    made.start()
    both = explain_entry(made.engine, made.root, 1)
    assert [record["spte_index"] for record in both] == [2, 3]
    assert [row(record["flush"]) for record in both] == [("REFLAG", "same table: rights or A changed")] * 2
    assert all(record["fault"] is None for record in both)
    (quadrant,) = {record["spti"] for record in explain_entry(made.engine, made.root, 0x300)}
    assert quadrant != both[0]["spti"]


def test_the_pdptes_count_when_cr3_is_loaded() -> None:
    made = Domain("pae")
    made.map(VA, 0x100, USED)
    made.start()
    (record,) = explain_entry(made.engine, made.root, 0)
    assert record["latched"]
    assert explain_entry(made.engine, made.root, 4) == []


def test_asking_changes_nothing() -> None:
    storm = Storm("long4", 40, 11, "demand")
    storm.rage(40)
    engine = storm.engine
    engine.dirty_log_start()

    def everything() -> tuple[object, ...]:
        pool = engine.pool_memory
        return (
            pool.words.tobytes(),
            list(pool.lru),
            list(pool.clean),
            [spti.synced for spti in engine.sptis],
            engine.counters.flat(),
            engine.guarded_array.tobytes(),
            engine.logged_array.tobytes(),
            storm.memory.bytes.tobytes(),
            bytes(engine.dirty),
            engine.watch_changes(),
        )

    engine.watch_changes()
    before = everything()
    for number in range(len(engine.sptis) + 1):
        engine.describe_spti(number)
    for gfn in (*engine.gpts, 601, 5000):
        engine.describe_backlinks(gfn)
        engine.describe_snapshot(gfn)
        for index in range(0, 512, 37):
            engine.explain_entry(gfn, index)
    for _ in range(20):
        for access in ALL_ACCESSES:
            engine.explain_access(storm.an_address(), access)
    engine.describe_pool()
    log = engine.describe_log()
    assert log is not None and not log["wrong"]
    assert everything() == before
