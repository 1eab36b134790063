"""The XI engine as the harness drives it: `harness.engine.ShadowEngine` on top of the layers of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from harness.engine import AuditFailure, EngineConfig, MachineMemory, ShadowRoot, Words
from harness.work import HASH_ENTRY_BYTES, PAGE, Held, PathCount, Work, path_levels
from harness.x86.bits import (
    CR0_CD,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PGE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
)
from harness.x86.control import ControlState
from harness.x86.modes import MODES, PAE
from harness.xi import describe, explain, insides, mappings
from harness.xi.audit import audit
from harness.xi.gpt import UNBACKED_TABLE_ENTRY
from harness.xi.policies import POLICIES
from harness.xi.pool import FRAMES_PER_SPTI, Spti
from harness.xi.remap import Remap
from harness.xi.roles import FORMAT, UNPAGED, root_role_at, variant_of
from harness.xi.shared_pool import SharedPool

# Writes that change one of these reload the PDPTEs of a PAE guest (SDM vol. 3A, 4.4.1).
_RELOADS_CR0: Final = CR0_CD | CR0_NW | CR0_PG
_RELOADS_CR4: Final = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP


class XiEngine(Remap):
    """XI. ``XiEngine(config, memory)``. policies: the options and their values, the default first. For the policy
    ``pool=shared``, ``XiEngine(config, memory, shared_pool=pool)`` joins the domains of a `SharedPool`; without one it
    has a shared pool to itself. frames_per_table: of the pool, for each shadow table.

    The guest is taken to start unpaged; the first `control` says how it really stands.
    """

    policies: ClassVar[Mapping[str, Sequence[str]]] = POLICIES
    operations: ClassVar[Mapping[str, str]] = {
        "resync_spte": "resync_spte",
        "gva_to_gpa": "gva_to_gpa",
        "spti_make_shadow": "spti_make_shadow",
        "spti_made": "made",
        "divide_large_page": "link_divided",
        "write_protect": "protect_gfn",
        "table_written": "table_written",
    }
    frames_per_table: ClassVar[int] = FRAMES_PER_SPTI

    def __init__(self, config: EngineConfig, memory: MachineMemory, shared_pool: SharedPool | None = None) -> None:
        """Raises ValueError when `config` cannot work, or there is no room for one more domain in `shared_pool`."""
        super().__init__(config, memory, shared_pool)
        self._paths = PathCount(path_levels(self.state))
        self._walks = PathCount(0)
        self._shadow_root: ShadowRoot | None = None
        self._roots: dict[int, ShadowRoot] = {}  # by SPTI number, for the control bits and PKRU as they are
        self._started = False
        self._adopt(self.state)

    # What the guest did.

    def control(self, state: ControlState) -> None:
        """CR0, CR4 or EFER changed (see `harness.engine`). `state.pkru` is taken as the guest's PKRU.

        Raises ValueError, with nothing changed, when the root was taken away (see `needs`).
        """
        self._must_be_there(state)
        self.counters.controls += 1
        old = self.state
        reload = (
            not self._started
            or state.cr3 != old.cr3
            or state.mode is not old.mode
            or bool((state.cr0 ^ old.cr0) & _RELOADS_CR0)
            or bool((state.cr4 ^ old.cr4) & _RELOADS_CR4)
        )
        self._adopt(state)
        if reload:
            self.latch_pdptes()
        if old.mode.levels and not state.mode.levels:
            self.all_out_of_sync()
        self._switch_root()
        self._started = True

    def load_cr3(self, cr3: int) -> None:
        """MOV CR3: the root of `cr3` becomes current, and what it reaches is synchronised.

        Raises ValueError, with nothing changed, when the root was taken away (see `needs`).
        """
        old = self.state
        if cr3 != old.cr3 or not self._started:
            state = ControlState(old.cr0, cr3, old.cr4, old.efer, old.pkru)
            self._must_be_there(state)
            self._adopt(state)
            self._started = True
        self.counters.cr3_loads += 1
        self.latch_pdptes()
        self._switch_root()

    def invlpg(self, va: int) -> None:
        """INVLPG: the entry of `va`, and every table above level 1 that the root reaches, is synchronised."""
        self.counters.invlpgs += 1
        if va >> self._top_shift in self._tops:
            self.resync_address(va)

    def set_pkru(self, pkru: int) -> None:
        if pkru != self.state.pkru:
            self._adopt(replace(self.state, pkru=pkru))
            self.end_overrides()

    def resync_all(self) -> None:
        self.shadow_resync_all()

    def _must_be_there(self, state: ControlState) -> None:
        if self.p2m.away and self.needs(state) >= 0:
            raise ValueError(f"the root table, gfn {self.needs(state):#x}, was taken away: it must be back first")

    def _adopt(self, state: ControlState) -> None:
        old = self.state
        self.state = state
        self._shadow_root = None
        if state.cr0 != old.cr0 or state.cr4 != old.cr4 or state.efer != old.efer or not self._started:
            self._mode = state.mode
            self._paths.change(self._paths_gone, path_levels(state))
            self._walks.change(self.counters.faults, 1 if state.mode.levels else 0)
            self._variant = variant_of(state)
            self._roots.clear()
            self.latch_walk()
        elif state.pkru != old.pkru:
            self._roots.clear()
        self._root_gpa = state.cr3 & self._mode.root_mask

    def latch_pdptes(self) -> None:
        """Loads the four PDPTEs of a PAE guest into the registers that the processor keeps them in."""
        if self._mode is not PAE:
            return
        gpa = self._root_gpa
        if self.p2m.backed(gpa >> 12):
            at = (self.p2m.to_mfn[gpa >> 12] << 12) + (gpa & 0xFE0)
            read = self.memory.read64
            self.pdptes = (read(at), read(at + 8), read(at + 16), read(at + 24))
        else:
            self.pdptes = (UNBACKED_TABLE_ENTRY,) * 4

    def restore_pdptes(self, pdptes: tuple[int, int, int, int]) -> None:
        if self._mode is PAE:
            self.pdptes = pdptes
            self._switch_root()

    def _switch_root(self) -> None:
        self.known_paths.clear()
        role = root_role_at(self._mode.name, self._variant, self._root_gpa)
        root = self.root_spti
        if root is None or root.role != role:
            self._shadow_root = None
            self.pool_memory.space.no_victim = False
            if root is not None and root.kind is UNPAGED:
                # Nothing walks the direct map of a guest that has turned paging on.
                self.root_spti = None
                self.destroy_tree(root)
            root = self.spti_make_shadow(role, force=True)
            assert root is not None, "only the current root and pinned tables are exempt from recycling"
            self.root_spti = root
            self.made(root)
        else:
            self.pool_memory.touch(root.index)
        if root.rules is not None and root.rules.latched:
            self.counters.entries_compared += len(self.pdptes)
            if root.entries.tolist() != list(self.pdptes):
                root.synced = False
                self.mark_dirty(root.index)
        self.shadow_resync_all()

    # What the hardware, the interception and the checker see.

    @property
    def root(self) -> ShadowRoot:
        """What the hardware runs with. Loads nothing: before the first event, an unpaged guest's map."""
        if self.root_spti is None:
            self._switch_root()
        if self._shadow_root is None:
            root = self.root_spti
            assert root is not None
            known = self._roots.get(root.index)
            if known is None:
                known = self._roots[root.index] = self._hardware_root(root)
            self._shadow_root = known
        return self._shadow_root

    def _hardware_root(self, root: Spti) -> ShadowRoot:
        guest = self.state
        shadow = MODES[FORMAT[guest.mode.name]]
        address = root.mfn << 12
        cr4 = CR4_PAE | CR4_PSE
        if guest.mode.levels:  # without paging the guest has neither SMEP, SMAP nor keys
            cr4 |= guest.cr4 & (CR4_SMEP | CR4_SMAP | CR4_PKE)
        if shadow.name == "long5":
            cr4 |= CR4_LA57
        efer = EFER_NXE | (EFER_LME | EFER_LMA if shadow.canonical else 0)
        cr0 = (guest.cr0 & ~(CR0_CD | CR0_NW)) | CR0_PE | CR0_PG | CR0_WP
        return ShadowRoot(shadow, address, ControlState(cr0, address, cr4, efer, guest.pkru))

    @property
    def pool(self) -> tuple[int, Words]:
        return self.pool_memory.base_mfn, self.pool_memory.words.reshape(-1, 512)

    def watch_changes(self) -> dict[int, frozenset[int]]:
        return self.aliases.watch_changes()

    def executable_changes(self) -> npt.NDArray[np.int64]:
        return self.aliases.executable_changes()

    def addresses_of(self, gfn: int, writable: bool = False, executable: bool = False) -> frozenset[int]:
        return self.aliases.addresses_of(gfn, writable, executable)

    def guest_tables(self) -> dict[int, bool]:
        """gfn of every shadowed guest table -> whether it is write-protected. The page of a PAE guest's PDPTEs never
        is: they are registers, and a store to the page means nothing until CR3 is loaded."""
        return {gfn: gfn < self.config.frames and self.guarded[gfn] != 0 for gfn in self.gpts}

    def unexplained_changes(self) -> list[int]:
        """See `harness.engine`. One comparison of all in-sync guest tables with what is kept of them."""
        guarding = [s for s in map(self.sptis.__getitem__, self.pool_memory.lru) if s.guards and s.synced]
        if not guarding:
            return []
        now = np.empty((len(guarding), 512), np.uint64)
        for row, spti in zip(now, guarding, strict=True):
            row[:] = self.memory.page(self.p2m.to_mfn[spti.gfn])
        differs = self.snapshots.differing(guarding, now)
        out = sorted({guarding[i].gfn for i in np.flatnonzero(differs).tolist()})
        self.counters.unexplained += len(out)
        for gfn in out:
            for index in self.gpts[gfn]:
                self.set_out_of_sync(self.sptis[index])
        return out

    def audit(self) -> list[AuditFailure]:
        """Every invariant of `harness.xi.audit`, recomputed from the raw tables."""
        return audit(self)

    def stats(self) -> dict[str, Any]:
        pool, counters = self.pool_memory, self.counters
        return (
            counters.flat()
            | self.work()._asdict()
            | {
                "shadow_pages": pool.held,
                "snapshot_pages": self.snapshots.pages_held,
                "snapshot_pages_peak": self.snapshots.pages_peak,
                "backlink_pages": self.links.pages_held,
                "backlink_pages_peak": self.links.pages_peak,
                "sptis": len(pool),
                "sptis_free": pool.free,
                "sptis_clean": len(pool.clean),
                "sptis_of_others": len(pool.order) - len(pool.lru),
                "orphans": len(self.orphans),
                "guest_tables": len(self.gpts),
            }
        )

    # What it tells of its work: `harness.work.Counted`.

    @property
    def _paths_gone(self) -> int:
        """Paths of faults: one more for each that had to synchronise, and looked again."""
        return self.counters.faults + self.counters.fault_resyncs

    def work(self) -> Work:
        """All work so far, as `harness.work` counts it. An SPTI from a pool that domains share was allocated."""
        pages = self.links.pages_allocated
        if self.pool_memory.policy == "shared":
            pages += self.counters.made * self._spti_pages
        steps, zeroed = self._paths.steps(self._paths_gone), self.pool_memory.zeroed_words
        return self.counters.work(steps, self.links.followed, zeroed, pages)

    def done(self) -> Mapping[str, int]:
        """resync_spte: guest entries that a synchronisation, or an INVLPG, acted on since they had changed. gva_to_gpa:
        faults while paging was on; most of them walk on a short cut."""
        counters = self.counters
        return {"resync_spte": counters.resynced_entries, "gva_to_gpa": self._walks.steps(counters.faults)}

    def held(self) -> Held:
        """Memory held now. What an SPTI does not own under a policy does not count, though the frames of the pool are
        laid out in the same way under all."""
        links, snapshots, used = self.links, self.snapshots, len(self.pool_memory.lru)
        owned = len(self.pool_memory) if self.pool_memory.policy == "reserved" else 0
        return Held(
            tables=used * PAGE,
            snapshots=used * snapshots.spti_pages * PAGE + snapshots.fixed_bytes + snapshots.grown_bytes,
            reverse=used * (links.spti_pages * PAGE + HASH_ENTRY_BYTES) + links.fixed_bytes + links.grown_bytes,
            reserved=owned * self._spti_pages * PAGE + snapshots.fixed_bytes + links.fixed_bytes,
        )

    @property
    def _spti_pages(self) -> int:
        return 1 + self.snapshots.spti_pages + self.links.spti_pages

    def describe_gfn(self, gfn: int) -> dict[str, Any]:
        return describe.describe_gfn(self, gfn)

    def describe_walk(self, va: int) -> list[dict[str, Any]]:
        return describe.describe_walk(self, va)

    # What a debugger is told: `harness.engine_views.Explains`.

    def describe_spti(self, number: int) -> dict[str, Any] | None:
        return insides.describe_table(self, number)

    def describe_backlinks(self, gfn: int) -> dict[str, Any]:
        return insides.describe_backlinks(self, gfn)

    def describe_snapshot(self, gfn: int) -> list[dict[str, Any]]:
        return insides.describe_snapshot(self, gfn)

    def describe_pool(self) -> dict[str, Any]:
        return insides.describe_pool(self)

    def describe_log(self) -> dict[str, Any] | None:
        return insides.describe_log(self)

    def explain_access(self, va: int, access: int) -> dict[str, Any]:
        return explain.explain_access(self, va, access)

    def explain_entry(self, gfn: int, index: int) -> list[dict[str, Any]]:
        return explain.explain_entry(self, gfn, index)

    def describe_mappings(self, gfn: int) -> dict[str, Any]:
        return mappings.describe_mappings(self, gfn)
