"""Engines with one fault each: the storm, its audits included, must not let one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from harness.peers.eager import EagerEngine
from harness.peers.engine import PeerEngine
from harness.peers.kvm import KvmEngine
from harness.peers.pages import ShadowPage
from harness.x86.access import Access
from harness.x86.bits import PTE_A, PTE_D, PTE_G, PTE_NX, PTE_RW, PTE_US
from harness.xi.roles import Role
from tests.peers.domain import PEERS, PeerDomain, storm

VA = 0x40000000


class NoInvlpg(EagerEngine):
    """INVLPG is passed over."""

    def refresh_address(self, va: int) -> None:
        pass


class KeepsRoot(EagerEngine):
    """A root that was built once is not built again."""

    def flush(self, role: Role) -> None:
        page = self.pool_pages.by_role.get(role)
        if page is None:
            super().flush(role)
        else:
            self.set_root(page)


class OldFrame(EagerEngine):
    """A frame that moves is mapped where it was."""

    def forget_frame(self, gfn: int) -> None:
        pass


class NoWriteProtection(KvmEngine):
    """A page that becomes a table stays writable where it is mapped."""

    def _take_rw(self, gfn: int) -> int:
        return 0


class ForgetsParents(KvmEngine):
    """The bitmaps above an unsync page are not told of it."""

    def _mark_unsync_child(self, word: int) -> None:
        pass


class LosesReverseMaps(KvmEngine):
    """Every other leaf is not on its frame's reverse map."""

    def leaf_set(self, page: ShadowPage, word: int, gfn: int) -> None:
        if word & 1:
            super().leaf_set(page, word, gfn)


class Unlogged(KvmEngine):
    """A round of the dirty log begins with everything writable still."""

    def take_write_access(self, gfns: npt.NDArray[np.int64] | None) -> int:
        return 0


BROKEN = (
    NoInvlpg,
    KeepsRoot,
    OldFrame,
    NoWriteProtection,
    ForgetsParents,
    LosesReverseMaps,
    Unlogged,
)


@pytest.mark.parametrize("engine", BROKEN)
def test_a_broken_engine_is_caught(engine: type[PeerEngine]) -> None:
    for seed in range(20):
        try:
            storm(engine, "long4", 12, seed).rage(80)
        except (AssertionError, KeyError):
            return
    pytest.fail(f"{engine.__name__}: {engine.__doc__} Nothing was noticed.")


@pytest.mark.parametrize("engine", PEERS.values(), ids=PEERS)
@pytest.mark.parametrize(
    ("change", "invariants"),
    [
        (lambda spte: spte | PTE_G, {"F2"}),
        (lambda spte: spte & ~PTE_A, {"F4"}),
        (lambda spte: spte & ~PTE_D | PTE_RW, {"F5"}),
        (lambda spte: spte + 0x1000000, {"P2"}),
    ],
    ids=["global", "not-accessed", "not-dirty", "nobodys-frame"],
)
def test_an_spte_that_contradicts_itself_is_found(engine: type[PeerEngine], change: Any, invariants: set[str]) -> None:
    domain, word = mapped(engine)
    domain.engine.q[word] = change(domain.engine.q[word])
    found = {failure.invariant for failure in domain.engine.audit()}
    assert invariants <= found


@pytest.mark.parametrize(
    ("bits", "invariant"),
    [(PTE_US, "F6"), (PTE_NX, "F7"), (1 << 59, "F8"), (0x3000, "X3")],
    ids=["us", "nx", "key", "frame"],
)
def test_an_spte_that_contradicts_the_guests_entry_is_found(bits: int, invariant: str) -> None:
    domain, word = mapped(KvmEngine)
    domain.engine.q[word] ^= bits
    assert invariant in {failure.invariant for failure in domain.engine.audit()}


@pytest.mark.parametrize("engine", PEERS.values(), ids=PEERS)
def test_a_page_that_is_lost_is_found(engine: type[PeerEngine]) -> None:
    domain, _ = mapped(engine)
    domain.peer.pool_pages.free.pop()
    assert {failure.invariant for failure in domain.engine.audit()} == {"pool-conservation"}


def mapped(engine: type[PeerEngine]) -> tuple[PeerDomain, int]:
    """A guest that has stored to VA, and the word of the SPTE of that."""
    domain = PeerDomain(engine)
    domain.map(VA, 300)
    domain.start()
    domain.check(VA, Access.STORE)
    domain.audit()
    step = domain.peer.describe_walk(VA)[-1]
    return domain, step["spti"] * 512 + step["index"]


class WrongHalf(KvmEngine):
    """The two SPTEs of a 32-bit guest's directory entry lead to each other's half of the page table."""

    def child_role(self, page: ShadowPage, index: int, gfn: int, entry: int) -> Role:
        role = super().child_role(page, index, gfn, entry)
        return role._replace(quadrant=role.quadrant ^ 1)


def test_a_table_that_is_shadowed_in_another_role_is_found() -> None:
    domain = PeerDomain(WrongHalf, "nopae")
    domain.map(VA, 300)
    domain.start()
    domain.engine.shadow_fault(VA, Access.LOAD)
    assert "X3" in {failure.invariant for failure in domain.engine.audit()}


@pytest.mark.parametrize("engine", PEERS.values(), ids=PEERS)
def test_a_frame_that_two_pages_claim_is_found(engine: type[PeerEngine]) -> None:
    domain, _ = mapped(engine)
    domain.engine.p2m.to_gfn[domain.spare()] = 300
    assert {failure.invariant for failure in domain.engine.audit()} == {"P1"}
