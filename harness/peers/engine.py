"""What every peer engine answers in the same way: `harness.engine.ShadowEngine`, but for its mechanism.

A mechanism overrides `flush`, `refresh_address`, `store_to_table`, `take_write_access`, `forget_frame`, and whatever it
needs of "What happens to SPTEs and pages" (`tables`) and of the fault path (`faults`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from harness.engine import AuditFailure, Bytes, EngineConfig, MachineMemory, ShadowRoot, Words
from harness.peers.aliases import Aliases
from harness.peers.audit import audit
from harness.peers.describe import describe_gfn, describe_walk
from harness.peers.faults import Faults
from harness.peers.hardware import hardware_root
from harness.peers.pages import ShadowPage
from harness.work import HASH_ENTRY_BYTES, PAGE, Held, PathCount, Work, path_levels
from harness.x86.control import ControlState
from harness.xi.roles import GUEST, UNPAGED, Role, root_role

PROTECTING: Final[Mapping[str, str]] = {"write_protect": "write_protect", "table_written": "store_to_table"}
"""For the `operations` of an engine that write-protects tables."""


class PeerEngine(Faults):
    """A shadow engine without its mechanism. The guest is taken to start unpaged. frames_per_table: of the pool, for
    each shadow table."""

    frames_per_table: ClassVar[int] = 1
    operations: ClassVar[Mapping[str, str]] = {
        "resync_spte": "update_entry",
        "gva_to_gpa": "gva_to_gpa",
        "spti_make_shadow": "get_page",
        "divide_large_page": "divide_large_page",
    }

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        super().__init__(config, memory)
        self._paths = PathCount(path_levels(self.state))
        self.aliases = Aliases(self)
        self._shadow_root: ShadowRoot | None = None

    # The mechanism.

    def flush(self, role: Role) -> None:
        """The guest's registers say that its root is that of `role`, and that nothing may be stale now: `root_page`
        becomes its page."""
        raise NotImplementedError

    def refresh_address(self, va: int) -> None:
        """INVLPG: nothing about `va` may be stale now, nor any table above level 1."""
        raise NotImplementedError

    def take_write_access(self, gfns: npt.NDArray[np.int64] | None) -> int:
        """Takes RW from every leaf of `gfns`, and of the large pages around them; of all frames for None. How many
        lost it."""
        raise NotImplementedError

    def forget_frame(self, gfn: int) -> None:
        """The frame of `gfn` is about to move, go or come: no leaf may map it, nor a large page around it."""
        raise NotImplementedError

    def forget_table(self, gfn: int) -> None:
        """The frame of the guest table `gfn` has come or gone: its shadow pages go, but for the root in use."""
        raise NotImplementedError

    def in_sync(self, page: ShadowPage) -> bool:
        """Whether the GUEST `page` says what its table says, because no store to that can go unseen."""
        return page.gfn < self.config.frames and bool(self.protected[page.gfn])

    # What the guest did.

    @property
    def state(self) -> ControlState:
        return self.guest.state

    def control(self, state: ControlState) -> None:
        """See `harness.engine`. Raises ValueError, with nothing changed, when the root was taken away."""
        self._must_be_there(state)
        self.counters.controls += 1
        self._paths.change(self.counters.shadow_fault, path_levels(state))
        self.guest.control(state)
        self._flush()

    def load_cr3(self, cr3: int) -> None:
        """See `harness.engine`. Raises ValueError, with nothing changed, when the root was taken away."""
        old = self.state
        self._must_be_there(ControlState(old.cr0, cr3, old.cr4, old.efer, old.pkru))
        self.counters.cr3_loads += 1
        self.guest.load_cr3(cr3)
        self._flush()

    def _must_be_there(self, state: ControlState) -> None:
        if self.needs(state) >= 0:
            raise ValueError(f"the root table, gfn {self.needs(state):#x}, was taken away: it must be back first")

    def _flush(self) -> None:
        self.counters.shadow_resync_all += 1
        self._shadow_root = None
        self.flush(root_role(self.state))

    def invlpg(self, va: int) -> None:
        self.counters.invlpgs += 1
        if self.guest.canonical(va) and self.root_page is not None:
            self.refresh_address(va)

    def table_written(self, gfn: int) -> None:
        """See `harness.engine`."""
        if 0 <= gfn < self.config.frames and self.protected[gfn]:
            self.counters.table_writes += 1
            self.store_to_table(gfn, None)

    def set_pkru(self, pkru: int) -> None:
        if pkru != self.state.pkru:
            self.guest.set_pkru(pkru)
            self._shadow_root = None
            self.end_overrides()

    def resync_all(self) -> None:
        self._flush()

    def idle(self) -> bool:
        return False

    # Frames and migration.

    def needs(self, state: ControlState) -> int:
        return self.guest.needs(state)

    @property
    def pdptes(self) -> tuple[int, int, int, int]:
        return self.guest.pdptes

    def restore_pdptes(self, pdptes: tuple[int, int, int, int]) -> None:
        if self.state.mode.name == "pae":
            self.guest.pdptes = pdptes
            self._flush()

    def xi_invld_mfn(self, gfn: int, mfn: int) -> None:
        """See `harness.engine`."""
        self.p2m.check(gfn, mfn)
        root = self.root_page
        if mfn < 0 and root is not None and root.gfn == gfn and root.kind is not UNPAGED:
            raise ValueError(f"gfn {gfn:#x} is the root table in use: it can move, but not go")
        self.counters.xi_invld_mfn += 1
        old = self.p2m.to_mfn[gfn]
        self.forget_frame(gfn)
        self.p2m.assign(gfn, mfn)
        if (old < 0) != (mfn < 0):
            self.forget_table(gfn)

    def dirty_log_start(self) -> None:
        self.logging = True
        self.logged[:] = 0
        self.counters.dirty_start += 1
        self.counters.log_protected_sptes += self.take_write_access(None)

    def dirty_log_stop(self) -> None:
        self.logging = False
        self.logged[:] = 0

    def dirty_log_read(self) -> Bytes:
        out = self.logged.copy()
        self.logged[:] = 0
        if self.logging:
            self.counters.dirty_start += 1
            self.counters.log_protected_sptes += self.take_write_access(np.flatnonzero(out))
        return out

    # What the hardware, the interception and the checker see.

    @property
    def root(self) -> ShadowRoot:
        """What the hardware runs with. Loads nothing: before the first event, an unpaged guest's map."""
        if self.root_page is None:
            self._flush()
        if self._shadow_root is None:
            assert self.root_page is not None
            self._shadow_root = hardware_root(self.state, self.root_page.mfn)
        return self._shadow_root

    def set_root(self, page: ShadowPage | None) -> None:
        """`page` is the root from now on. Raises AssertionError for None: the root in use is always given up first."""
        assert page is not None, "the pool has room for a root"
        self.root_page = page
        self._shadow_root = None
        self.version += 1

    @property
    def pool(self) -> tuple[int, Words]:
        return self.pool_pages.base_mfn, self.pool_pages.words.reshape(-1, 512)

    def watch_changes(self) -> dict[int, frozenset[int]]:
        return self.aliases.watch_changes()

    def executable_changes(self) -> npt.NDArray[np.int64]:
        return self.aliases.executable_changes()

    def addresses_of(self, gfn: int, writable: bool = False, executable: bool = False) -> frozenset[int]:
        return self.aliases.addresses_of(gfn, writable, executable)

    def guest_tables(self) -> dict[int, bool]:
        pages = self.pool_pages.in_use.values()
        gfns = {page.gfn for page in pages if page.kind is GUEST}
        return {gfn: gfn < self.config.frames and bool(self.protected[gfn]) for gfn in gfns}

    def unexplained_changes(self) -> list[int]:
        """See `harness.engine`."""
        return []

    def audit(self) -> list[AuditFailure]:
        """The invariants of `harness.peers.audit`, recomputed from the raw tables."""
        return audit(self)

    # What it tells of its work: `harness.work.Counted`.

    def work(self) -> Work:
        """All work so far, as `harness.work` counts it."""
        counters = self.counters
        steps = self._paths.steps(counters.shadow_fault)
        return Work(
            counters.sptes_visited + steps,
            counters.entries_compared + steps,
            counters.sptes_written,
            counters.words_copied,
            counters.pages_allocated,
        )

    def done(self) -> Mapping[str, int]:
        """resync_spte: SPTEs that a synchronisation made anew, or found to be no longer what they were."""
        return {"resync_spte": self.counters.resync_spte}

    def held(self) -> Held:
        """Memory held now."""
        count = len(self.pool_pages.in_use)
        return Held(tables=count * PAGE, snapshots=0, reverse=count * HASH_ENTRY_BYTES, reserved=0)

    def stats(self) -> dict[str, Any]:
        own = self.guest.counters
        pool = self.pool_pages
        return (
            self.counters.flat()
            | self.work()._asdict()
            | {
                "accessed_set": own.accessed_set,
                "dirty_set": own.dirty_set,
                "pool_pages": len(pool),
                "pages_held": len(pool.in_use),
                "pages_held_most": pool.most_held,
                "guest_tables": len(self.guest_tables()),
            }
        )

    def describe_gfn(self, gfn: int) -> dict[str, Any]:
        return describe_gfn(self, gfn)

    def describe_walk(self, va: int) -> list[dict[str, Any]]:
        return describe_walk(self, va)
