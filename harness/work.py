"""What an engine may tell of its work and of the memory that it holds, so that engines can be compared.

Counts are the same in every run and on every machine, which times are not; but they compare engines only if all count
alike. This is the convention. It counts words of shadow tables, of guest tables and of what an engine keeps of them:

``sptes_visited``
    An SPTE that the engine looks at to find something out. A node of a list that leads to an SPTE (a backlink, an entry
    of a reverse map) counts one when it is followed, or passed on the way to another. A search counts every SPTE that
    it goes through, found or not, and however fast: one numpy expression over a table is 512. So does a teardown, which
    looks for the SPTEs in use. A synchronisation counts those that it looks at to see whether there is anything to
    bring up to date.
``entries_compared``
    A guest entry that is compared with a snapshot, or from which its SPTE is worked out anew, to see what became of it.
    A comparison, or a sum, of a whole table counts all the entries that it covers. Acting on an entry that was compared
    counts no second time.
``sptes_written``
    An SPTE that is set, changed or cleared; one that stays as it is, not. One that is replaced is cleared and set: 2.
    512 written by one numpy expression are 512.
``words_copied``
    An 8-byte word that is zeroed or copied, while somebody waits, to set a page up: 512 for a shadow table that is
    zeroed when it is wanted, 512 for a snapshot of a whole table. What is zeroed in idle moments does not count, nor
    does the one word of a snapshot that goes with an SPTE.
``pages_allocated``
    A 4 KiB page that came from an allocator when it was wanted; none of what was reserved beforehand. Of things smaller
    than a page, the pages that they fill when they are most, each counted as it is first needed.

A fault walks one path: down the guest's tables, and down the shadow. That counts one entry compared and one SPTE
visited for each level of the guest's paging mode (of the shadow's format while paging is off), flat, however the walk
ended; `PathCount` keeps the account. An engine that goes the path again counts it again. So a ratio of two engines is
one of all that a fault touches, and not only of what one of them does in addition.

What numpy does to a whole table counts as one by one: what is passed over because an SPTE is empty, or an entry is as
it was, does not count beyond the look that tells so.

Nothing counts that is no part of a shadow or of a guest's table: A and D bits set for the guest, p2m, dirty log, heads
of lists, hashes, and the upkeep of lists that an engine finds its way into without looking (a backlink is linked and
unlinked by arithmetic). Nor does what is done for who looks on: audits, descriptions, addresses worked out for
observation, `unexplained_changes`. What is done in idle moments counts, but for zeroing.

Which method of each engine is which operation stands in ``harness/peers/README.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, NamedTuple, Protocol, runtime_checkable

from harness.x86.control import ControlState
from harness.x86.modes import PAE

PAGE: Final = 4096
HASH_ENTRY_BYTES: Final = 32
"""Of the hash by which the shadow of a guest table is found: key, frames, link. Taken to be the same in all engines."""


class Work(NamedTuple):
    """What an engine has done since it was made, counted as this module says."""

    sptes_visited: int
    entries_compared: int
    sptes_written: int
    words_copied: int
    pages_allocated: int

    @property
    def words(self) -> int:
        """Words of tables touched: the unit in which work is compared. All but the pages."""
        return self.sptes_visited + self.entries_compared + self.sptes_written + self.words_copied

    def since(self, before: Work) -> Work:
        """The work that was done after `before`, an earlier count of the same engine."""
        return Work(*(now - then for now, then in zip(self, before, strict=True)))


class Held(NamedTuple):
    """Bytes that an engine holds now, beyond what every engine has (p2m, dirty log, a record for each table).

    tables: shadow tables in use. snapshots: of their guest tables. reverse: whatever leads from a frame or a table back
    to the SPTEs that point there, and from a guest table to its shadow: backlinks, reverse maps, heads of lists, hash.
    reserved: what belongs to the domain from its first moment to its last, used or not; 0 for an engine that reserves
    nothing. Of what is in use, `reserved` may contain all or part.
    """

    tables: int
    snapshots: int
    reverse: int
    reserved: int

    @property
    def used(self) -> int:
        """Bytes in use."""
        return self.tables + self.snapshots + self.reverse


class Operation(NamedTuple):
    """One of OPERATIONS. calls: the methods of `harness.engine.ShadowEngine` that are this operation as it is seen from
    outside; none for an inner one, which only an engine itself can name (`Counted.operations`)."""

    name: str
    description: str
    calls: tuple[str, ...]


OPERATIONS: Final[Mapping[str, Operation]] = {
    operation.name: operation
    for operation in (
        Operation("shadow_fault", "answer a page fault on the shadow", ("shadow_fault",)),
        Operation("shadow_resync_all", "bring the whole shadow up to date", ("load_cr3", "control", "resync_all")),
        Operation("resync_spte", "bring the SPTE of one guest entry up to date", ()),
        Operation("gva_to_gpa", "walk the guest's tables for an address", ()),
        Operation("spti_make_shadow", "find or make the shadow of a guest table", ()),
        Operation("spti_made", "synchronise a new shadow at once, where no snapshot can be left behind", ()),
        Operation("xi_invld_mfn", "change the machine frame of a guest frame", ("xi_invld_mfn",)),
        Operation("divide_large_page", "map a large page in pieces", ()),
        Operation("write_protect", "write-protect a new guest page table", ()),
        Operation("dirty_start", "start a round of the dirty log", ("dirty_log_start", "dirty_log_read")),
        Operation("table_written", "take the first store to a guest table", ("table_written",)),
    )
}
"""The operations that are compared, by the names that the XI discussion gives them, where it does."""


@runtime_checkable
class Counted(Protocol):
    """An engine that tells of its work. Optional: any other is measured from outside only, in calls and in time.

    operations: for inner operations, the name of the engine's own method that is it. The engine looks the method up
    through ``self`` each time that it calls it, so that a subclass may wrap it.
    """

    operations: ClassVar[Mapping[str, str]]

    def work(self) -> Work:
        """All work so far. Cheap enough to be asked before and after every call."""

    def done(self) -> Mapping[str, int]:
        """How often inner operations were done so far, for those of which calls of the method do not tell: it is also
        called on other occasions, or many are done at once."""

    def held(self) -> Held:
        """Memory held now."""


def path_levels(state: ControlState) -> int:
    """Tables on the path of a fault: those of the guest's paging mode, and of PAE format while paging is off."""
    return len(state.mode.levels or PAE.levels)


class PathCount:
    """The path of each fault, counted without a word on the path itself: faults times levels, settled whenever the
    number of levels changes."""

    __slots__ = ("_levels", "_settled", "_since")

    def __init__(self, levels: int) -> None:
        """levels: tables on the path of a fault from now on."""
        self._levels = levels
        self._settled = 0
        self._since = 0

    def change(self, faults: int, levels: int) -> None:
        """Faults have `levels` levels from now on. faults: those before now, since the engine was made."""
        self._settled = self.steps(faults)
        self._since = faults
        self._levels = levels

    def steps(self, faults: int) -> int:
        """Steps down the tables that `faults` faults have taken in all."""
        return self._settled + (faults - self._since) * self._levels
