"""The guest walk's answers for the pages of a checkpoint: each page is walked once, each access looked up."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from harness.check.layout import DEVICES_END, DEVICES_FIRST, HOLE_END, HOLE_FIRST, Layout
from harness.check.verdict import DEVICE, FRAME, GP, NO_FRAME, Answers, Codes, Frames, Mask
from harness.engine import Bytes, Words
from harness.x86.access import ALL_ACCESSES
from harness.x86.control import ControlState
from harness.x86.modes import PHYS_BITS_DEFAULT
from harness.x86.walk import Path, Read, fault_codes, tracer


def ram_reader(ram: Bytes) -> Read:
    """Reads guest-physical memory from the RAM map; None past its end."""
    raw = ram.data.cast("B")
    q, d = raw.cast("Q"), raw.cast("I")
    end = ram.nbytes

    def read(address: int, size: int) -> int | None:
        if address >= end:
            return None
        return q[address >> 3] if size == 8 else d[address >> 2]

    return read


@dataclass(slots=True)
class TableCopy:
    """Guest tables as they were at some moment: row of `words` (n, 512) per gfn."""

    rows: dict[int, int] = field(default_factory=dict)
    words: Words = field(default_factory=lambda: np.zeros((0, 512), np.uint64))

    @classmethod
    def take(cls, gfns: npt.NDArray[np.int64], memory: Words) -> TableCopy:
        """Copies the frames `gfns` of `memory` (shape (frames, 512))."""
        return cls({int(gfn): row for row, gfn in enumerate(gfns)}, memory[gfns].copy())

    def reader(self, otherwise: Read) -> Read:
        """Reads the copy, and what it does not hold through `otherwise`."""
        rows = self.rows
        raw = self.words.tobytes()

        def read(address: int, size: int) -> int | None:
            row = rows.get(address >> 12)
            if row is None:
                return otherwise(address, size)
            at = row << 12 | address & 0xFFF
            return int.from_bytes(raw[at : at + size], "little")

        return read


@dataclass(slots=True)
class GuestWalks:
    """The paths of `pages` (in order) and what each access gets there.

    codes: int32 (pages, 8), column = Access value; DEVICE where the RAM map does not show what the processor sees,
    the window below 1 MiB included. leaf: int64 (pages,), gfn behind the page whatever its rights, NO_FRAME when it
    is not mapped. odd: walks that went through a table in such a place: nothing is known of them.
    """

    control: ControlState
    paths: list[Path]
    codes: Codes
    leaf: Frames
    odd: Mask

    @classmethod
    def of(
        cls,
        control: ControlState,
        pages: Words,
        read: Read,
        layout: Layout,
        phys_bits: int = PHYS_BITS_DEFAULT,
    ) -> GuestWalks:
        walk = tracer(control, read, phys_bits)
        paths = [walk(page) for page in pages.tolist()]
        leaf = np.fromiter((path.gfn for path in paths), np.int64, len(paths))
        odd = np.fromiter((_odd(path, layout) for path in paths), np.bool_, len(paths))
        codes = np.full((len(paths), 8), GP, np.int32)
        rows: dict[tuple[str, int], list[int]] = {}
        index: list[list[int]] = []
        for path in paths:
            key = (path.outcome, path.rights)
            row = rows.get(key)
            if row is None:
                row = rows[key] = _code_row(key, control)
            index.append(row)
        if index:
            codes[:] = np.asarray(index, np.int32)
        device = (leaf >= 0) & ~layout.ram(leaf)
        codes[device[:, None] & (codes == FRAME)] = DEVICE
        return cls(control, paths, codes, leaf, odd)

    def answers(self, page: npt.NDArray[np.intp], access: npt.NDArray[np.uint8]) -> Answers:
        """Answers for probes: `page` indexes `paths`."""
        codes = self.codes[page, access]
        translated = (codes == FRAME) | (codes == DEVICE)
        return Answers(codes, np.where(translated, self.leaf[page], NO_FRAME))


def _code_row(key: tuple[str, int], control: ControlState) -> list[int]:
    """The eight columns of one kind of path; the two that are no access stay #GP and are never read."""
    row = [GP] * 8
    for access, code in zip(ALL_ACCESSES, fault_codes(*key, control), strict=True):
        row[access] = GP if code is None else code
    return row


def _odd(path: Path, layout: Layout) -> bool:
    """Whether a table of the walk lies where the RAM map does not show what the processor reads."""
    for step in path.steps:
        table = step.table
        if table < layout.frames:
            if not layout.is_ram(table):
                return True
        elif DEVICES_FIRST <= table < DEVICES_END or HOLE_FIRST <= table < HOLE_END:
            return True
    return False


def ambient_frames(walks: GuestWalks) -> frozenset[int]:
    """The frames behind the pages that the probe server itself uses."""
    return frozenset(int(gfn) for gfn in walks.leaf if gfn >= 0)
