"""Evidence of a run: memory as changes, probes that are the same for the same seed, what a leg leaves out."""

from __future__ import annotations

import numpy as np

from harness.catalogue import load_catalogue
from harness.options import RunOptions
from harness.twin.native import NativeLeg
from harness.twin.witness import MemoryRecorder, Witness, take_witness


def witness_of(name: str, paging: str, seed: int = 1, budget: int = 120) -> Witness:
    options = RunOptions(seed=seed, probe_budget=budget)
    with NativeLeg(load_catalogue()[name], paging, options) as leg:
        return take_witness(leg, seed, budget)


def test_memory_is_told_as_what_changed() -> None:
    memory = np.zeros(2 * 4096, np.uint8)
    memory[8] = 3
    recorder = MemoryRecorder(memory, [range(4, 6)])
    assert len(recorder.changes().at) == 0
    memory[4096] = 1
    memory[4 * 8 : 6 * 8] = 9  # not looked at
    memory[8] = 0
    first = recorder.changes()
    assert (first.at.tolist(), first.now.tolist()) == ([1, 512], [0, 1])
    memory[4096] = 2
    second = recorder.changes()
    assert (second.at.tolist(), second.now.tolist()) == ([512], [2])
    assert recorder.start[1] == 3


def test_the_changes_add_up_to_what_the_guest_left() -> None:
    """The guest's last TAP counter, in memory as its changes tell it, is what it printed."""
    witness = witness_of("basic", "nopae")
    memory = witness.start.copy()
    assert witness.last is not None
    stretches = [
        stretch
        for moment in witness.moments
        for stretch in (moment.way, moment.probed.stretch if moment.probed else None)
        if stretch is not None
    ]
    for stretch in (*stretches, witness.last):
        memory[stretch.memory.at] = stretch.memory.now
    state = witness.image.physical(witness.image.symbols["xi_state"])
    tests, failed = memory.view(np.uint32)[state // 4 + 1 : state // 4 + 3].tolist()
    assert (tests, failed) == (witness.console.count("\nok "), 0)


def test_the_same_seed_asks_the_same_and_another_one_does_not() -> None:
    one, same, other = (witness_of("basic", "long4", seed) for seed in (1, 1, 2))
    asked = [
        [moment.probed.records["va"].tolist() for moment in w.moments if moment.probed] for w in (one, same, other)
    ]
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]
    assert one.probes == sum(map(len, asked[0])) > 0


def test_nothing_is_probed_while_the_tlb_may_be_stale() -> None:
    witness = witness_of("stale", "nopae", budget=30)
    assert {moment.stop.stale for moment in witness.moments} == {True, False}
    assert all((moment.probed is None) == moment.stop.stale for moment in witness.moments)


def test_probes_leave_no_trace_but_accessed_and_dirty_bits_and_the_servers_own() -> None:
    witness = witness_of("basic", "pae")
    written = {page >> 12 for page in witness.image.writable_pages}
    memory = witness.start.copy()
    seen = 0
    for moment in witness.moments:
        memory[moment.way.memory.at] = moment.way.memory.now
        assert moment.probed is not None
        changes = moment.probed.stretch.memory
        for word, now in zip(changes.at.tolist(), changes.now.tolist(), strict=True):
            if word >> 9 not in written:
                assert (int(memory[word]) ^ now) & ~0x60 == 0
                seen += 1
        memory[changes.at] = changes.now
    assert seen > 0
