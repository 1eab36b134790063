"""The comparison of two witnesses: two runs of one guest agree, and whatever is altered in one of them is found.

Then the allowed differences: each passes where its reason holds, and nowhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from harness.catalogue import Guest, load_catalogue
from harness.check.exceptions import NOPAE_ID_BIT, PDPTE_ACCESSED, RSVD_P0, UPPER_A_ON_FAULT
from harness.engine import Words
from harness.machine.exception_log import FAULT
from harness.machine.mailbox import Status
from harness.options import Progress, RunOptions
from harness.report.record import RunRecord
from harness.twin.compare import TwinReport, compare, run_twin
from harness.twin.native import NativeLeg
from harness.twin.rules import (
    CONSOLE_OVERRUN,
    COPIED_CODE,
    COPIED_ENTRY,
    LARGE_A_ON_REFUSAL,
    Explainer,
    overrun,
)
from harness.twin.witness import SHUTDOWN, TIMEOUT, Changes, Moment, Witness, take_witness
from harness.x86 import bits
from harness.x86.access import Access, access_of
from harness.x86.control import ControlState
from tests.twin.test_witness import witness_of

Alter = Callable[[Witness], Any]


@pytest.fixture(scope="module")
def twins() -> tuple[Witness, Witness]:
    """Two native runs of one guest."""
    return witness_of("basic", "pae"), witness_of("basic", "pae")


def altered(witness: Witness, alter: Alter) -> Witness:
    other = copy.copy(witness)
    other.start = witness.start.copy()
    other.moments = copy.deepcopy(witness.moments)
    other.last = copy.deepcopy(witness.last)
    alter(other)
    return other


def probed(witness: Witness, at: int) -> Any:
    found = witness.moments[at].probed
    assert found is not None
    return found


def at_moment(at: int, make: Callable[[Moment], Moment]) -> Alter:
    def alter(witness: Witness) -> None:
        witness.moments[at] = make(witness.moments[at])

    return alter


def with_state(**fields: int) -> Callable[[Moment], Moment]:
    return lambda moment: replace(moment, stop=replace(moment.stop, state=replace(moment.stop.state, **fields)))


def set_fault(name: str, value: int) -> Alter:
    def alter(witness: Witness) -> None:
        probed(witness, 2).stretch.faults[name][5] = value

    return alter


def set_probe(name: str, value: int, status: Status) -> Alter:
    def alter(witness: Witness) -> None:
        records = probed(witness, 3).records
        records[name][np.flatnonzero(records["status"] == status)[0]] = value

    return alter


def memory_at(witness: Witness, at: int) -> Words:
    """Memory as it was when the guest came to moment number `at`."""
    memory = witness.start.copy()
    stretches = []
    for moment in witness.moments[:at]:
        stretches += [moment.way, *([moment.probed.stretch] if moment.probed else [])]
    for stretch in (*stretches, witness.moments[at].way):
        memory[stretch.memory.at] = stretch.memory.now
    return memory


def cleared(words: npt.NDArray[np.int64], mark: int) -> Alter:
    """The bits `mark` are never set in `words`."""

    def alter(witness: Witness) -> None:
        for moment in witness.moments:
            for stretch in (moment.way, *([moment.probed.stretch] if moment.probed else [])):
                stretch.memory.now[np.isin(stretch.memory.at, words)] &= np.uint64(~mark & (1 << 64) - 1)

    return alter


def flip(word: int, mark: int) -> Alter:
    """Word `word` of memory holds something else from the third checkpoint on."""

    def alter(witness: Witness) -> None:
        way = witness.moments[2].way
        memory = memory_at(witness, 2)
        at = np.union1d(way.memory.at, np.asarray([word]))
        memory[word] ^= np.uint64(mark)
        witness.moments[2] = replace(witness.moments[2], way=replace(way, memory=Changes(at, memory[at])))

    return alter


def without_last_fault(witness: Witness) -> None:
    found = probed(witness, 1)
    shorter = replace(found.stretch, faults=found.stretch.faults[:-1])
    witness.moments[1] = replace(witness.moments[1], probed=replace(found, stretch=shorter))


def without_a_probe(witness: Witness) -> None:
    found = probed(witness, 1)
    witness.moments[1] = replace(witness.moments[1], probed=replace(found, records=found.records[1:]))


def test_two_native_runs_agree(twins: tuple[Witness, Witness]) -> None:
    report = compare(*twins)
    assert report.identical, report.differences
    assert not report.allowed
    assert report.compared["checkpoints"] == len(twins[0].moments)
    assert report.compared["probes"] == twins[0].probes
    assert min(report.compared[what] for what in ("faults", "words", "lines")) > 0


ALTERED: dict[str, tuple[str, Alter]] = {
    "a word of memory": ("memory", flip(0x1F0_0000 >> 3, 1 << 63)),
    "an A bit of no table": ("memory", flip(0x1F0_0000 >> 3, bits.PTE_A)),
    "a word before the start": ("start", lambda w: w.start.__setitem__(5, 1)),
    "the error code of a fault": ("fault", set_fault("code", 0x1F)),
    "the CR2 of a fault": ("fault", set_fault("cr2", 0xDEAD_B000)),
    "the RIP of a fault": ("fault", set_fault("rip", 1)),
    "a fault too few": ("fault", without_last_fault),
    "the code of a probe": ("probe", set_probe("code", 0x1F, Status.FAULT)),
    "the CR2 of a probe": ("probe", set_probe("cr2", 1, Status.FAULT)),
    "what a probe read": ("probe", set_probe("value", 0x5A00_0002, Status.DONE)),
    "whether a probe faults": ("probe", set_probe("status", Status.FAULT, Status.DONE)),
    "another set of probes": ("plan", without_a_probe),
    "CR0": ("control", at_moment(1, with_state(cr0=0x8001_0013))),
    "CR4": ("control", at_moment(1, with_state(cr4=0))),
    "PKRU": ("control", at_moment(1, with_state(pkru=4))),
    "a checkpoint's name": ("checkpoint", at_moment(1, lambda m: replace(m, stop=replace(m.stop, name="other")))),
    "a checkpoint's flags": ("checkpoint", at_moment(1, lambda m: replace(m, stop=replace(m.stop, stale=True)))),
    "a checkpoint too few": ("checkpoint", lambda w: w.moments.pop()),
    "the end": ("ending", lambda w: setattr(w, "ending", SHUTDOWN)),
    "a clock that ends only one": ("ending", lambda w: setattr(w, "ending", TIMEOUT)),
    "a line of the console": ("console", lambda w: setattr(w, "console", w.console.replace("ok 2", "ok 9"))),
    "the console's end": ("console", lambda w: setattr(w, "console", w.console + "more\n")),
}


@pytest.mark.parametrize(("field", "alter"), ALTERED.values(), ids=ALTERED)
@pytest.mark.parametrize("live", [False, True], ids=["natively", "live"])
def test_what_is_altered_is_found(twins: tuple[Witness, Witness], field: str, alter: Alter, live: bool) -> None:
    other = altered(twins[1], alter)
    report = compare(twins[0], other) if live else compare(other, twins[0])
    assert report.counts == {field: 1}, report.differences
    assert not report.allowed
    assert report.differences[0].field == field


def test_a_difference_in_memory_names_the_frame_the_byte_and_both_words(twins: tuple[Witness, Witness]) -> None:
    report = compare(twins[0], altered(twins[1], flip((0x1F0_0000 >> 3) + 2, 0xFF)))
    (one,) = report.differences
    third = twins[0].moments[2].stop
    assert (one.checkpoint, one.where) == (f"3 {third.name}", "gfn 0x1f00 + 0x10")
    assert int(one.native, 16) ^ int(one.live, 16) == 0xFF
    assert str(one).startswith("memory, 3 ")


def test_a_difference_that_stays_is_told_once_and_one_that_comes_again_twice(twins: tuple[Witness, Witness]) -> None:
    word = 0x1F0_0000 >> 3

    def again(witness: Witness) -> None:
        flip(word, 1)(witness)
        for at, mark in ((4, 0), (6, 1)):
            way = witness.moments[at].way
            where = np.union1d(way.memory.at, np.asarray([word]))
            now = np.zeros(len(where), np.uint64)
            now[np.searchsorted(where, way.memory.at)] = way.memory.now
            now[np.searchsorted(where, word)] = int(witness.start[word]) ^ mark
            witness.moments[at] = replace(witness.moments[at], way=replace(way, memory=Changes(where, now)))

    assert compare(twins[0], altered(twins[1], again)).counts == {"memory": 2}


def test_guests_that_the_clock_stopped_may_have_come_further_in_one_leg(twins: tuple[Witness, Witness]) -> None:
    def stopped(witness: Witness) -> None:
        witness.ending = TIMEOUT

    def earlier(witness: Witness) -> None:
        stopped(witness)
        witness.moments.pop()
        witness.console = witness.console[:40]

    assert compare(altered(twins[0], stopped), altered(twins[1], earlier)).identical

    def elsewhere(witness: Witness) -> None:
        earlier(witness)
        witness.console = witness.console[:39] + "?"

    assert compare(altered(twins[0], stopped), altered(twins[1], elsewhere)).counts == {"console": 1}


# ---- allowed differences

ROOT, DIRECTORY, TABLE = 0x10_0000, 0x10_1000, 0x10_2000  # of the tables below
PAE_STATE = ControlState(bits.CR0_PE | bits.CR0_PG, ROOT, bits.CR4_PAE, 0)
LONG_STATE = replace(PAE_STATE, efer=bits.EFER_LME | bits.EFER_LMA | bits.EFER_NXE)
TABLE_FLAGS = bits.PTE_P | bits.PTE_RW | bits.PTE_US


def explainer(twins: tuple[Witness, Witness], words: dict[int, int]) -> Explainer:
    memory = np.zeros(len(twins[0].start), np.uint64)
    for address, word in words.items():
        memory[address >> 3] = word
    return Explainer(twins[0].image, memory)


def excuse(explain: Explainer, word: int, native: int, live: int, before: int = 0) -> tuple[str, ...] | None:
    return explain.word(word, native, live, before)


def fault(state: ControlState, cr2: int) -> Any:
    return np.array([(0, cr2, 0, state.cr0, state.cr3, state.cr4, state.efer)], FAULT)


def test_directory_pointers_may_have_an_a_bit_natively(twins: tuple[Witness, Witness]) -> None:
    explain = explainer(twins, {})
    entry = DIRECTORY | bits.PTE_P
    assert excuse(explain, ROOT >> 3, entry | bits.PTE_A, entry) is None  # nobody said that it is a root
    explain.stood(PAE_STATE)
    assert excuse(explain, ROOT >> 3, entry | bits.PTE_A, entry) == (PDPTE_ACCESSED.name,)
    assert excuse(explain, ROOT >> 3, entry, entry | bits.PTE_A) is None
    assert excuse(explain, ROOT >> 3, entry | bits.PTE_A | bits.PTE_D, entry) is None
    assert excuse(explain, (ROOT >> 3) + 4, entry | bits.PTE_A, entry, entry) is None


def long_tables(leaf: int) -> dict[int, int]:
    """Address 0 in four levels: root, DIRECTORY at level 3, TABLE at level 2, and `leaf` as its entry."""
    return {ROOT: DIRECTORY | TABLE_FLAGS, DIRECTORY: TABLE | TABLE_FLAGS, TABLE: leaf}


def test_a_walk_that_faulted_may_have_marked_the_upper_entries_that_it_went_through(
    twins: tuple[Witness, Witness],
) -> None:
    leaf = 0x20_0000 | bits.PTE_P | bits.PTE_PS
    explain = explainer(twins, long_tables(leaf))
    explain.faulted(fault(LONG_STATE, 0x1234))
    upper = DIRECTORY | TABLE_FLAGS
    assert excuse(explain, ROOT >> 3, upper | bits.PTE_A, upper) == (UPPER_A_ON_FAULT.name,)
    assert excuse(explain, ROOT >> 3, upper, upper | bits.PTE_A) is None
    assert excuse(explain, (ROOT >> 3) + 1, upper | bits.PTE_A, upper, upper) is None  # no walk went there
    assert excuse(explain, TABLE >> 3, leaf | bits.PTE_A, leaf) is None  # the leaf is never marked


def test_the_leaf_of_a_gib_is_marked_before_its_rights_are_looked_at(twins: tuple[Witness, Witness]) -> None:
    leaf = bits.PTE_P | bits.PTE_PS
    explain = explainer(twins, {ROOT: DIRECTORY | TABLE_FLAGS, DIRECTORY: leaf})
    explain.faulted(fault(LONG_STATE, 0x1234))
    assert excuse(explain, DIRECTORY >> 3, leaf | bits.PTE_A, leaf) == (LARGE_A_ON_REFUSAL.name,)
    assert excuse(explain, DIRECTORY >> 3, leaf | bits.PTE_A | bits.PTE_D, leaf) is None


def test_low_bits_of_the_frame_are_looked_at_after_it_and_high_ones_before(twins: tuple[Witness, Witness]) -> None:
    for wrong, allowed in ((1 << 13, True), (1 << 29, True), (1 << 45, False)):
        leaf = bits.PTE_P | bits.PTE_PS | wrong
        explain = explainer(twins, {ROOT: DIRECTORY | TABLE_FLAGS, DIRECTORY: leaf})
        explain.faulted(fault(LONG_STATE, 0x1234))
        names = excuse(explain, DIRECTORY >> 3, leaf | bits.PTE_A, leaf)
        assert names == ((LARGE_A_ON_REFUSAL.name,) if allowed else None)


def test_a_copy_of_an_allowed_entry_is_allowed(twins: tuple[Witness, Witness]) -> None:
    explain = explainer(twins, {})
    explain.stood(PAE_STATE)
    entry = DIRECTORY | bits.PTE_P
    assert excuse(explain, 0x500, entry | bits.PTE_A, entry) is None
    assert excuse(explain, ROOT >> 3, entry | bits.PTE_A, entry) is not None
    assert excuse(explain, 0x500, entry | bits.PTE_A, entry) == (COPIED_ENTRY.name,)
    assert excuse(explain, 0x500, entry | bits.PTE_A, entry, entry) is None  # it was there, nothing was copied
    high = entry << 32 | 7  # as the upper half of a word of the stack
    assert excuse(explain, 0x501, high | bits.PTE_A << 32, high) == (COPIED_ENTRY.name,)


def test_reserved_bits_report_p_0_natively_alone(twins: tuple[Witness, Witness]) -> None:
    explain = explainer(twins, {})
    assert explain.code(8, 9, Access.LOAD, LONG_STATE) == (RSVD_P0.name,)
    assert explain.code(9, 8, Access.LOAD, LONG_STATE) is None
    assert explain.code(0, 1, Access.LOAD, LONG_STATE) is None
    assert explain.code(8, 0xB, Access.LOAD, LONG_STATE) is None


def test_a_fetch_is_reported_natively_without_pae_too(twins: tuple[Witness, Witness]) -> None:
    explain = explainer(twins, {})
    nopae = replace(LONG_STATE, cr4=0)
    assert explain.code(0x10, 0, access_of(0x10), nopae) == (NOPAE_ID_BIT.name,)
    assert explain.code(0, 0x10, access_of(0), nopae) is None
    assert explain.code(0x10, 0, access_of(0x10), LONG_STATE) is None


def test_a_code_that_the_guest_keeps_may_differ_where_the_fault_did(twins: tuple[Witness, Witness]) -> None:
    explain = explainer(twins, {})
    stack = twins[0].image.writable_pages[0] >> 3
    assert excuse(explain, stack, 8, 9) is None
    explain.code(8, 9, Access.LOAD, LONG_STATE)
    assert excuse(explain, stack, 8, 9) == (COPIED_CODE.name,)
    assert excuse(explain, stack, 0x8000_0008_0000_0000, 0x8000_0009_0000_0000) == (COPIED_CODE.name,)
    assert excuse(explain, stack, 9, 8) is None
    assert excuse(explain, 0x1F0_0000 >> 3, 8, 9) is None  # a frame that is no part of its data


def test_a_flooded_console_may_lose_what_is_not_protocol() -> None:
    flood = "TAP version 13\n1..1\n" + "#" * 20_000 + "\nok 1 - there\n"
    assert overrun(flood, flood.replace("#" * 100, "", 1))
    assert not overrun(flood, flood.replace("ok 1", "not ok 1"))
    assert not overrun(flood[:30], flood[:29])


def test_what_is_allowed_is_counted_and_no_difference(twins: tuple[Witness, Witness]) -> None:
    """A live run of the same guest would have no A bits in its directory pointers."""

    roots = {moment.stop.state.root_gpa >> 3 for moment in twins[1].moments}
    by_the_book = cleared(np.asarray([root + index for root in roots for index in range(4)]), bits.PTE_A)
    report = compare(twins[0], altered(twins[1], by_the_book))
    assert report.identical, report.differences
    assert set(report.allowed) == {PDPTE_ACCESSED.name, COPIED_ENTRY.name}  # a new space begins as a copy
    assert report.allowed[PDPTE_ACCESSED.name] >= 4
    assert compare(altered(twins[1], by_the_book), twins[0]).counts["memory"] >= 4


def test_a_bit_must_not_be_missing_where_an_access_completed(twins: tuple[Witness, Witness]) -> None:
    """The entry of a directory that walks which faulted went through, and others that did not."""
    state = twins[1].moments[1].stop.state
    memory = memory_at(twins[1], 1)
    directory = int(memory[state.root_gpa >> 3]) & bits.PTE_ADDR
    report = compare(twins[0], altered(twins[1], cleared(np.asarray([directory >> 3]), bits.PTE_A)))
    assert report.counts.keys() == {"memory"}
    assert any(f"the entry at {directory:#x}, through which a probe" in one.where for one in report.differences)


# ---- whole runs


class SecondNative(NativeLeg):
    """A second leg that is native too."""

    name = "second"
    lie = ""

    def conclude(self) -> RunRecord:
        return RunRecord("basic", "nopae", verdict="pass")

    @property
    def console(self) -> str:
        return super().console + self.lie


class Liar(SecondNative):
    lie = "not what it printed\n"


def run(make: Callable[[Guest, str, RunOptions], SecondNative], told: list[Progress] | None = None) -> RunRecord:
    options = RunOptions(mode="both", probe_budget=60)
    watcher = told.append if told is not None else None
    return run_twin(load_catalogue()["basic"], "nopae", options, watcher, make)


def test_a_run_of_two_legs_ends_in_one_record() -> None:
    told: list[Progress] = []
    record = run(SecondNative, told)
    assert (record.verdict, record.mode, record.reason) == ("pass", "both", "")
    assert record.twin["counts"] == {}
    assert record.twin["compared"]["checkpoints"] > 3
    assert record.checks["probe"] == record.twin["compared"]["probes"] > 0
    assert {progress.phase for progress in told} == {"native", "second"}
    assert record.timings.keys() >= {"native", "live", "compare"}


def test_a_difference_fails_the_run_and_the_reason_says_which() -> None:
    record = run(Liar)
    assert record.verdict == "fail"
    assert record.reason.startswith("1 difference from the native run: console")
    assert record.twin["differences"][0]["field"] == "console"
    assert record.to_json()["twin"]["counts"] == {"console": 1}


def test_a_report_keeps_the_first_differences_and_counts_them_all() -> None:
    report = TwinReport()
    for number in range(100):
        report.found("memory", "1 there", f"word {number}", "0", "1")
    assert report.counts["memory"] == 100
    assert len(report.differences) < 100


def test_take_witness_tells_of_each_checkpoint() -> None:
    seen: list[tuple[str, int]] = []
    with NativeLeg(load_catalogue()["hostile_triple"], "pae", RunOptions()) as leg:
        witness = take_witness(leg, 1, 30, lambda stop, probes: seen.append((stop.name, probes)))
    assert [name for name, _ in seen] == [moment.stop.name for moment in witness.moments]
    assert seen[-1][1] == witness.probes
    assert witness.ending == SHUTDOWN
    assert CONSOLE_OVERRUN.name not in compare(witness, witness).allowed
