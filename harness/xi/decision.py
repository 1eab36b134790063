"""What XI does about a changed guest entry and about a page fault: the decisions, as tables.

A table is a list of features (each with a few named values) and a list of rows. A row names the values it
cares about, the action, and why. It is compiled once into an array indexed by the packed features, so that the engine
looks a decision up with one index, one entry at a time or for a whole table with numpy. The same rows serve every
paging mode: what differs between modes has become a feature value before the table is asked.

Rules: Intel SDM vol. 3A, sections 4.6 (access rights), 4.7 (error codes) and 4.10 (TLBs); the treatment of CR0.WP=0
follows the description in the Linux kernel's Documentation/virt/kvm/x86/mmu.rst.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from itertools import product
from typing import Final

import numpy as np
import numpy.typing as npt

UNDEFINED: Final = 0xFF  # an index that packs no legal combination of values


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that a decision depends on. values: its names, in code order (value n is packed as n)."""

    name: str
    values: tuple[str, ...]

    @property
    def bits(self) -> int:
        return max(1, (len(self.values) - 1).bit_length())


@dataclass(frozen=True, slots=True)
class Row:
    """`action` holds when every feature in `when` has one of the values listed (separated by ``|``)."""

    action: IntEnum | IntFlag
    when: Mapping[str, str]
    why: str


class DecisionTable:
    """Features and rows, compiled. `first_match`: the first row that fits decides; else all that fit are or'ed.

    array: uint8, one action per packed index. lookup: the same as bytes, for scalar use. Raises ValueError when a row
    names an unknown feature or value, and, for first-match tables, when a legal combination has no row.
    """

    def __init__(self, name: str, features: tuple[Feature, ...], rows: tuple[Row, ...], first_match: bool = True):
        self.name = name
        self.features = features
        self.rows = rows
        self.first_match = first_match
        self.shift: dict[str, int] = {}
        bits = 0
        for feature in features:
            self.shift[feature.name] = bits
            bits += feature.bits
        self.array = self._compile(1 << bits)
        self.lookup = self.array.tobytes()

    def _compile(self, size: int) -> npt.NDArray[np.uint8]:
        index = np.arange(size)
        by_name = {feature.name: feature for feature in self.features}
        legal = np.ones(size, np.bool_)
        for feature in self.features:
            legal &= self._value(index, feature) < len(feature.values)
        out = np.zeros(size, np.uint8)
        decided = np.zeros(size, np.bool_)
        for row in self.rows:
            hit = np.ones(size, np.bool_)
            for name, wanted in row.when.items():
                if name not in by_name:
                    raise ValueError(f"{self.name}: a row names the unknown feature {name!r}")
                feature = by_name[name]
                codes = [feature.values.index(value) for value in wanted.split("|")]
                hit &= np.isin(self._value(index, feature), codes)
            if self.first_match:
                out[hit & ~decided] = int(row.action)
            else:
                out[hit] |= int(row.action)
            decided |= hit
        if not decided[legal].all():
            missing = int(np.flatnonzero(legal & ~decided)[0])
            raise ValueError(f"{self.name}: no row for {self.unpack(missing)}")
        out[~legal] = UNDEFINED
        return out

    def _value(self, index: npt.NDArray[np.int64], feature: Feature) -> npt.NDArray[np.int64]:
        return (index >> self.shift[feature.name]) & ((1 << feature.bits) - 1)

    def pack(self, **values: str) -> int:
        """The index of one combination; every feature must be given. Raises ValueError on an unknown value."""
        return sum(self.part(f.name, values[f.name]) for f in self.features)

    def part(self, name: str, value: str) -> int:
        """What one feature's value contributes to an index. Raises ValueError on an unknown name or value."""
        for feature in self.features:
            if feature.name == name:
                return feature.values.index(value) << self.shift[name]
        raise ValueError(f"table {self.name!r} has no feature {name!r}")

    def unpack(self, index: int) -> dict[str, str]:
        """The combination of an index made of legal values."""
        return {f.name: f.values[(index >> self.shift[f.name]) & ((1 << f.bits) - 1)] for f in self.features}

    def combinations(self) -> Iterator[dict[str, str]]:
        """Every legal combination of values."""
        names = [feature.name for feature in self.features]
        for values in product(*(feature.values for feature in self.features)):
            yield dict(zip(names, values, strict=True))

    def text(self) -> str:
        """The table for a reader: one line a row, `-` where a feature does not matter, the reason at the end."""
        names = [feature.name for feature in self.features]
        lines = [[*names, "action", "why"]]
        for row in self.rows:
            cells = [row.when.get(name, "-") for name in names]
            lines.append([*cells, (row.action.name or "").lower(), row.why])
        widths = [max(len(line[column]) for line in lines) for column in range(len(names) + 1)]
        rule = "first row that fits" if self.first_match else "all rows that fit"
        body = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]])
            for line in lines
        ]
        return "\n".join([f"{self.name} ({rule})", *body])


