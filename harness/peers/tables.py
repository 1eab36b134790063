"""Shadow tables: what the SPTE of each kind of guest entry says, and how it is set, changed and dropped.

SPTEs are encoded as `harness.xi.gpt` describes: one whose guest entry has A=0 is there with P=0, its D bit says that
nothing but write protection or dirty logging keeps RW off it. An engine that keeps account of its SPTEs and pages is
told of them by the methods under "What happens to SPTEs and pages"; no other code writes a nonzero word over a zero
one, or the reverse.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from harness.engine import EngineConfig, MachineMemory
from harness.peers.counters import Counters
from harness.peers.guest_side import GuestSide
from harness.peers.pages import PagePool, ShadowPage
from harness.x86.bits import ENTRIES, PTE_ADDR, PTE_D, PTE_P, PTE_PK, PTE_PK_SHIFT, PTE_PS, PTE_RW, PTE_US
from harness.xi.asi import FILLS, PAE_ROOT_LIMIT
from harness.xi.gpt import OPEN_LEAF, OPEN_PDPTE, OPEN_TABLE, SW_OVERRIDE, divided_flags
from harness.xi.p2m import P2m
from harness.xi.roles import (
    DIRECT,
    GUEST,
    QUADRANTS,
    UNPAGED,
    VARIANT_READ_ONLY_ABOVE,
    VARIANT_SUPERVISOR_ABOVE,
    Role,
)

ABSENT, LEAF, LARGE, TABLE = range(4)
"""What a guest entry is: nothing (or nothing that may be shadowed), a 4 KiB page, a large page, a table."""


class Tables:
    """The shadow of one domain: pool, p2m, the guest's side, dirty log and counters.

    protected: uint16, for each gfn, how many shadow pages need it write-protected. dirty log: `logging`, and `logged`,
    uint8 for each gfn. overridden: words of SPTEs opened for a CR0.WP=0 store. version: changes whenever an SPTE other
    than its A, D or RW does. on_fault: a fault is being answered.
    """

    name = ""
    policies: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init__(self, config: EngineConfig, memory: MachineMemory) -> None:
        """Raises ValueError when `config` cannot work; the message says what would."""
        for option, value in config.options.items():
            if value not in self.policies.get(option, ()):
                raise ValueError(f"unknown option {option}={value}; the options are {self.policies or 'none'}")
        if config.fill not in FILLS:
            raise ValueError(f"fill={config.fill!r}: one of {', '.join(FILLS)}")
        if config.frames < 1:
            raise ValueError(f"a domain of {config.frames} frames")
        end = config.pool_base_mfn + config.pool_frames
        if end > PAE_ROOT_LIMIT:
            raise ValueError(f"the pool ends at frame {end:#x}: a root in PAE format must lie below 4 GiB")
        self.config = config
        self.pool_pages = PagePool(config.pool_frames, config.pool_base_mfn, config.pool_memory)
        self.q = self.pool_pages.q
        self.p2m = P2m(config.frames, config.p2m, memory.frames, range(config.pool_base_mfn, end))
        self.counters = Counters()
        self.guest = GuestSide(config, memory, self.p2m, self._own_store)
        self.eager = config.fill == "eager"
        self.logging = False
        self.logged = np.zeros(config.frames, np.uint8)
        self.protected = np.zeros(config.frames, np.uint16)
        self.overridden: set[int] = set()
        self.root_page: ShadowPage | None = None
        self.on_fault = False
        self.version = 0

    @property
    def memory(self) -> MachineMemory:
        return self.guest.memory

    @memory.setter
    def memory(self, memory: MachineMemory) -> None:
        self.guest.use(memory)

    def _own_store(self, gfn: int) -> None:
        if self.logging:
            self.log_dirty(gfn)

    def log_dirty(self, gfn: int) -> None:
        """Puts `gfn` in the dirty log."""
        if not self.logged[gfn]:
            self.logged[gfn] = 1
            self.counters.dirty_logged += 1

    # What happens to SPTEs and pages, for the engine to keep account of.

    def leaf_set(self, page: ShadowPage, word: int, gfn: int) -> None:
        """The empty SPTE at `word` of `page` has become a leaf for `gfn` (the page's first frame)."""

    def leaf_gone(self, page: ShadowPage, word: int, gfn: int) -> None:
        """A leaf has been cleared."""

    def child_set(self, page: ShadowPage, word: int, child: ShadowPage) -> None:
        """The empty SPTE at `word` of `page` leads to `child` now."""

    def child_gone(self, page: ShadowPage, word: int, child: ShadowPage) -> None:
        """It does no longer."""

    def page_made(self, page: ShadowPage) -> None:
        """A shadow page was made, with no SPTE in it; nothing leads to it yet."""

    def page_found(self, page: ShadowPage) -> None:
        """A page that exists is about to be linked once more, or to become the root."""

    def make_room(self) -> bool:
        """No page is free, and one is wanted. Whether one is free now."""
        return False

    def whole(self, gfn: int, level: int) -> bool:
        """Whether the large page of `level` at `gfn` can be one SPTE: its machine frames are in one piece."""
        return self.p2m.whole(gfn, level)

    def writable(self, gfn: int) -> bool:
        """Whether an SPTE may let the guest write `gfn` now: not protected, and logged if that is asked."""
        return not self.protected[gfn] and (not self.logging or bool(self.logged[gfn]))

    # Pages.

    def get_page(self, role: Role) -> ShadowPage | None:
        """The page of `role`, which is made if it does not exist; None for want of room."""
        page = self.pool_pages.by_role.get(role)
        if page is not None:
            self.page_found(page)
            return page
        page = self.pool_pages.take(role, self.config.phys_bits)
        if page is None and self.make_room():
            page = self.pool_pages.take(role, self.config.phys_bits)
        if page is None:
            self.counters.truncated += 1
            return None
        counters = self.counters
        counters.spti_make_shadow += 1
        counters.pages_allocated += 1
        counters.pages_on_fault += self.on_fault
        counters.words_copied += ENTRIES  # it was zeroed
        self.version += 1
        self.page_made(page)
        return page

    # SPTEs.

    def is_leaf(self, page: ShadowPage, spte: int) -> bool:
        return page.level == 1 or bool(spte & PTE_PS)

    def leaf_gfn(self, spte: int) -> int:
        """First gfn of the page that a leaf maps."""
        return self.p2m.to_gfn[(spte & PTE_ADDR) >> 12]

    def drop(self, page: ShadowPage, word: int) -> None:
        """Clears an SPTE that is not empty."""
        spte = self.q[word]
        self.q[word] = 0
        self.counters.sptes_written += 1
        self.version += 1
        if self.overridden:
            self.overridden.discard(word)
        if self.is_leaf(page, spte):
            self.leaf_gone(page, word, self.leaf_gfn(spte))
        else:
            self.child_gone(page, word, self.pool_pages.child(spte))

    def put_leaf(self, page: ShadowPage, word: int, gfn: int, spte: int, fill: bool) -> None:
        """The SPTE at `word` becomes the leaf `spte` for `gfn`. Without `fill` one that led elsewhere is dropped."""
        old = self.q[word]
        if old:
            if self.is_leaf(page, old) and not (old ^ spte) & PTE_ADDR:
                if old != spte:
                    self.q[word] = spte
                    self.counters.sptes_written += 1
                    self.version += 1
                    if self.overridden:
                        self.overridden.discard(word)
                return
            self.drop(page, word)
        if fill:
            self.q[word] = spte
            self.counters.sptes_written += 1
            self.version += 1
            self.leaf_set(page, word, gfn)

    def put_child(self, page: ShadowPage, word: int, role: Role, flags: int, fill: bool) -> None:
        """The SPTE at `word` leads to the page of `role`. Without `fill` one that led elsewhere is dropped."""
        old = self.q[word]
        if old:
            child = None if old & PTE_PS else self.pool_pages.child(old)
            if child is not None and child.role == role:
                if old != old & PTE_ADDR | flags:
                    self.q[word] = old & PTE_ADDR | flags
                    self.counters.sptes_written += 1
                    self.version += 1
                    if self.overridden:
                        self.overridden.discard(word)
                return
            self.drop(page, word)
        if not fill:
            return
        child = self.get_page(role)
        if child is None:
            return
        if self.q[word]:  # a table that maps itself: making the page came by here
            self.drop(page, word)
        self.q[word] = child.mfn << 12 | flags
        self.counters.sptes_written += 1
        self.version += 1
        self.child_set(page, word, child)

    # What they say: of a guest's entry.

    def classify(self, page: ShadowPage, index: int, entry: int) -> tuple[int, int]:
        """(ABSENT, LEAF, LARGE or TABLE, gfn). Absent for the shadow is also an entry with a reserved bit, or that
        leads outside the domain's memory: the processor must fault on it."""
        rules = page.rules
        assert rules is not None
        if not entry & PTE_P:
            return ABSENT, 0
        large = rules.is_large(entry)
        if rules.is_reserved(entry, large):
            return ABSENT, 0
        if large:
            gfn = rules.large_frame(entry) + ((index & 1) << 9 if rules.doubled else 0)
            return (LARGE, gfn) if gfn < self.config.frames else (ABSENT, 0)
        gfn = rules.frame(entry)
        if not self.p2m.backed(gfn):
            return ABSENT, 0
        return (LEAF if page.level == 1 else TABLE), gfn

    def update_entry(self, page: ShadowPage, index: int, entry: int, fill: bool, small: bool = False) -> None:
        """Makes SPTE `index` of a GUEST page what the guest's `entry` asks for.

        fill: bring a new translation in, else only what is there is corrected. small: not as a large page.
        """
        rules, word = page.rules, page.base + index
        assert rules is not None
        old = self.q[word]
        kind, gfn = self.classify(page, index, entry)
        if kind == ABSENT or not (old or fill):
            if old:
                self.drop(page, word)
            return
        if kind == TABLE:
            flags = rules.table[entry & 0x7F] | entry & rules.table_copy
            if old == old & PTE_ADDR | flags and rules.wp and not old & PTE_PS:  # nearly always, on a fault's path
                child = self.pool_pages.child(old)
                if child.gfn == gfn and child.kind is GUEST:
                    return
            self.put_child(page, word, self.child_role(page, index, gfn, entry), flags, fill)
            return
        flags = rules.leaf[entry & 0x7F] | entry & rules.leaf_copy
        if kind == LEAF:
            rw = PTE_RW if flags & PTE_D and self.writable(gfn) else 0
            self.put_leaf(page, word, gfn, self.p2m.to_mfn[gfn] << 12 | flags | rw, fill)
            return
        key = (flags & PTE_PK) >> PTE_PK_SHIFT
        pieces = Role(DIRECT, gfn, page.level - 1, self.mode_of(page), 0, key)
        divided = bool(old) and not old & PTE_PS and self.pool_pages.child(old).role == pieces
        if self.whole(gfn, page.level) and not small and not divided:
            rw = PTE_RW if flags & PTE_D and not self.logging else 0
            self.put_leaf(page, word, gfn, self.p2m.to_mfn[gfn] << 12 | flags | PTE_PS | rw, fill)
            return
        if fill and not divided:
            self.divide_large_page(page, word, pieces, divided_flags(flags))
        else:
            self.put_child(page, word, pieces, divided_flags(flags), fill)

    def divide_large_page(self, page: ShadowPage, word: int, pieces: Role, flags: int) -> None:
        """The SPTE at `word`, of a large page or empty, leads to a page of its `pieces` from now on."""
        self.counters.divide_large_page += 1
        self.put_child(page, word, pieces, flags, True)

    @staticmethod
    def mode_of(page: ShadowPage) -> str:
        """Name of the paging mode that `page` is for."""
        assert page.role is not None
        return page.role.mode

    def child_role(self, page: ShadowPage, index: int, gfn: int, entry: int) -> Role:
        """Role of the shadow of the guest table `gfn` below SPTE `index`, which stands for the guest's `entry`."""
        role, rules = page.role, page.rules
        assert role is not None and rules is not None
        variant = role.variant
        if not rules.wp and rules.has_rights:  # see `harness.xi.roles`
            variant |= 0 if entry & PTE_RW else VARIANT_READ_ONLY_ABOVE
            variant |= 0 if entry & PTE_US else VARIANT_SUPERVISOR_ABOVE
        return Role(GUEST, gfn, page.level - 1, role.mode, index & 1 if rules.doubled else 0, variant)

    def override(self, page: ShadowPage, index: int) -> None:
        """Opens the SPTE of a guest's page for a supervisor store that CR0.WP=0 allows: RW=1, and US=0 so that users
        keep out. A user access faults on it and has it put back."""
        rules, word = page.rules, page.base + index
        assert rules is not None
        spte = self.q[word]
        rights = PTE_RW
        if self.is_leaf(page, spte):
            gfn = self.leaf_gfn(spte)
            may = self.writable(gfn) if page.level == 1 else not self.logging
            rights = PTE_D | (PTE_RW if may else 0)
        self.q[word] = (spte | rights | SW_OVERRIDE | rules.override_nx) & ~PTE_US
        self.version += 1
        self.overridden.add(word)
        self.counters.sptes_written += 1
        self.counters.overrides += 1

    def end_overrides(self) -> None:
        """Puts every overridden SPTE back to what its entry says."""
        for word in list(self.overridden):
            page = self.pool_pages.owner(word)
            self.update_entry(page, word & 511, self.guest.entry_behind(page, word & 511), True)
        self.overridden.clear()

    # What they say: of the other pages.

    def update_direct(self, page: ShadowPage, index: int, small: bool = False) -> None:
        """Brings in SPTE `index` of a page that no guest table stands behind."""
        role, word = page.role, page.base + index
        assert role is not None
        if page.kind is QUADRANTS:
            self.put_child(page, word, Role(GUEST, page.gfn, 2, role.mode, index, role.variant), OPEN_PDPTE, True)
            return
        key = role.variant if page.kind is DIRECT else 0
        gfn = page.gfn + (index << 9 * (page.level - 1))
        flags = OPEN_LEAF | key << PTE_PK_SHIFT
        if page.level == 1:
            if self.p2m.backed(gfn):
                rw = PTE_RW if self.writable(gfn) else 0
                self.put_leaf(page, word, gfn, self.p2m.to_mfn[gfn] << 12 | flags | rw, True)
            return
        if gfn >= self.config.frames:
            return
        old = self.q[word]
        divided = bool(old) and not old & PTE_PS
        if page.kind is DIRECT and self.whole(gfn, page.level) and not small and not divided:
            rw = 0 if self.logging else PTE_RW
            self.put_leaf(page, word, gfn, self.p2m.to_mfn[gfn] << 12 | flags | PTE_PS | rw, True)
            return
        pieces = Role(DIRECT, gfn, page.level - 1, role.mode, 0, key)
        above = OPEN_PDPTE if page.kind is UNPAGED else OPEN_TABLE
        if divided:
            self.put_child(page, word, pieces, above, True)
        else:
            self.divide_large_page(page, word, pieces, above)
