"""Counters of a peer engine, by the names that the XI discussion gives the operations. Flat, to go into a report."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counters:
    """How often, and how much work it was.

    shadow_fault, shadow_resync_all (synchronisations of everything: CR3 loads, flushes), resync_spte (SPTEs that were
    made anew from a guest entry that changed, or is brought in by a synchronisation), gva_to_gpa (guest walks of the
    fault path), spti_make_shadow (shadow pages made), xi_invld_mfn, divide_large_page, write_protect (tables made
    read-only), dirty_start (rounds of the dirty log): calls.

    Work as `harness.work` counts it, but for the paths of faults: sptes_visited, entries_compared, sptes_written,
    words_copied, pages_allocated.

    pages_on_fault: shadow pages that were made while a fault waited. log_protected_sptes: SPTEs made read-only to begin
    a round of the dirty log. recycled: shadow pages given up for want of room. truncated: entries left without a shadow
    for want of room.
    """

    cr3_loads: int = 0
    controls: int = 0
    invlpgs: int = 0
    table_writes: int = 0
    shadow_fault: int = 0
    shadow_resync_all: int = 0
    resync_spte: int = 0
    gva_to_gpa: int = 0
    spti_make_shadow: int = 0
    xi_invld_mfn: int = 0
    divide_large_page: int = 0
    write_protect: int = 0
    dirty_start: int = 0
    sptes_visited: int = 0
    entries_compared: int = 0
    sptes_written: int = 0
    words_copied: int = 0
    pages_allocated: int = 0
    pages_on_fault: int = 0
    log_protected_sptes: int = 0
    faults_injected: int = 0
    faults_mmio: int = 0
    faults_away: int = 0
    overrides: int = 0
    dirty_logged: int = 0
    recycled: int = 0
    truncated: int = 0
    unexplained: int = 0

    def flat(self) -> dict[str, int]:
        return asdict(self)
