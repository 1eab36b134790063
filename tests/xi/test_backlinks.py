"""Lists of SPTEs by target: what is linked is found, what is unlinked is not, one by one or many at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.xi.backlinks import Backlinks
from harness.xi.pool import Pool, PoolFrames

FRAMES = 600


def make() -> Backlinks:
    return Backlinks(Pool(PoolFrames(12 * 4, 4096), "idle"), FRAMES)


def word(spti: int, index: int) -> int:
    return spti * 2048 + index


def test_slots_of_different_targets_differ() -> None:
    links = make()
    slots = [links.slot(1, gfn) for gfn in range(FRAMES)]
    slots += [links.slot(2, gfn) for gfn in range(0, FRAMES, 512)]
    slots += [links.slot(3, 0)] + [links.parents(k) for k in range(12)]
    assert len(set(slots)) == len(slots) == links.slots
    assert links.slot(2, 512) == links.slot(2, 599)


def test_mapping_finds_the_large_pages_around_a_frame() -> None:
    links = make()
    links.link(word(0, 1), links.slot(1, 520))
    links.link(word(1, 2), links.slot(2, 512))
    links.link(word(2, 3), links.slot(3, 0))
    links.link(word(2, 4), links.slot(2, 0))
    assert list(links.mapping(520)) == [(word(0, 1), 1), (word(1, 2), 2), (word(2, 3), 3)]


def test_an_unlinked_node_leaves_no_trace() -> None:
    links = make()
    slot = links.slot(1, 5)
    words = [word(k, 7) for k in range(5)]
    for each in words:
        links.link(each, slot)
    assert links.nodes(slot) == words[::-1]
    for each in (words[2], words[4], words[0]):
        links.unlink(each)
    assert links.nodes(slot) == [words[3], words[1]]
    links.link(words[2], links.parents(3))
    assert sorted(links.leaves().tolist()) == [words[1], words[3]], "an SPTE that leads to a table is no leaf"
    links.unlink(words[2])
    links.unlink(words[1])
    links.unlink(words[3])
    assert links.empty(slot)
    assert not links._pool.words.any()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_many_at_once_is_the_same_as_one_by_one(data: st.DataObject) -> None:
    links = make()
    model: dict[int, set[int]] = {}
    linked: dict[int, dict[int, int]] = {k: {} for k in range(3)}
    for _ in range(data.draw(st.integers(1, 6))):
        k = data.draw(st.integers(0, 2))
        free = [i for i in range(40) if i not in linked[k]]
        targets = data.draw(st.integers(1, 40))
        chosen = data.draw(st.lists(st.sampled_from(free), unique=True)) if free else []
        slots = [data.draw(st.integers(0, targets - 1)) for _ in chosen]
        links.link_many(np.array([word(k, i) for i in chosen], np.int64), np.array(slots, np.int64))
        for i, slot in zip(chosen, slots, strict=True):
            linked[k][i] = slot
            model.setdefault(slot, set()).add(word(k, i))
        k = data.draw(st.integers(0, 2))
        if linked[k]:
            gone = data.draw(st.lists(st.sampled_from(sorted(linked[k])), unique=True))
            links.unlink_many(np.array([word(k, i) for i in gone], np.int64))
            for i in gone:
                model[linked[k].pop(i)].discard(word(k, i))
        for slot in range(40):
            nodes = links.nodes(slot)
            assert len(nodes) == len(set(nodes))
            assert set(nodes) == model.get(slot, set())
        assert sorted(links.leaves().tolist()) == sorted(word for words in model.values() for word in words)
        some = [3, 1, 39]
        assert sorted(links.pages(np.array(some)).tolist()) == sorted(w for slot in some for w in model.get(slot, ()))


def test_a_whole_table_with_one_target_is_linked_and_unlinked() -> None:
    links = make()
    words = np.arange(512, dtype=np.int64) + word(4, 0)
    links.link_many(words, np.zeros(512, np.int64))
    assert sorted(links.nodes(0)) == words.tolist()
    links.unlink_many(words)
    assert links.empty(0)
    assert not links._pool.words.any()
