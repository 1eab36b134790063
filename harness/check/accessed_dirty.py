"""The accessed and dirty bits: what the engine predicted, what the guest walk predicts, what the processor set.

Source: Intel SDM vol. 3A, 4.8. A is set in every entry that a completed access went through, D in the leaf of a
completed store. In upper entries of a walk that faults further down A may be set or not.

In live mode the processor walks the shadow and the engine sets the bits: what it was seen to set must be what RAM then
holds, and both what the guest walk asks for and no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from harness.check.exceptions import PDPTE_ACCESSED, UPPER_A_ON_FAULT
from harness.check.guest_walks import TableCopy
from harness.check.memory import CheckedMemory
from harness.engine import Words
from harness.x86 import bits
from harness.x86.modes import PagingMode
from harness.x86.walk import MAPPED, Path

_FIELDS: Final = ((bits.PTE_A, "accessed"), (bits.PTE_D, "dirty"))


class Difference(NamedTuple):
    """One bit of one entry. entry: its physical address. field: accessed or dirty. The rest: each answer, 0 or 1."""

    entry: int
    field: str
    guest: int
    shadow: int
    hardware: int


@dataclass(slots=True)
class Marks:
    """What the walks of one checkpoint do to A and D, as bits per 8-byte word (index: physical address / 8).

    required: by completed accesses. ambient: maybe, by the probe server itself. upper: maybe, by walks that fault.
    pdpte: by QEMU, in PAE PDPTEs. entries: addresses of the entries that the walks went through.
    """

    mode: PagingMode
    required: dict[int, int] = field(default_factory=dict)
    ambient: dict[int, int] = field(default_factory=dict)
    upper: dict[int, int] = field(default_factory=dict)
    pdpte: dict[int, int] = field(default_factory=dict)
    entries: set[int] = field(default_factory=set)

    def completed(self, path: Path, store: bool) -> None:
        """An access along `path` completed."""
        self._walked(path, self.required, len(path.steps))
        if store and path.steps:
            _put(self.required, path.steps[-1].address, bits.PTE_D)

    def faulted(self, path: Path) -> None:
        """An access along `path` faulted, at its last step or for want of a right."""
        self._walked(path, self.upper, len(path.steps) - 1)

    def served(self, path: Path, store: bool) -> None:
        """The probe server uses the page of `path`."""
        if path.outcome == MAPPED:
            self._walked(path, self.ambient, len(path.steps))
            if store and path.steps:
                _put(self.ambient, path.steps[-1].address, bits.PTE_D)

    def _walked(self, path: Path, into: dict[int, int], count: int) -> None:
        for row, step in zip(self.mode.levels, path.steps[: max(count, 0)], strict=False):
            self.entries.add(step.address)
            _put(into if row.has_ad else self.pdpte, step.address, bits.PTE_A)


def _put(into: dict[int, int], address: int, mark: int) -> None:
    word = address >> 3
    into[word] = into.get(word, 0) | mark << (8 * (address & 4))


def compare_bits(
    before: TableCopy, memory: CheckedMemory, marks: Marks, exceptions: Counter[str], by_processor: bool = True
) -> list[Difference]:
    """Compares the three answers over the tables `before`, as they were before the probes ran.

    The engine's answer is what `memory` holds of it, the third is RAM as of now. by_processor: the bits in RAM were set
    by the processor, with the freedom that it has, and not by the engine.
    """
    rows = before.rows
    gfns = np.fromiter(rows, np.int64, len(rows))
    start = before.words
    now = memory.words[gfns]
    small = marks.mode.entry_bytes == 4
    checked = np.uint64(0x60_0000_0060 if small else 0x60)
    engine = start.copy()
    strangers = _lay_over(engine, before, memory)
    guest, ambient = start.copy(), np.zeros_like(start)
    upper, pdpte = np.zeros_like(start), np.zeros_like(start)
    for plane, words in (
        (guest, marks.required),
        (ambient, marks.ambient),
        (upper, marks.upper),
        (pdpte, marks.pdpte),
    ):
        _lay(plane, before, words.items())
    if by_processor:
        allowed = ambient | upper | pdpte
        wrong = (guest & ~now) | (now & ~guest & ~allowed)  # the processor against the guest walk
        wrong |= (engine & ~now) | (now & ~engine & ~allowed)  # the processor against the engine
        wrong |= guest & ~engine  # the engine against the guest walk
        for plane, known in ((upper, UPPER_A_ON_FAULT), (pdpte, PDPTE_ACCESSED)):
            extra = now & ~guest & ~ambient & plane & checked
            if extra.any():
                exceptions[known.name] += sum(int(word).bit_count() for word in extra[extra != 0])
    else:
        wrong = (guest ^ engine) | (engine ^ now)
    wrong &= checked
    found = [*strangers]
    for row, column in zip(*np.nonzero(wrong), strict=True):
        word = (int(gfns[row]) << 12) + 8 * int(column)
        planes = (int(plane[row, column]) for plane in (wrong, guest, engine, now))
        found.extend(_differences(word, *planes))
    return found


def _differences(address: int, wrong: int, guest: int, engine: int, now: int) -> list[Difference]:
    found = []
    for half in (0, 32):
        for bit, name in _FIELDS:
            mark = bit << half
            if wrong & mark:
                answers = (int(bool(answer & mark)) for answer in (guest, engine, now))
                found.append(Difference(address + half // 8, name, *answers))
    return found


def _lay(plane: Words, copy: TableCopy, words: Iterable[tuple[int, int]]) -> None:
    rows = copy.rows
    for word, mark in words:
        row = rows.get(word >> 9)
        if row is not None:
            plane[row, word & 511] |= np.uint64(mark)


def _lay_over(plane: Words, copy: TableCopy, memory: CheckedMemory) -> list[Difference]:
    """Lays the engine's bits over `plane`; what it marked in frames that no walk knows as tables is an error."""
    strangers = []
    at, marks = memory.overlaid()
    _lay(plane, copy, zip(at.tolist(), marks.tolist(), strict=True))
    for word, mark in zip(at.tolist(), marks.tolist(), strict=True):
        if word >> 9 not in copy.rows:
            now = int(memory.words[word >> 9, word & 511])
            strangers.extend(_differences(word * 8, mark & ~now, now, now | mark, now))
    return strangers
