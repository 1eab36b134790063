"""The insides as they are told: a sound engine has nothing wrong, and each kind of wrong is found when it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.x86.access import Access
from harness.xi.backlinks import HEAD
from harness.xi.pool import BACKLINKS, Spti
from tests.xi.domain import PS, RW, US, USED, A, D, Domain, P
from tests.xi.policies import lists_of
from tests.xi.storm import DATA, OTHER, TABLES, Storm

VA = 0x400000
LARGE = 0x4000_0000


class Watched(Storm):
    """A storm in which everything is told after every step."""

    def step(self) -> None:
        super().step()
        engine = self.engine
        for number in range(len(engine.sptis)):
            record = engine.describe_spti(number)
            assert record is not None
            for entry in record.get("entries", ()):
                assert not entry["wrong"], (record["role"], entry)
        for gfn in (*TABLES, *DATA, *OTHER):
            frame = engine.describe_backlinks(gfn)
            for spte in frame["sptes"]:
                assert not spte["wrong"], spte
            assert {va for spte in frame["sptes"] for va, _ in spte["addresses"]} == engine.addresses_of(gfn)
            engine.describe_snapshot(gfn)
        log = engine.describe_log()
        assert log is None or not log["wrong"]


@pytest.mark.parametrize("fill", ["demand", "eager"])
@pytest.mark.parametrize("mode", ["unpaged", "nopae", "pae", "long4", "long5"])
def test_nothing_is_wrong_in_a_sound_engine(mode: str, fill: str) -> None:
    Watched(mode, 48, 7, fill).rage(40)


def domain(**how: Any) -> Domain:
    """VA: read-only, and writable with its table in reach. LARGE: a 2 MiB page in one piece, and one in pieces."""
    made = Domain("long4", "eager", frames=2048, **how)
    made.map(VA, 0x500, P | US | A)
    made.map(VA + 0x1000, 0x501, USED)
    made.map(VA + 0x2000, 0x501, USED)
    made.map(VA + 0x3000, made.entry_at(VA) >> 12, USED)
    made.map(LARGE, 0x200, USED, 2)
    made.map(LARGE + 0x20_0000, 0, USED, 2)
    made.start()
    return made


def table_of(made: Domain, va: int, level: int = 1) -> Spti:
    """The SPTI whose SPTE `va` uses at `level`."""
    (step,) = (step for step in made.engine.describe_walk(va) if step["level"] == level)
    return made.engine.sptis[int(step["spti"])]


def wrong(made: Domain, va: int, level: int = 1) -> list[str]:
    """What is told to be wrong about that SPTE, by its table; and by nothing else there."""
    spti = table_of(made, va, level)
    record = made.engine.describe_spti(spti.index)
    assert record is not None
    index = va >> spti.shift & 511
    assert not [entry for entry in record["entries"] if entry["wrong"] and entry["index"] != index]
    (found,) = (entry["wrong"] for entry in record["entries"] if entry["index"] == index)
    return list(found)


def user_page(made: Domain, word: int) -> None:
    made.engine.q[word] ^= US


def writable(made: Domain, word: int) -> None:
    made.engine.q[word] |= RW


def other_frame(made: Domain, word: int) -> None:
    made.engine.q[word] ^= 0x1000


def not_the_guests(made: Domain, word: int) -> None:
    made.engine.q[word] = made.engine.q[word] & 0xFFF | made.frames << 12


def beyond_the_machine(made: Domain, word: int) -> None:
    made.engine.q[word] = made.engine.q[word] & 0xFFF | 1 << 39


def backlink_gone(made: Domain, word: int) -> None:
    made.engine.links.unlink(word)


def of_another(made: Domain, word: int) -> None:
    made.engine.q[word + BACKLINKS + 1 + (word & 511)] = HEAD | 0x700


def head_forgets(made: Domain, word: int) -> None:
    for slot in range(made.engine.links.slots):
        if lists_of(made.engine).heads[slot] == word + 1:
            lists_of(made.engine).heads[slot] = 0


def to_a_free_table(made: Domain, word: int) -> None:
    free = made.engine.sptis[made.engine.pool_memory.clean[0]]
    made.engine.q[word] = made.engine.q[word] & 0xFFF | free.mfn << 12


@pytest.mark.parametrize(
    ("va", "level", "damage", "told"),
    [
        (VA, 1, user_page, "not the rights of the snapshot's entry"),
        (VA, 1, writable, "not the rights of the snapshot's entry"),
        (VA + 0x3000, 1, writable, "is a guest table in sync"),
        (VA, 1, other_frame, "on the list of another target"),
        (VA, 1, not_the_guests, "which is not the guest's"),
        (VA, 1, beyond_the_machine, "which is not the guest's"),
        (VA, 1, backlink_gone, "on no list"),
        (VA, 1, of_another, "on the list of another target"),
        (VA, 1, head_forgets, "its neighbours on the list do not know it"),
        (VA, 2, to_a_free_table, "where no SPT in use is"),
        (VA, 2, beyond_the_machine, "where no SPT in use is"),
        (LARGE + 0x20_0000, 1, other_frame, "this piece of the page is gfn 0x0"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_what_is_wrong_with_an_spte(va: int, level: int, damage: Callable[[Domain, int], None], told: str) -> None:
    made = domain()
    assert wrong(made, va, level) == []
    spti = table_of(made, va, level)
    index = va >> spti.shift & 511
    damage(made, spti.base + index)
    record = made.engine.describe_spti(spti.index)
    assert record is not None
    (found,) = (entry["wrong"] for entry in record["entries"] if entry["index"] == index)
    assert any(told in line for line in found), found


def test_an_spte_of_an_entry_that_never_was() -> None:
    made = domain()
    spti = table_of(made, VA)
    spti.set_snapshot_entry(0, 0x700 << 12 | USED)
    assert wrong(made, VA) == ["not from the snapshot's entry: REPLACE, leads elsewhere now"]


def test_a_store_that_nothing_announced_is_a_change_in_sync() -> None:
    made = domain()
    gfn = made.entry_at(VA) >> 12
    made.poke(made.entry_at(VA), 0x505 << 12 | P | US | A, announce=False)
    (record,) = made.engine.describe_snapshot(gfn)
    assert record["state"] == "in sync" and record["guards"]
    (entry,) = record["entries"]
    assert entry["guest_index"] == 0 and entry["flush"]["rows"][0]["action"] == "REPLACE"


def test_a_snapshot_names_both_sptes_of_a_wide_entry() -> None:
    made = Domain("nopae", "eager")
    address = made.map(0xC000_0000, 0, P | RW | A | D, 2)
    made.start()
    made.poke(address, P | RW | US | A | D | PS)
    records = [record for record in made.engine.describe_snapshot(made.root) if record["entries"]]
    (record,) = records
    assert [(entry["index"], entry["guest_index"]) for entry in record["entries"]] == [(0, 0x300), (1, 0x300)]


def test_the_backlinks_of_a_frame() -> None:
    made = domain()
    record = made.engine.describe_backlinks(0x501)
    assert record["mfn"] == 0x501 and record["guards"] == 0 and record["logged"] is None
    assert sorted(spte["addresses"] for spte in record["sptes"]) == [
        [(VA + 0x1000, "rwxu")],
        [(VA + 0x2000, "rwxu")],
    ]
    pieces = made.engine.describe_backlinks(0x3)["sptes"]
    assert [spte["addresses"] for spte in pieces] == [[(LARGE + 0x20_3000, "rwxu")]]
    (whole,) = made.engine.describe_backlinks(0x203)["sptes"]
    assert whole["level"] == 2 and whole["addresses"] == [(LARGE + 0x3000, "rwxu")]
    assert made.engine.describe_backlinks(1 << 30)["mfn"] is None


def test_lists_that_lie() -> None:
    made = domain()
    spti = table_of(made, VA)
    first, second = made.engine.links.nodes(0x501)
    # The second one is passed over by the list of its frame.
    made.engine.links.unlink(second)
    found = {spte["index"]: spte["wrong"] for spte in made.engine.describe_backlinks(0x501)["sptes"]}
    assert found == {first & 511: [], second & 511: ["on no list: it has no backlink"]}
    # The list of frame 0x501 has an SPTE of another frame, which it then goes round for ever.
    lists_of(made.engine).heads[0x501] = spti.base + 1
    at = spti.base + BACKLINKS
    made.engine.q[at] = spti.base + 1
    sptes = made.engine.describe_backlinks(0x501)["sptes"]
    assert [spte["wrong"] for spte in sptes if spte["index"] == 0] == [["on the frame's list, and does not map it"]]


def test_a_list_that_leaves_the_pool() -> None:
    made = domain()
    lists_of(made.engine).heads[0x700] = len(made.engine.q) + 5
    assert made.engine.describe_backlinks(0x700)["sptes"] == []


def test_the_pool() -> None:
    made = domain()
    record = made.engine.describe_pool()
    assert record["clean"] + record["unclean"] + record["in_use"] == record["sptis"] == 64
    assert sum(group[3] for group in record["groups"]) == record["in_use"]
    assert ("direct", "long4", 1, 1, 1, 0, 0, 512) in record["groups"]
    assert [one["spti"] for one in record["next"]] == list(made.engine.pool_memory.lru)[1:]


def test_a_free_table_and_one_that_is_none() -> None:
    made = domain()
    free = made.engine.pool_memory.clean[0]
    assert made.engine.describe_spti(free) == {
        "spti": free,
        "mfn": made.engine.sptis[free].mfn,
        "state": "free",
        "zeroed": True,
    }
    assert made.engine.describe_spti(64) is None and made.engine.describe_spti(-1) is None


def test_the_dirty_log_is_told_and_goes_on() -> None:
    made = domain()
    assert made.engine.describe_log() is None
    made.engine.dirty_log_start()
    made.check(VA + 0x1000, Access.STORE)
    record = made.engine.describe_log()
    assert record == {"round": 1, "gfns": [0x501], "wrong": []}
    assert made.engine.describe_log() == record
    spti = table_of(made, VA)
    made.engine.q[spti.base] |= RW
    assert made.engine.describe_log() == record | {"wrong": [0x500]}
    assert made.engine.dirty_log_read().nonzero()[0].tolist() == [0x501]
