"""Counters of one engine. Flat, so that they go into a report as they are."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Stats:
    """What the engine did, in counts.

    zeroed_idle, zeroed_inline: SPTIs cleared ahead of need, and on the critical path. recycled: SPTs torn down for
    want of a free SPTI. eager_truncated: entries left without a shadow because the pool had no SPTI to give.
    aliases_truncated: tables reached at more addresses than are followed. overrides: CR0.WP=0 stores. faults_away:
    faults that met a frame that was taken away. log_rounds, log_protected_sptes: rounds of the dirty log, and the
    SPTEs that were made read-only to begin them.
    """

    cr3_loads: int = 0
    invlpgs: int = 0
    controls: int = 0
    table_writes: int = 0
    faults: int = 0
    faults_injected: int = 0
    faults_mmio: int = 0
    faults_away: int = 0
    faults_filled: int = 0
    fault_resyncs: int = 0
    overrides: int = 0
    resyncs: int = 0
    resynced_entries: int = 0
    made: int = 0
    found: int = 0
    recycled: int = 0
    zeroed_idle: int = 0
    zeroed_inline: int = 0
    protected: int = 0
    released: int = 0
    protected_sptes: int = 0
    divided: int = 0
    accessed_set: int = 0
    dirty_set: int = 0
    dirty_logged: int = 0
    log_rounds: int = 0
    log_protected_sptes: int = 0
    remapped: int = 0
    eager_truncated: int = 0
    aliases_truncated: int = 0
    unexplained: int = 0

    def flat(self) -> dict[str, int]:
        return asdict(self)
