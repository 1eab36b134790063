"""Storms for an engine that frees its whole shadow at every round of the dirty log and every change of the paging mode:
with fewer of these, so that something is there for the rest to go wrong with."""

from __future__ import annotations

from dataclasses import replace

from harness.peers.xen302 import Xen302Engine
from harness.x86 import bits
from harness.xi.guest_walk import Walk
from tests.peers.domain import as_xi
from tests.xi.storm import Storm


class Punctual(Xen302Engine):
    """Takes every announcement of a store for one that is made in time, as that of a fault is."""

    def store_to_table(self, gfn: int, walk: Walk | None) -> None:
        super().store_to_table(gfn, walk or Walk([], [], 0, True, gfn, 1))


class CalmStorm(Storm):
    """A storm without changes of the paging mode, and with few rounds of the dirty log."""

    def do_log(self) -> None:
        if self.random.random() < 0.06:
            super().do_log()

    def do_take(self) -> None:
        if self.random.random() < 0.3:
            super().do_take()

    def do_control(self) -> None:
        state = self.domain.state
        register, bit = self.random.choice((("cr0", bits.CR0_WP), ("cr4", bits.CR4_PGE), ("cr4", bits.CR4_SMEP)))
        self.domain.state = replace(state, **{register: getattr(state, register) ^ bit})
        if bit == bits.CR0_WP:  # the one of them that loads no PDPTEs
            self.engine.control(self.domain.state)
        else:
            self.domain.start()


def calm(engine: type[Xen302Engine], mode: str, pool: int, seed: int, fill: str, late: bool) -> CalmStorm:
    """A calm storm over `engine`; other arguments as of `Storm`."""
    return CalmStorm(mode, pool, seed, fill, as_xi(engine), late=late)