NO_YES: Final = ("no", "yes")


class Resync(IntEnum):
    """What becomes of the SPTE of a guest entry."""

    KEEP = 0
    FILL = 1
    DIVIDE = 2
    REFLAG = 3
    REPLACE = 4
    CLEAR = 5
    UNLINK = 6


# was: what the entry was at the last synchronisation, as its SPTE still has it. now: what the guest's entry is;
# an entry with reserved bits, or that leads outside the domain's p2m, is `absent`: the hardware must fault on it.
# same: it leads where the SPTE leads. whole: a large page may be one SPTE here. fill: entries are to be brought in
# (eager fill, or the fault path working on this entry).
RESYNC: Final = DecisionTable(
    "resync",
    (
        Feature("was", ("empty", "leaf", "divided", "table")),
        Feature("now", ("absent", "leaf", "large", "table")),
        Feature("same", NO_YES),
        Feature("whole", NO_YES),
        Feature("fill", NO_YES),
    ),
    (
        Row(Resync.KEEP, {"was": "empty", "now": "absent"}, "nothing to shadow"),
        Row(Resync.KEEP, {"was": "empty", "fill": "no"}, "a fault will bring it in if it is ever used"),
        Row(Resync.DIVIDE, {"was": "empty", "now": "large", "whole": "no"}, "holds a GPT, or scattered frames"),
        Row(Resync.FILL, {"was": "empty"}, "new translation"),
        Row(Resync.CLEAR, {"was": "leaf", "now": "absent"}, "unmapped by the guest"),
        Row(Resync.UNLINK, {"was": "divided|table", "now": "absent"}, "a whole subtree unmapped"),
        Row(
            Resync.DIVIDE,
            {"was": "leaf", "now": "large", "same": "yes", "whole": "no"},
            "a GPT has appeared inside the large page",
        ),
        Row(
            Resync.REFLAG,
            {"was": "leaf", "now": "leaf|large", "same": "yes"},
            "same page: rights, A or D changed, tighter or wider",
        ),
        Row(
            Resync.REFLAG,
            {"was": "divided", "now": "large", "same": "yes"},
            "same large page: it stays divided, the rights are checked above the pieces",
        ),
        Row(Resync.REFLAG, {"was": "table", "now": "table", "same": "yes"}, "same table: rights or A changed"),
        Row(Resync.CLEAR, {"was": "leaf", "fill": "no"}, "leads elsewhere now; a fault will bring it in"),
        Row(Resync.UNLINK, {"was": "divided|table", "fill": "no"}, "leads elsewhere now; a fault will bring it in"),
        Row(Resync.REPLACE, {}, "leads elsewhere now"),
    ),
)


class Verdict(IntEnum):
    """What the guest's own tables say of an access."""

    ALLOW = 0
    NOT_PRESENT = 1
    RESERVED = 2
    PROTECTION = 3
    KEY = 4
    AWAY = 5


