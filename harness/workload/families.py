"""The families there are, with the sizes at which each is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from harness.workload.compile import Compile
from harness.workload.dirty import Dirty
from harness.workload.forking import Churn, Fork
from harness.workload.knobs import Knobs
from harness.workload.large import Divide
from harness.workload.moves import Moves
from harness.workload.promote import Promote
from harness.workload.reclaim import Reclaim
from harness.workload.refill import Refill
from harness.workload.synthetic import Family

_FAULTS: Final = Knobs(spaces=8, tables=8, fill=128, rounds=2000)
_MAPPINGS: Final = Knobs(spaces=4, tables=5, fill=500, writes=1, rounds=1000)
_SHARING: Final = Knobs(spaces=16, tables=2, fill=128, mappings=16, writes=1, rounds=1000)
_SPACES: Final = Knobs(spaces=16, tables=2, fill=64, writes=16, locality=0.75, rounds=300)
_WRITES: Final = Knobs(spaces=2, tables=4, fill=512, writes=16, rounds=300)
_PROMOTE: Final = Knobs(spaces=8, tables=32, fill=16, mappings=2, direct="small", rounds=200)
_FORK: Final = Knobs(spaces=2, tables=4, fill=256, writes=16, rounds=8)
_DIRTY: Final = Knobs(spaces=4, tables=8, fill=256, writes=64, locality=0.5, rounds=20)
_REMAP: Final = Knobs(spaces=16, tables=2, fill=128, mappings=16, direct="small", rounds=500)
_LARGE: Final = Knobs(spaces=2, tables=8, rounds=200)
_CHURN: Final = Knobs(spaces=1, tables=3, fill=107, writes=16, rounds=12)
_PRESSURE: Final = Knobs(spaces=8, tables=4, fill=64, rounds=500, pool=96)


def _vary(knobs: Knobs, *changes: Mapping[str, Any]) -> tuple[Knobs, ...]:
    return tuple(replace(knobs, **change) for change in changes)


def _each(knobs: Knobs, name: str, *values: int) -> tuple[Knobs, ...]:
    return _vary(knobs, *({name: value} for value in values))


_PAGES: Final = (  # of four spaces
    {"tables": 1, "fill": 25},
    {"tables": 1, "fill": 250},
    {"tables": 5, "fill": 500},
    {"tables": 50, "fill": 500, "rounds": 300},
)

_ALL: Final = (
    Family(
        "faults",
        "a kernel compile on a warmed-up guest: demand faults, copies on write, exits, switches, new tables",
        Compile,
        "pages",
        _FAULTS,
        _each(_FAULTS, "spaces", 1, 8, 32, 96),
        _each(replace(_FAULTS, rounds=500), "spaces", 1, 8),
    ),
    Family(
        "mappings",
        "one page unmapped and faulted in again, in a guest with so many pages mapped",
        Refill,
        "pages",
        _MAPPINGS,
        _vary(_MAPPINGS, *_PAGES),
        _vary(replace(_MAPPINGS, rounds=300), *_PAGES[:3]),
    ),
    Family(
        "sharing",
        "the same where each frame is mapped so many times",
        Refill,
        "mappings",
        _SHARING,
        _each(_SHARING, "mappings", 1, 4, 16, 64, 256),
        _each(replace(_SHARING, rounds=300), "mappings", 1, 16, 256),
    ),
    Family(
        "spaces",
        "entries written here and there in so many address spaces, then one of them is loaded",
        Reclaim,
        "spaces",
        _SPACES,
        _each(_SPACES, "spaces", 1, 4, 16, 64),
        _each(replace(_SPACES, rounds=100), "spaces", 1, 16),
    ),
    Family(
        "writes",
        "so many entries unmapped, flushed, and mapped again around one fault",
        Refill,
        "writes",
        _WRITES,
        _each(_WRITES, "writes", 1, 4, 16, 64, 256),
        _each(replace(_WRITES, rounds=100), "writes", 1, 16, 256),
    ),
    Family(
        "promote",
        "a data frame that a process has mapped becomes a page table, while there are so many L1 tables",
        Promote,
        "leaves",
        _PROMOTE,
        _each(_PROMOTE, "tables", 1, 8, 32, 128),
        _each(replace(_PROMOTE, rounds=100), "tables", 1, 32),
    ),
    Family(
        "fork",
        "a process of so many pages forks; copies on write; the child exits",
        Fork,
        "pages",
        _FORK,
        _each(_FORK, "tables", 1, 4, 16),
        _each(replace(_FORK, rounds=4), "tables", 1, 4),
    ),
    Family(
        "dirty",
        "rounds of the dirty log in a guest with so many pages",
        Dirty,
        "pages",
        _DIRTY,
        _each(_DIRTY, "tables", 1, 8, 32),
        _each(replace(_DIRTY, rounds=10), "tables", 1, 8),
    ),
    Family(
        "remap",
        "machine frames move under pages that are mapped so many times",
        Moves,
        "mappings",
        _REMAP,
        _each(_REMAP, "mappings", 1, 4, 16, 64, 256),
        _each(replace(_REMAP, rounds=200), "mappings", 1, 16, 256),
    ),
    Family(
        "large",
        "large pages are mapped and divided by stores that are logged",
        Divide,
        "leaves",
        _LARGE,
        _each(_LARGE, "tables", 1, 8, 32),
        _each(replace(_LARGE, rounds=100), "tables", 1, 8),
    ),
    Family(
        "churn",
        "what the guest churn does, with so many pages: fork, copies on write, bursts, exits",
        Churn,
        "pages",
        _CHURN,
        _vary(_CHURN, {}, {"tables": 8, "fill": 256}, {"tables": 16, "fill": 512, "rounds": 6}),
        _vary(replace(_CHURN, rounds=6), {}),
    ),
    Family(
        "pressure",
        "the kernel compile with room for so many shadow tables",
        Compile,
        "pool",
        _PRESSURE,
        _each(_PRESSURE, "pool", 48, 96, 192),
        _each(replace(_PRESSURE, rounds=200), "pool", 48, 192),
    ),
)

SYNTHETIC: Final[Mapping[str, Family]] = {family.name: family for family in _ALL}
