"""The weak oracles: QEMU's debug walk over QMP (`gva2gpa`), memory read through it, and `info tlb`.

They know no permissions and have bugs of their own, so they only ever speak of *where* an address leads. Each is
asked about a bounded sample.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.check.exceptions import INFO_TLB_4M, INFO_TLB_NX, INFO_TLB_PAE_2M
from harness.check.layout import Layout
from harness.check.plan import BUDGET_DEFAULT
from harness.check.target import CheckTarget
from harness.check.verdict import FRAME, Answers
from harness.engine import Words
from harness.x86.bits import PAGE_SHIFT, PF_P
from harness.x86.modes import NOPAE, PAE, PagingMode

PROBES_PER_ADDRESS: Final = 4000  # one `gva2gpa` for so many probes: a call over QMP takes about 1 ms
PROBES_PER_READ: Final = 200  # one read of memory: a gdbstub packet takes about 50 us
LEAST: Final = 2  # of each, per checkpoint
MEMORY_BYTES: Final = 16
LINES_PER_CHECKPOINT: Final = 512
"""`info tlb` prints a line per mapped page. Its cost is kept at that of this many lines per checkpoint on average."""
LINES_MAX: Final = 65536
_FRAME_BITS: Final = np.uint64((1 << 52) - 1)
_LARGE_COLUMN: Final = 2  # of the flags `XGPDACTUW`
_LINE: Final = re.compile(r"\s*([0-9a-f]{8,16}): ([0-9a-f]{8,16}) (\S{9})\s*$")
_LINE_BYTES: Final = 45  # 16 digits, colon, space, 16 digits, space, 9 flags, newline
_NIBBLE: Final = np.full(256, 255, np.uint8)
_NIBBLE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


@dataclass(frozen=True, slots=True)
class Opinion:
    """One answer of a weak oracle that differs. field: mapping or frame or value."""

    oracle: str
    field: str
    at: int
    answer: str


@dataclass(frozen=True, slots=True)
class TlbDump:
    """`info tlb` parsed: sorted addresses, physical addresses as printed (all uint64), large-page marks."""

    va: Words
    pa: Words
    large: npt.NDArray[np.bool_]


class SecondOpinion:
    """Asks the weak oracles that the target has about the final answers of LOAD probes, checkpoint by checkpoint.

    budget: probes per checkpoint; the questions are a fixed share of it.
    """

    def __init__(self, target: CheckTarget, layout: Layout, budget: int = BUDGET_DEFAULT) -> None:
        self.target = target
        self.layout = layout
        self.addresses = max(budget // PROBES_PER_ADDRESS, LEAST)
        self.reads = max(budget // PROBES_PER_READ, LEAST)
        self._credit = LINES_PER_CHECKPOINT * 17  # so that the first checkpoint of a small guest has one

    def ask(self, va: Words, shadow: Answers, rng: np.random.Generator, checks: dict[str, int]) -> list[Opinion]:
        """Questions about a sample of the addresses `va`, whose answers are `shadow`; counts into `checks`."""
        translated = np.flatnonzero((shadow.codes == FRAME) & self.layout.mapped(shadow.frames))
        absent = np.flatnonzero((shadow.codes >= 0) & (shadow.codes & PF_P == 0))
        some = _sample(translated, (self.addresses + 1) // 2, rng)
        others = _sample(absent, self.addresses - len(some), rng)
        found = self._addresses([*some, *others], va, shadow, checks)
        readable = translated[self.layout.ram(shadow.frames[translated])]
        return found + self._memory(_sample(readable, self.reads, rng), va, shadow, checks)

    def _addresses(self, sample: list[int], va: Words, shadow: Answers, checks: dict[str, int]) -> list[Opinion]:
        if "gva2gpa" not in self.target.opinions:
            return []
        checks["gva2gpa"] += len(sample)
        seen = self.target.gva2gpa([int(va[at]) for at in sample])
        return [
            opinion
            for at, gpa in zip(sample, seen, strict=True)
            if (opinion := self._address(at, gpa, int(shadow.codes[at]), int(shadow.frames[at])))
        ]

    @staticmethod
    def _address(at: int, gpa: int | None, code: int, frame: int) -> Opinion | None:
        """What the debug walk's answer `gpa` (None: not mapped) says against the shadow's, if anything."""
        if code != FRAME:
            return None if gpa is None else Opinion("gva2gpa", "mapping", at, f"at {gpa:#x}")
        if gpa is None:
            return Opinion("gva2gpa", "mapping", at, "not mapped")
        if gpa >> PAGE_SHIFT == frame:
            return None
        return Opinion("gva2gpa", "frame", at, f"frame {gpa >> PAGE_SHIFT:#x}")

    def _memory(self, sample: list[int], va: Words, shadow: Answers, checks: dict[str, int]) -> list[Opinion]:
        """16 aligned bytes behind each address, read by the debug walk, against the predicted frame in RAM."""
        if "memory" not in self.target.opinions:
            return []
        checks["memory"] += len(sample)
        places = [int(va[at]) & ~0xF for at in sample]
        found = []
        for at, place, seen in zip(sample, places, self.target.read_virtual(places, MEMORY_BYTES), strict=True):
            start = (int(shadow.frames[at]) << PAGE_SHIFT) + (place & 0xFFF)
            held = self.target.ram[start : start + MEMORY_BYTES].tobytes()
            if seen != held:
                answer = "an error" if seen is None else f"bytes {seen.hex()}"
                found.append(Opinion("memory", "value", at, answer))
        return found

    def ask_tlb(
        self,
        mode: PagingMode,
        lines: int,
        va: Words,
        shadow: Answers,
        checks: dict[str, int],
        exceptions: Counter[str],
    ) -> list[Opinion]:
        """Looks all translated addresses up in `info tlb`, when the text (about `lines` lines) can be afforded."""
        self._credit += LINES_PER_CHECKPOINT
        if "info_tlb" not in self.target.opinions or not mode.levels:
            return []
        if not lines or lines > min(self._credit, LINES_MAX):
            return []
        self._credit -= lines
        dump = parse_info_tlb(self.target.info_tlb())
        at = np.flatnonzero((shadow.codes == FRAME) & self.layout.mapped(shadow.frames))
        checks["info_tlb"] += len(at)
        if not len(dump.va):
            return [Opinion("info_tlb", "mapping", int(one), "nothing is mapped") for one in at]
        line = np.maximum(np.searchsorted(dump.va, va[at], side="right") - 1, 0)
        inside = va[at] - dump.va[line]
        known = _repair(mode, dump, exceptions)[line]
        frame = ((known + inside) >> np.uint64(PAGE_SHIFT)).astype(np.int64)
        wanted = shadow.frames[at]
        wrong = frame != wanted
        if mode is NOPAE:  # a 4 MiB page's high bits are not printed: compare what is
            cut = wrong & dump.large[line] & (frame == wanted & 0xF_FFFF)
            exceptions[INFO_TLB_4M.name] += int(cut.sum())
            wrong &= ~cut
        return [Opinion("info_tlb", "frame", int(at[i]), f"frame {int(frame[i]):#x}") for i in np.flatnonzero(wrong)]


def _repair(mode: PagingMode, dump: TlbDump, exceptions: Counter[str]) -> Words:
    """The printed frames without the bits that QEMU should not have printed, each use counted."""
    if mode is PAE:
        flags = dump.pa >> np.uint64(52) != 0
        exceptions[INFO_TLB_NX.name] += int(flags.sum())
        odd = dump.large & (dump.pa & np.uint64(0x1F_FFFF) != 0)
        exceptions[INFO_TLB_PAE_2M.name] += int(odd.sum())
        return np.where(dump.large, dump.pa & ~np.uint64(0x1F_FFFF), dump.pa) & _FRAME_BITS
    if mode is NOPAE:
        odd = dump.large & (dump.pa & np.uint64(0x3F_FFFF) != 0)
        exceptions[INFO_TLB_4M.name] += int(odd.sum())
        return np.where(dump.large, dump.pa & ~np.uint64(0x3F_FFFF), dump.pa)
    return dump.pa


def parse_info_tlb(text: str) -> TlbDump:
    """Parses ``VA: PA XGPDACTUW`` lines (QEMU 7.2), in any order; other lines are ignored."""
    even = _parse_even(text)
    if even is not None:
        return even
    va, pa, large = [], [], []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            va.append(int(match[1], 16))
            pa.append(int(match[2], 16))
            large.append(match[3][_LARGE_COLUMN] == "P")
    addresses = np.asarray(va, np.uint64)
    order = np.argsort(addresses, kind="stable")
    return TlbDump(addresses[order], np.asarray(pa, np.uint64)[order], np.asarray(large, np.bool_)[order])


def _parse_even(text: str) -> TlbDump | None:
    """The same for a text that has nothing but such lines, sorted, in one go; None for any other text."""
    width = text.find("\n") + 1
    if width < _LINE_BYTES or len(text) % width or not text.isascii():
        return None
    rows = np.frombuffer(text.encode(), np.uint8).reshape(-1, width)
    digits = _NIBBLE[np.concatenate((rows[:, :16], rows[:, 18:34]))]
    frame = rows[:, (16, 17, 34, width - 1)] == np.frombuffer(b":  \n", np.uint8)
    if not frame.all() or (digits > 15).any():
        return None
    # Not a matrix product: numpy has no fast one for integers.
    values = digits.view(">u8").reshape(-1, 2).astype(np.uint64)
    values = (values | values >> np.uint64(4)) & np.uint64(0x00FF_00FF_00FF_00FF)
    values = (values | values >> np.uint64(8)) & np.uint64(0x0000_FFFF_0000_FFFF)
    values = (values | values >> np.uint64(16)) & np.uint64(0xFFFF_FFFF)
    both = values[:, 0] << np.uint64(32) | values[:, 1]
    va, pa = both[: len(rows)], both[len(rows) :]
    if (va[1:] <= va[:-1]).any():
        return None
    return TlbDump(va, pa, rows[:, 35 + _LARGE_COLUMN] == ord("P"))


def _sample(among: npt.NDArray[np.intp], count: int, rng: np.random.Generator) -> list[int]:
    if len(among) > count:
        among = np.sort(rng.choice(among, count, replace=False))
    return [int(at) for at in among]
