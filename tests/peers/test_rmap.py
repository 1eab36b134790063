"""Reverse maps: one SPTE, or a chain of arrays that grows and shrinks."""

from __future__ import annotations

from random import Random

import pytest

from harness.peers.rmap import CHUNK, CHUNK_BYTES, Rmap


def test_one_spte_takes_no_array() -> None:
    rmap = Rmap()
    rmap.add("a", 7)
    assert (rmap.of("a"), rmap.chunks, rmap.bytes) == ([7], 0, 0)
    rmap.remove("a", 7)
    assert list(rmap) == []
    assert rmap.of("a") == []


@pytest.mark.parametrize(("sptes", "chunks"), [(2, 1), (CHUNK, 1), (CHUNK + 1, 2), (3 * CHUNK, 3)])
def test_arrays_are_allocated_as_they_are_needed(sptes: int, chunks: int) -> None:
    rmap = Rmap()
    for word in range(sptes):
        rmap.add("a", word)
    assert (rmap.chunks, rmap.chunks_made, rmap.bytes) == (chunks, chunks, chunks * CHUNK_BYTES)
    assert sorted(rmap.of("a")) == list(range(sptes))
    assert rmap.visited == sptes


def test_what_is_not_there_cannot_be_removed() -> None:
    rmap = Rmap()
    rmap.add("one", 1)
    for word in (1, 2):
        rmap.add("two", word)
    for key, word in (("one", 2), ("two", 3), ("none", 1)):
        with pytest.raises(KeyError):
            rmap.remove(key, word)
    assert rmap.everything() == {("one", 1), ("two", 1), ("two", 2)}


def test_it_keeps_what_a_set_keeps() -> None:
    random, rmap, model = Random(5), Rmap(), set[tuple[object, int]]()
    for _ in range(4000):
        item: tuple[object, int] = (random.choice("abc"), random.randrange(60))
        if item in model:
            rmap.remove(*item)
            model.discard(item)
        else:
            rmap.add(*item)
            model.add(item)
    assert rmap.everything() == model
    held = [[word for key, word in model if key == name] for name in "abc"]
    assert rmap.chunks <= sum(-(-len(words) // CHUNK) for words in held if len(words) > 1)
    for key, word in sorted(model, key=str):
        rmap.remove(key, word)
    assert (rmap.chunks, list(rmap)) == (0, [])
