"""What an engine may offer beyond `harness.engine.ShadowEngine`: its own insides, told to who debugs it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Explains(Protocol):
    """An engine that tells what it keeps, and why it decides as it does. Optional.

    All records are JSON-able, and asking changes nothing. In them ``spti`` is the number of a shadow table's record,
    ``role`` what it shadows and ``state`` its synchronisation, as text; ``spte`` an entry as a number and ``text`` it
    for a reader; ``wrong`` what contradicts the rest of the engine's state, one line each, empty when nothing does.
    Decisions are records of `harness.xi.explain.decision`: table, of (how many rows), features, rows.
    """

    def describe_spti(self, number: int) -> dict[str, Any] | None:
        """One shadow table: see `harness.xi.insides.describe_table`. None when there is no SPTI of that number."""

    def describe_backlinks(self, gfn: int) -> dict[str, Any]:
        """Every SPTE that maps a frame: see `harness.xi.insides.describe_backlinks`."""

    def describe_snapshot(self, gfn: int) -> list[dict[str, Any]]:
        """What the guest changed in its table since it was last synchronised, one record for each SPTI that shadows it:
        see `harness.xi.insides.describe_snapshot`."""

    def describe_pool(self) -> dict[str, Any]:
        """The pool and who has it: see `harness.xi.insides.describe_pool`."""

    def describe_log(self) -> dict[str, Any] | None:
        """The dirty log as it stands; its round goes on. None while there is no logging. See
        `harness.xi.insides.describe_log`."""

    def explain_access(self, va: int, access: int) -> dict[str, Any]:
        """What a fault of `access` at `va` would come to, and by which rows. See
        `harness.xi.explain.explain_access`."""

    def explain_entry(self, gfn: int, index: int) -> list[dict[str, Any]]:
        """What becomes of the SPTEs of entry `index` of the guest table `gfn`, one record for each: see
        `harness.xi.explain.explain_entry`."""

    def describe_mappings(self, gfn: int) -> dict[str, Any]:
        """Every address at which a frame is mapped, in every root: see `harness.xi.mappings.describe_mappings`."""


@runtime_checkable
class LogsStores(Protocol):
    """An engine that can be told of a store to the guest's memory that no fault tells of. Optional."""

    def log_dirty(self, gfn: int) -> None:
        """Puts `gfn` in the dirty log, if there is one: the debugger has stored to it."""
