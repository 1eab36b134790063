"""The policies of XI: each an option of the engine, its values the two or three sides of a debate, the default first.

What a value stands for is one class behind one interface; the engine makes one of each and asks no further.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from harness.engine import EngineConfig
from harness.xi.backlinks import Backlinks
from harness.xi.links import Links
from harness.xi.no_backlinks import NoBacklinks
from harness.xi.p2m import P2m
from harness.xi.pool import BACKLINKS as BACKLINK_WORDS
from harness.xi.pool import SNAPSHOT as SNAPSHOT_WORDS
from harness.xi.pool import ZEROING, Pool
from harness.xi.shared_pool import SharedPool, reserved_pool, share_of_a_pool
from harness.xi.snapshots import DynamicSnapshots, Guest, ReservedSnapshots, Snapshots
from harness.xi.stats import Stats
from harness.xi.table_backlinks import TableBacklinks

SNAPSHOTS: Final[Mapping[str, Callable[[Pool, Guest], Snapshots]]] = {
    "reserved": ReservedSnapshots,
    "dynamic": DynamicSnapshots,
}
BACKLINKS: Final[Mapping[str, Callable[[Pool, P2m, Stats], Links]]] = {
    "all": lambda pool, p2m, _: Backlinks(pool, p2m.frames),
    "gpt-only": TableBacklinks,
    "none": NoBacklinks,
}
POOLS: Final[Mapping[str, Callable[[EngineConfig, SharedPool | None, str, int], Pool]]] = {
    "reserved": reserved_pool,
    "shared": share_of_a_pool,
}
ZEROED_WORDS: Final[Mapping[str, int]] = {"reserved": BACKLINK_WORDS, "dynamic": SNAPSHOT_WORDS}  # of an SPTI's own
# What a fault on a missing translation synchronises. It drops what the processor has cached for its own address only,
# as INVLPG does (SDM vol. 3A, 4.10.4.1), so that is enough; a table that is compared as a whole is write-protected
# again, and each store to it faults anew.
FAULT_RESYNC: Final = ("address", "all")
POLICIES: Final[Mapping[str, tuple[str, ...]]] = {
    "snapshots": tuple(SNAPSHOTS),
    "backlinks": tuple(BACKLINKS),
    "pool": tuple(POOLS),
    "zeroing": ZEROING,
    "fault-resync": FAULT_RESYNC,
}


def chosen(options: Mapping[str, str]) -> dict[str, str]:
    """`options` with the default for each policy that is not among them. Raises ValueError for a policy or a value that
    there is not; the message says which there are."""
    unknown = sorted(set(options) - set(POLICIES))
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)}; the options are {', '.join(sorted(POLICIES))}")
    for name, value in options.items():
        if value not in POLICIES[name]:
            raise ValueError(f"{name}={value!r}: the policies are {', '.join(POLICIES[name])}")
    return {name: values[0] for name, values in POLICIES.items()} | dict(options)
