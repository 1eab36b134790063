"""Whether a shadow page says what its guest's entries ask for: its meaning, and not A, D and RW."""

from __future__ import annotations

import pytest

from harness.peers.kvm import KvmEngine
from harness.peers.stale import is_stale
from harness.x86.access import Access
from harness.x86.modes import PAGED_MODES
from tests.peers.domain import PeerDomain
from tests.xi.domain import PS, RW, US, USED, A, D, P

VA = 0x40000000
every_mode = pytest.mark.parametrize("mode", [mode.name for mode in PAGED_MODES])


def says_otherwise(mode: str, level: int, entry: int, whole: bool = False) -> bool:
    """Whether the shadow of the table of VA at `level`, made of an entry that maps gfn 300 or leads to a table of the
    guest's, is stale when that entry becomes `entry`."""
    domain = PeerDomain(KvmEngine, mode)
    domain.map(VA, 300)
    domain.map(VA + 4096, 301)
    domain.start()
    domain.check(VA, Access.STORE)
    address = domain.entry_at(VA, level)
    pages = domain.peer.pool_pages.in_use.values()
    page = next(page for page in pages if (page.gfn, page.level) == (address >> 12, level))
    entries = domain.peer.guest.entries(page).copy()
    assert not is_stale(domain.peer, page, entries)
    at = (address & 0xFFF) // domain.mode.entry_bytes - page.first
    entries[at] = entry if entry & ~0xFFF or not entry & P else (int(entries[at]) & ~0xFFF | entry)
    return is_stale(domain.peer, page, entries, whole)


@every_mode
@pytest.mark.parametrize(
    ("entry", "stale"),
    [(USED, False), (P | RW | US, False), (P | US | A, False), (USED & ~US, True), (301 << 12 | USED, True), (0, True)],
    ids=["same", "bits", "read-only", "supervisor", "elsewhere", "absent"],
)
def test_of_a_page(mode: str, entry: int, stale: bool) -> None:
    assert says_otherwise(mode, 1, entry) == stale


@every_mode
@pytest.mark.parametrize(
    ("entry", "stale"),
    [
        (P | RW | US | A, False),
        (P | RW | US | A | D, False),
        (P | RW | A, True),
        (301 << 12 | P | RW | US | A, True),
        (0, True),
        (512 << 12 | USED | PS, True),
    ],
    ids=["same", "bits", "supervisor", "elsewhere", "absent", "large"],
)
def test_of_a_table(mode: str, entry: int, stale: bool) -> None:
    assert says_otherwise(mode, 2, entry) == stale


def test_what_is_missing_counts_where_all_should_be_there() -> None:
    assert not says_otherwise("long4", 1, USED)
    assert says_otherwise("long4", 1, USED, whole=True), "of VA + 4096, which was never used"
