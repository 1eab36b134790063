"""Domains and storms whose engine is a peer: those of `tests.xi`, which ask nothing of XI's insides."""

from __future__ import annotations

from typing import Any, cast

from harness.peers.eager import EagerEngine
from harness.peers.engine import PeerEngine
from harness.peers.kvm import KvmEngine
from harness.peers.xen302 import Xen302Engine
from harness.xi.engine import XiEngine
from tests.xi.domain import Domain
from tests.xi.storm import Storm

PEERS = {"eager": EagerEngine, "kvm": KvmEngine, "xen302": Xen302Engine}


def as_xi(engine: type[PeerEngine]) -> type[XiEngine]:
    """`engine` where the helpers of `tests.xi` name the engine that they were made for."""
    return cast("type[XiEngine]", engine)


class PeerDomain(Domain):
    """A domain under a peer engine; peer: the engine. Other arguments as of `Domain`."""

    def __init__(self, engine: type[PeerEngine], mode: str = "long4", fill: str = "demand", **options: Any) -> None:
        super().__init__(mode, fill, engine=as_xi(engine), **options)
        self.peer = cast("PeerEngine", self.engine)

    def read_shadow(self, address: int, count: int) -> int:
        """Each frame of the pool is a shadow page here."""
        base, words = self.engine.pool
        frame = (address >> 12) - base
        assert 0 <= frame < len(words), f"the hardware walks outside the pool, at {address:#x}"
        return int(words[frame, (address & 0xFFF) >> 3])


def storm(engine: type[PeerEngine], mode: str, pool: int, seed: int, fill: str = "demand") -> Storm:
    """A storm over `engine`. pool: in units of four pages."""
    return Storm(mode, pool, seed, fill, as_xi(engine))
