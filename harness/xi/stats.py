"""Counters of one engine. Flat, so that they go into a report as they are."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from harness.work import Work


@dataclass(slots=True)
class Stats:
    """What the engine did, in counts.

    zeroed_idle, zeroed_inline: SPTIs cleared ahead of need, and on the critical path. recycled: SPTs torn down for want
    of a free SPTI; taken_by_others: those of them that went to another domain of a shared pool; taken_from_others:
    SPTIs that were other domains' and went to this one. eager_truncated: entries left without a shadow because the pool
    had no SPTI to give. aliases_truncated: tables reached at more addresses than are followed. overrides: CR0.WP=0
    stores. faults_away: faults that met a frame that was taken away. log_rounds, log_protected_sptes: rounds of the
    dirty log, and the SPTEs that were made read-only to begin them.

    What policies cost. snapshots_taken: guest tables copied, when in sync again (``reserved``) or about to go out of it
    (``dynamic``, and of those snapshots_late when the table could have been written already). synced_when_made,
    entries_when_made: SPTs that had to be synchronised when they were made, there being no snapshot to leave behind,
    and the guest entries that this decided. backlinks_allocated: one by one, when an SPTE was linked. searches: for
    SPTEs that no backlink tells; visited_for_parents, visited_for_frames, visited_for_log: the SPTEs looked at to find
    the parents of an SPT, those that map a frame, and those of the dirty log's rounds. visited_aside: the same for who
    looks on: the addresses that observation watches, and descriptions.

    Work as `harness.work` counts it, but for what something else here counts already: sptes_visited, entries_compared,
    sptes_written, words_copied, and pages_allocated for snapshots.
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
    taken_by_others: int = 0
    taken_from_others: int = 0
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
    snapshots_taken: int = 0
    snapshots_late: int = 0
    synced_when_made: int = 0
    entries_when_made: int = 0
    backlinks_allocated: int = 0
    searches: int = 0
    visited_for_parents: int = 0
    visited_for_frames: int = 0
    visited_for_log: int = 0
    visited_aside: int = 0
    sptes_visited: int = 0
    entries_compared: int = 0
    sptes_written: int = 0
    words_copied: int = 0
    pages_allocated: int = 0

    def flat(self) -> dict[str, int]:
        return asdict(self)

    def work(self, path_steps: int, followed: int, zeroed_words: int, other_pages: int) -> Work:
        """All work. path_steps: of the paths of faults; followed: backlinks; zeroed_words: of an SPTI that is zeroed;
        other_pages: that were allocated, but for snapshots."""
        searched = self.visited_for_parents + self.visited_for_frames + self.visited_for_log
        return Work(
            sptes_visited=self.sptes_visited + searched + followed + path_steps,
            entries_compared=self.entries_compared + path_steps,
            sptes_written=self.sptes_written + self.overrides + self.log_protected_sptes,
            words_copied=self.words_copied + self.zeroed_inline * zeroed_words,
            pages_allocated=self.pages_allocated + other_pages,
        )
