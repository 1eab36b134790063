"""Mutations of `eager`: what is not built anew, and what is left when there is no room."""

from __future__ import annotations

from typing import Any, Final

from harness.peers.eager import EagerEngine
from harness.peers.faults import Faults, NoRoom
from harness.peers.pages import ShadowPage
from harness.xi.guest_walk import Walk
from harness.xi.roles import Role
from tests.mutations.mutation import Mutation, Way, caught
from tests.mutations.peer_rows import FEW, mutations_of
from tests.mutations.scripts import linked_anew


class RootBuiltOnce(EagerEngine):
    """A root that was built once is not built again."""

    def flush(self, role: Role) -> None:
        page = self.pool_pages.by_role.get(role)
        if page is None:
            super().flush(role)
        else:
            self.set_root(page)


class LinkedStale(EagerEngine):
    """A page that is linked at another address is not brought up to date."""

    def page_found(self, page: ShadowPage) -> None:
        pass


class NoRoomIgnored(EagerEngine):
    """A fault whose path has no room is taken for answered."""

    def map_path(self, va: int, walk: Walk, store: bool, override: bool) -> None:
        try:
            Faults.map_path(self, va, walk, store, override)
        except NoRoom:
            self.counters.truncated += 1


def _eager(name: str, breaks: str, by: str, engine: type[EagerEngine], **more: Any) -> Mutation:
    given = {"guest": "basic", "paging": "long4"} | more
    return Mutation(f"eager: {name}", breaks, caught(by), engine=engine, **given)


NOT_REBUILT: Final = "a CR3 load builds nothing"

EAGER: Final = (
    *mutations_of(EagerEngine, in_sync=False),
    _eager("not-rebuilt", NOT_REBUILT, "probe", RootBuiltOnce, tested=True),
    _eager("linked-stale", "a table is linked anew and stays stale", "assertion", LinkedStale, script=linked_anew),
    _eager("live-not-rebuilt", NOT_REBUILT, "probe", RootBuiltOnce, way=Way.LIVE, probes=FEW, tested=True),
    _eager(
        "live-no-room-ignored",
        "a path for which there is no room is not mapped",
        "stuck",
        NoRoomIgnored,
        guest="perm",
        way=Way.LIVE,
        options={"pool_spti": 5},
    ),
    _eager("replayed-not-rebuilt", NOT_REBUILT, "replay:answers", RootBuiltOnce, way=Way.REPLAY, tested=True),
)
