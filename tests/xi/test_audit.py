"""The audit finds what is broken: each sabotage breaks one thing, and the right invariant says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.xi.engine import XiEngine
from harness.xi.pool import Spti
from harness.xi.roles import Kind
from tests.xi.domain import NX, PS, RW, US, USED, A, D, Domain, P
from tests.xi.policies import lists_of

VA = 0x40000000


def leaf(engine: XiEngine) -> tuple[Spti, int]:
    """The SPTI and word of the SPTE of gfn 300."""
    word = engine.links.nodes(engine.links.slot(1, 300))[0]
    return engine.pool_memory.owner(word), word


def change(flip: int) -> Callable[[XiEngine], None]:
    def act(engine: XiEngine) -> None:
        engine.q[leaf(engine)[1]] ^= flip

    return act


def change_snapshot(flip: int) -> Callable[[XiEngine], None]:
    def act(engine: XiEngine) -> None:
        spti, word = leaf(engine)
        engine.q[word + 512] ^= flip
        assert spti.role is not None

    return act


def lose_backlink(engine: XiEngine) -> None:
    engine.links.unlink(leaf(engine)[1])


def cross_backlinks(engine: XiEngine) -> None:
    word = leaf(engine)[1]
    engine.links.unlink(word)
    engine.links.link(word, engine.links.slot(1, 301))


def ring(engine: XiEngine) -> None:
    word = leaf(engine)[1]
    at = word + 1024 + (word & 511)
    engine.q[at] = engine.q[at + 1] = word + 1
    lists_of(engine).heads[engine.links.slot(1, 300)] = 0


def stray_backlink(engine: XiEngine) -> None:
    spti = leaf(engine)[0]
    engine.q[spti.base + 1024 + 2 * 400] = 5


def unprotect(engine: XiEngine) -> None:
    table = leaf(engine)[0].gfn
    word = engine.links.nodes(engine.links.slot(1, table))[0]
    engine.q[word] |= RW


def wrong_child(engine: XiEngine) -> None:
    spti = leaf(engine)[0]
    word = engine.links.nodes(engine.links.parents(spti.index))[0]
    assert engine.root_spti is not None
    engine.q[word] = engine.q[word] & 0xFFF | engine.root_spti.mfn << 12


def scribble_on_a_free_spt(engine: XiEngine) -> None:
    engine.q[engine.sptis[engine.pool_memory.clean[0]].base + 3] = 1


def leak(engine: XiEngine) -> None:
    engine.pool_memory.clean.popleft()


def forget_role(engine: XiEngine) -> None:
    role = leaf(engine)[0].role
    assert role is not None
    engine.by_role.pop(role)


def miscount(engine: XiEngine) -> None:
    engine.guarded[leaf(engine)[0].gfn] += 1


def false_orphan(engine: XiEngine) -> None:
    engine.orphans[leaf(engine)[0].index] = None


def forget_dirty(engine: XiEngine) -> None:
    spti = leaf(engine)[0]
    engine.set_out_of_sync(spti)
    engine.dirty[spti.index] = 0


def break_m2p(engine: XiEngine) -> None:
    engine.p2m.m2p[300] = 301


def map_the_pool(engine: XiEngine) -> None:
    engine.q[leaf(engine)[1]] ^= 300 << 12 ^ engine.config.pool_base_mfn << 12


def unlogged_store(engine: XiEngine) -> None:
    engine.dirty_log_start()
    engine.q[leaf(engine)[1]] |= RW


def drop_entry(engine: XiEngine) -> None:
    spti, word = leaf(engine)
    engine.drop(spti, word)


def wrong_piece(engine: XiEngine) -> None:
    for spti in engine.sptis:
        if spti.role is not None and spti.kind is Kind.DIRECT:
            engine.q[spti.base + 9] ^= 1 << 12
            return
    raise AssertionError("nothing is divided")


def stale_bases(engine: XiEngine) -> None:
    engine.aliases.bases_of(0)
    engine.aliases._bases[leaf(engine)[0].index] = frozenset()


SABOTAGE: list[tuple[str, Callable[[XiEngine], None]]] = [
    ("F1", change_snapshot(P)),
    ("F2", change(1 << 8)),
    ("F4", change_snapshot(A)),
    ("F5", change_snapshot(D)),
    ("F6", change(US)),
    ("F7", change(NX)),
    ("F8", change_snapshot(RW)),
    ("F8", change(5 << 59)),
    ("X1", change_snapshot(P)),
    ("X2", change_snapshot(D)),
    ("X3", change(1 << 12)),
    ("X3", wrong_child),
    ("X4", lambda engine: engine.p2m.table.__setitem__(900, engine.config.pool_base_mfn)),
    ("snapshot", change_snapshot(1 << 13)),
    ("K4", forget_dirty),
    ("K5", unprotect),
    ("H1", forget_role),
    ("P1", break_m2p),
    ("P2", map_the_pool),
    ("backlink-bijection", lose_backlink),
    ("backlink-bijection", cross_backlinks),
    ("backlink-bijection", ring),
    ("backlink-bijection", stray_backlink),
    ("pool-conservation", leak),
    ("zeroed-is-zero", scribble_on_a_free_spt),
    ("guards", miscount),
    ("orphans", false_orphan),
    ("alias-bases", stale_bases),
    ("dirty-log", unlogged_store),
    ("eager-complete", drop_entry),
    ("divided", wrong_piece),
]


def sound_domain() -> Domain:
    domain = Domain("long4")
    table = domain.map(VA, 300) >> 12
    domain.map(VA + 0x1000, table)
    domain.map(VA + 0x800000, 0, USED, 2)
    domain.start()
    domain.engine.watch_changes()
    domain.audit()
    return domain


@pytest.mark.parametrize(("invariant", "sabotage"), SABOTAGE)
def test_the_audit_names_what_is_broken(invariant: str, sabotage: Callable[[XiEngine], None]) -> None:
    domain = sound_domain()
    sabotage(domain.engine)
    assert invariant in {failure.invariant for failure in domain.engine.audit()}


def test_a_large_spte_over_a_table_is_found() -> None:
    domain = Domain("long4")
    domain.map(VA, 512, USED, 2)
    domain.start()
    domain.engine.guarded[700] = 1
    assert "large" in {failure.invariant for failure in domain.engine.audit()}


def test_a_large_spte_where_the_guest_has_a_table_is_found() -> None:
    domain = sound_domain()
    spti = leaf(domain.engine)[0]
    word = domain.engine.links.nodes(domain.engine.links.parents(spti.index))[0]
    domain.engine.q[word] |= PS
    assert "F3" in {failure.invariant for failure in domain.engine.audit()}


def test_the_32_bit_quadrants_are_checked() -> None:
    domain = Domain("nopae")
    domain.map(VA, 300)
    domain.start()
    engine = domain.engine
    assert engine.root_spti is not None
    base = engine.root_spti.base
    engine.q[base], engine.q[base + 1] = engine.q[base + 1], engine.q[base]
    assert "X3" in {failure.invariant for failure in engine.audit()}