# rw, us, nx: the rights cumulated over the guest's walk (nx only where EFER.NXE gives it meaning). key_ad, key_wd: the
# PKRU bits of the page's key, where CR4.PKE is in force. EFLAGS.AC is taken to be 0.
RIGHTS: Final = DecisionTable(
    "fault: the guest's rights",
    (
        Feature("kind", ("load", "store", "fetch")),
        Feature("user", NO_YES),
        Feature("walk", ("complete", "absent", "reserved", "away")),
        Feature("rw", NO_YES),
        Feature("us", NO_YES),
        Feature("nx", NO_YES),
        Feature("wp", NO_YES),
        Feature("smep", NO_YES),
        Feature("smap", NO_YES),
        Feature("key_ad", NO_YES),
        Feature("key_wd", NO_YES),
    ),
    (
        Row(Verdict.NOT_PRESENT, {"walk": "absent"}, "an entry of the walk has P=0"),
        Row(Verdict.RESERVED, {"walk": "reserved"}, "an entry of the walk has a reserved bit set"),
        Row(Verdict.AWAY, {"walk": "away"}, "a table of the walk has no frame just now: nobody can say yet"),
        Row(Verdict.PROTECTION, {"user": "yes", "us": "no"}, "ring 3 in a supervisor page"),
        Row(Verdict.KEY, {"kind": "load|store", "us": "yes", "key_ad": "yes"}, "the key forbids data accesses"),
        Row(Verdict.KEY, {"kind": "store", "us": "yes", "user": "yes", "key_wd": "yes"}, "the key forbids stores"),
        Row(
            Verdict.KEY,
            {"kind": "store", "us": "yes", "user": "no", "wp": "yes", "key_wd": "yes"},
            "the key forbids stores, from ring 0 too while CR0.WP=1",
        ),
        Row(Verdict.PROTECTION, {"kind": "fetch", "nx": "yes"}, "no-execute"),
        Row(Verdict.PROTECTION, {"kind": "store", "user": "yes", "rw": "no"}, "read-only"),
        Row(Verdict.PROTECTION, {"kind": "store", "wp": "yes", "rw": "no"}, "read-only, and CR0.WP=1"),
        Row(Verdict.PROTECTION, {"kind": "fetch", "user": "no", "us": "yes", "smep": "yes"}, "SMEP"),
        Row(Verdict.PROTECTION, {"kind": "load|store", "user": "no", "us": "yes", "smap": "yes"}, "SMAP"),
        Row(Verdict.ALLOW, {}, "the guest's tables allow it"),
    ),
)


class Step(IntFlag):
    """What XI does for an access that the guest's tables allow, in this order."""

    SET_AD = 1
    MMIO = 2
    UNSYNC = 4
    LOG = 8
    FILL = 16
    OVERRIDE = 32
    AWAY = 64


# frame: backed by the p2m, taken away from it, or never there. gpt: it is a guest table in sync. unlogged: dirty
# logging is on and has not logged it. override: a supervisor store that only CR0.WP=0 allows; the hardware runs with
# WP=1.
PLACE: Final = DecisionTable(
    "fault: the shadow's part",
    (
        Feature("store", NO_YES),
        Feature("frame", ("none", "away", "backed")),
        Feature("gpt", NO_YES),
        Feature("unlogged", NO_YES),
        Feature("override", NO_YES),
    ),
    (
        Row(Step.SET_AD, {"frame": "none|backed"}, "A along the walk, D at its end for a store"),
        Row(Step.MMIO, {"frame": "none"}, "no machine frame: the device model's business"),
        Row(Step.AWAY, {"frame": "away"}, "whoever has it gives it back; then the access is made again"),
        Row(Step.UNSYNC, {"frame": "backed", "store": "yes", "gpt": "yes"}, "let the guest write its table"),
        Row(Step.LOG, {"frame": "backed", "store": "yes", "unlogged": "yes"}, "first store since the log was cleared"),
        Row(Step.FILL, {"frame": "backed"}, "bring the path in, or find it right already (a spurious fault)"),
        Row(Step.OVERRIDE, {"frame": "backed", "override": "yes"}, "RW=1 US=0 for as long as the supervisor writes"),
    ),
    first_match=False,
)

TABLES: Final = (RESYNC, RIGHTS, PLACE)


def text() -> str:
    """All decision tables, printable."""
    return "\n\n".join(table.text() for table in TABLES)
