"""Whether a shadow page still says what given entries of its guest table ask for: by the meaning of its SPTEs alone,
which is where they lead and with what rights."""

from __future__ import annotations

from typing import Final

import numpy as np

from harness.engine import Words
from harness.peers.pages import ShadowPage
from harness.peers.whole_pages import WholePages
from harness.x86.bits import PTE_ADDR, PTE_NX, PTE_P, PTE_PK, PTE_PS, PTE_US
from harness.xi.gpt import SW_OVERRIDE, SW_PRESENT
from harness.xi.roles import GUEST

# What in an SPTE says that its guest entry was another one; not A, D and RW, which come later than the entry's.
_MEANING: Final = np.uint64(PTE_ADDR | PTE_US | PTE_NX | PTE_PK | SW_PRESENT)


def is_stale(tables: WholePages, page: ShadowPage, entries: Words, whole: bool = False) -> bool:
    """Whether an SPTE of the GUEST `page` is not what the guest's `entries` (see `GuestSide.entries`) ask for. whole:
    nor may one of level 1 be missing."""
    if page.level == 1:
        wanted = tables.wanted_leaves(page, entries)
        seen = (page.spt & np.uint64(SW_OVERRIDE)) == 0
        seen &= (page.spt | wanted if whole else page.spt) != 0
        return bool((seen & ((page.spt ^ wanted) & _MEANING != 0)).any())
    return any(_says_otherwise(tables, page, index, int(entries[index >> page.halved])) for index in page.used)


def _says_otherwise(tables: WholePages, page: ShadowPage, index: int, entry: int) -> bool:
    """Whether an SPTE above level 1 leads elsewhere than the guest's `entry`, or with other rights."""
    rules, spte = page.rules, tables.q[page.base + index]
    assert rules is not None
    if not entry & PTE_P or rules.is_reserved(entry, rules.is_large(entry)):
        return True
    large = rules.is_large(entry)
    gfn = tables.classify(page, index, entry)[1]
    flags = (rules.leaf[entry & 0x7F] if large else rules.table[entry & 0x7F]) | entry & rules.table_copy
    if not spte & SW_OVERRIDE and (spte ^ flags) & (PTE_US | PTE_NX):
        return True
    if spte & PTE_PS:
        return not large or tables.leaf_gfn(spte) != gfn
    child = tables.pool_pages.child(spte)
    return child.gfn != gfn or (child.kind is GUEST) == large
