"""Mutations of `kvm`: its reverse maps, its parents, what it protects, when it synchronises, what it zaps."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import numpy as np

from harness.engine import Words
from harness.peers.kvm import KvmEngine
from harness.peers.pages import ShadowPage
from harness.xi.roles import Role
from tests.mutations.mutation import Engine, Mutation, Way, caught
from tests.mutations.peer_rows import FEW, mutations_of
from tests.mutations.scripts import linked_anew


class LeafUnlisted(KvmEngine):
    """Every other leaf is not on its frame's reverse map."""

    def leaf_set(self, page: ShadowPage, word: int, gfn: int) -> None:
        if word & 1:
            super().leaf_set(page, word, gfn)

    def leaf_gone(self, page: ShadowPage, word: int, gfn: int) -> None:
        with suppress(KeyError):
            super().leaf_gone(page, word, gfn)


class ParentUnlisted(KvmEngine):
    """An SPTE that leads to a page of level 1 is not among the parents of that page."""

    def child_set(self, page: ShadowPage, word: int, child: ShadowPage) -> None:
        super().child_set(page, word, child)
        if child.level == 1:
            self.parents.remove(child.index, word)

    def child_gone(self, page: ShadowPage, word: int, child: ShadowPage) -> None:
        with suppress(KeyError):
            super().child_gone(page, word, child)


class UnsyncUnmarked(KvmEngine):
    """The bitmaps above an unsync page are not told of it."""

    def _mark_unsync_child(self, word: int) -> None:
        pass


class OpenedUnnoted(KvmEngine):
    """A table of an upper level goes unsync as if it might."""

    def open(self, page: ShadowPage) -> None:
        if self.in_sync(page):
            self._unsync(page)


class WriteAccessKept(KvmEngine):
    """What becomes a table stays writable where it is mapped."""

    def _take_rw(self, gfn: int) -> int:
        return 0


class InsideUncounted(KvmEngine):
    """A table inside a large frame is not counted there."""

    def _guard(self, page: ShadowPage) -> None:
        super()._guard(page)
        self.shadowed[2][page.gfn >> 9] -= 1

    def zap_page(self, page: ShadowPage) -> None:
        self.shadowed[2][page.gfn >> 9] += self.guards[page.index]
        super().zap_page(page)


class ProtectedForEver(KvmEngine):
    """A table that is in sync when its page is zapped stays write-protected."""

    def zap_page(self, page: ShadowPage) -> None:
        if self.in_sync(page):
            self.protected[page.gfn] += 1
        super().zap_page(page)


class ParentKept(KvmEngine):
    """Of the SPTEs that lead to a page that is zapped, one goes on leading there."""

    def zap_page(self, page: ShadowPage) -> None:
        kept = [(word, self.q[word]) for word in self.parents.of(page.index)[:1]]
        super().zap_page(page)
        for word, spte in kept:
            self.q[word] = spte


class RootZapped(KvmEngine):
    """The root in use goes like any other page when there is no room."""

    def _zap_oldest(self, wanted: int, kept: set[int]) -> None:
        root, self.root_page = self.root_page, None
        super()._zap_oldest(wanted, kept)
        self.root_page = root


class FlushIgnored(KvmEngine):
    """A root that is loaded again is taken as it is."""

    _flushing = False

    def flush(self, role: Role) -> None:
        self._flushing = True
        super().flush(role)
        self._flushing = False

    def sync_tree(self, page: ShadowPage, upper_only: bool = False) -> bool:
        return False if self._flushing else super().sync_tree(page, upper_only)


class LinkedStale(KvmEngine):
    """An unsync page that is linked at another address is not synchronised."""

    def page_found(self, page: ShadowPage) -> None:
        pass


class EntryForgotten(KvmEngine):
    """The last SPTE that a synchronisation would change stays as it was."""

    def write_leaves(self, page: ShadowPage, sptes: Words) -> None:
        last = np.flatnonzero(page.spt != sptes)[-1:]
        sptes[last] = page.spt[last]
        super().write_leaves(page, sptes)


def _kvm(name: str, breaks: str, by: str, guest: str, paging: str, engine: Engine, **more: Any) -> Mutation:
    return Mutation(f"kvm: {name}", breaks, caught(*by.split()), guest, paging, engine, **more)


def _live(name: str, breaks: str, by: str, guest: str, paging: str, engine: Engine, **more: Any) -> Mutation:
    return _kvm(name, breaks, by, guest, paging, engine, **{"way": Way.LIVE, "probes": FEW, **more})


def _replayed(name: str, breaks: str, by: str, engine: Engine, **more: Any) -> Mutation:
    return _kvm(name, breaks, by, "basic", "long4", engine, **{"way": Way.REPLAY, **more})


KVM: Final = (
    *mutations_of(KvmEngine),
    _kvm("leaf-unlisted", "a leaf is not on its frame's reverse map", "audit:rmap", "basic", "long4", LeafUnlisted),
    _kvm("parent-unlisted", "an SPTE is not among a page's parents", "audit:parents", "basic", "long4", ParentUnlisted),
    _kvm(
        "unsync-unmarked",
        "the bitmaps do not tell of an unsync page",
        "audit:K4 probe",
        "basic",
        "long4",
        UnsyncUnmarked,
        tested=True,
    ),
    _kvm("opened-unnoted", "an upper table goes unsync", "audit:K1", "basic", "long4", OpenedUnnoted),
    _kvm("write-access-kept", "a new table stays writable", "audit:K5", "alias", "nopae", WriteAccessKept),
    _kvm(
        "inside-uncounted", "tables in large frames are not counted", "audit:guards", "large", "long4", InsideUncounted
    ),
    _kvm(
        "protected-for-ever",
        "a page that is zapped goes on protecting its table",
        "audit:guards",
        "perm",
        "nopae",
        ProtectedForEver,
        config={"pool_frames": 48},
    ),
    _kvm("flush-ignored", "a CR3 load synchronises nothing", "probe", "basic", "long4", FlushIgnored),
    _kvm("entry-forgotten", "one entry of a table is not synchronised", "probe", "basic", "long4", EntryForgotten),
    _kvm(
        "linked-stale", "a table is linked anew and stays stale", "assertion", "", "", LinkedStale, script=linked_anew
    ),
    _live(
        "live-write-access-kept",
        "a new table stays writable",
        "audit:K5",
        "basic",
        "long4",
        WriteAccessKept,
        tested=True,
    ),
    _live("live-flush-ignored", "a CR3 load synchronises nothing", "probe", "basic", "long4", FlushIgnored),
    _live(
        "live-parent-kept",
        "a page is zapped, and one SPTE still leads to it",
        "audit:X3 audit:parents",
        "perm",
        "long4",
        ParentKept,
        options={"pool_spti": 12},
    ),
    _live(
        "live-root-zapped",
        "the root in use is zapped",
        "assertion",
        "perm",
        "long4",
        RootZapped,
        options={"pool_spti": 12},
    ),
    _replayed(
        "replayed-unsync-unmarked",
        "the bitmaps do not tell of an unsync page",
        "replay:audits",
        UnsyncUnmarked,
        tested=True,
    ),
    _replayed("replayed-leaf-unlisted", "a leaf is not on its frame's reverse map", "replay:audits", LeafUnlisted),
    _replayed(
        "repeated-entry-forgotten",
        "one entry is not synchronised",
        "replay:pool",
        EntryForgotten,
        way=Way.REPEAT,
    ),
)
