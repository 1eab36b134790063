"""Where a peer says that frames are mapped: held against XI, which follows every change."""

from __future__ import annotations

import pytest

from harness.peers.eager import EagerEngine
from harness.peers.engine import PeerEngine
from harness.peers.kvm import KvmEngine
from harness.peers.xen302 import Xen302Engine
from harness.x86.modes import PAGED_MODES
from tests.peers.domain import PeerDomain
from tests.xi.domain import NX, USED, A, D, Domain, P

VA = 0x40000000
every_mode = pytest.mark.parametrize("mode", [mode.name for mode in PAGED_MODES])


def guest(domain: Domain) -> int:
    """A guest with pages of all kinds, a page mapped twice, and a table that it can write. The gfn of that table."""
    table = domain.entry_at(VA, 1) >> 12
    domain.map(VA, 300)
    domain.map(VA + 0x1000, 300, P | A)
    domain.map(VA + 0x2000, table, USED & ~(A | D))
    if domain.mode.entry_bytes == 8:
        domain.map(VA + 0x3000, 301, USED | NX)
    domain.map(VA + 0x800000, 1024, USED, 2)
    domain.start()
    return table


@every_mode
@pytest.mark.parametrize("engine", [EagerEngine, KvmEngine, Xen302Engine])
def test_addresses_are_those_that_xi_follows(mode: str, engine: type[PeerEngine]) -> None:
    xi, peer = Domain(mode, frames=2048), PeerDomain(engine, mode, "eager", frames=2048)
    table = guest(xi)
    assert guest(peer) == table
    for gfn in (300, 301, table, 1024, 1030, 1535, 1536):
        for rights in ((False, False), (True, False), (False, True)):
            wanted = xi.engine.addresses_of(gfn, *rights)
            assert peer.engine.addresses_of(gfn, *rights) == wanted, (hex(gfn), rights)
    assert peer.engine.addresses_of(1030), "a piece of a large page has an address"
    peer.audit()


@every_mode
@pytest.mark.parametrize("engine", [KvmEngine, Xen302Engine])
def test_what_is_watched_are_the_tables_in_sync_where_they_can_be_written(mode: str, engine: type[PeerEngine]) -> None:
    domain = PeerDomain(engine, mode, "eager", frames=2048)
    table = guest(domain)
    assert domain.engine.watch_changes() == {table: frozenset({VA + 0x2000})}
    assert domain.engine.watch_changes() == {}
    domain.engine.table_written(table)
    assert domain.engine.watch_changes() == {table: frozenset()}
    domain.flush()
    assert domain.engine.watch_changes() == {table: frozenset({VA + 0x2000})}


@pytest.mark.parametrize("engine", [EagerEngine, KvmEngine, Xen302Engine])
def test_frames_that_become_executable_are_told_once(engine: type[PeerEngine]) -> None:
    domain = PeerDomain(engine, "long4", "eager", frames=2048)
    guest(domain)
    told = set(domain.engine.executable_changes().tolist())
    assert {300, 1024, 1535} <= told
    assert 301 not in told
    assert not len(domain.engine.executable_changes())
    domain.map(VA + 0x3000, 301)
    domain.flush()
    assert domain.engine.executable_changes().tolist() == [301]
