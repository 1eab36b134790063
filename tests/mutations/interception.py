"""Mutations of the interception: events that are not seen, or seen wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.intercept.breakpoints import CodeScanner
from harness.intercept.observe import Observer
from harness.intercept.watchpoints import WatchSet
from harness.session import Session
from harness.x86.decode import ControlInstruction, decode
from tests.mutations.mutation import Mutation, Tamper, caught


class AliasUnwatched(WatchSet):
    """Of several addresses of a table one is not watched."""

    def update(self, changes: Mapping[int, frozenset[int]]) -> list[bytes]:
        return super().update({gfn: _without_highest(pages) for gfn, pages in changes.items()})


def _without_highest(pages: frozenset[int]) -> frozenset[int]:
    return pages - {max(pages)} if len(pages) > 1 else pages


class NeverWatchedAgain(WatchSet):
    """A table that lost its watchpoints never gets them back."""

    def __init__(self) -> None:
        super().__init__()
        self._lost: set[int] = set()

    def update(self, changes: Mapping[int, frozenset[int]]) -> list[bytes]:
        self._lost |= {gfn for gfn, pages in changes.items() if not pages}
        return super().update({gfn: frozenset() if gfn in self._lost else pages for gfn, pages in changes.items()})


class OneOwner(WatchSet):
    """A store to a page that two tables share is told of one of them."""

    def tables_at(self, page: int) -> frozenset[int]:
        return frozenset(sorted(super().tables_at(page))[:1])


class Cr3Overlooked(CodeScanner):
    """The scan takes MOV CR3 for something else."""

    def _confirmed(self, code: bytes) -> bool:
        kinds = {one.kind for width in (64, 32) if (one := decode(code, width)) is not None}
        return super()._confirmed(code) and "cr3" not in kinds


class PageUnscanned(CodeScanner):
    """The first page of code that has such instructions is never scanned."""

    def executable(self, gfns: npt.NDArray[np.int64], addresses_of: Callable[[int], Iterable[int]]) -> list[bytes]:
        return super().executable(gfns[gfns != IMAGE_GFN], addresses_of)


IMAGE_GFN: Final = 0x100  # the image begins at 1 MiB, with the control instructions in its first page


class InvlpgDeaf(Observer):
    """INVLPG is logged and not told."""

    def _invalidate(self, rip: int, instruction: ControlInstruction, registers: Mapping[str, int], width: int) -> None:
        self.log.add("invlpg", rip, instruction.value(registers, width), instruction.text)


class InvlpgNextPage(Observer):
    """The operand of INVLPG is read one page off."""

    def _invalidate(self, rip: int, instruction: ControlInstruction, registers: Mapping[str, int], width: int) -> None:
        operand = replace(instruction.operand, displacement=instruction.operand.displacement + 0x1000)
        super()._invalidate(rip, replace(instruction, operand=operand), registers, width)


class Cr4Deaf(Observer):
    """Writes of CR4 are not told."""

    def _control(self, rip: int, instruction: ControlInstruction) -> None:
        if instruction.kind != "cr4":
            super()._control(rip, instruction)


class StoresDeaf(Observer):
    """Hits of watchpoints are not told to the engine."""

    def _table_write(self, address: int) -> None:
        self.log.add("table_write", 0, address >> 12)


def observer(broken: type[Observer]) -> Tamper:
    def tamper(session: Session) -> None:
        session.observer.__class__ = broken

    return tamper


def watches(broken: type[WatchSet]) -> Tamper:
    def tamper(session: Session) -> None:
        session.observer.watches = broken()

    return tamper


def scanner(broken: type[CodeScanner]) -> Tamper:
    def tamper(session: Session) -> None:
        session.observer.code = broken(session.machine.ram.bytes)

    return tamper


def _broken(name: str, breaks: str, guest: str, paging: str, by: str, tamper: Tamper) -> Mutation:
    return Mutation(name, breaks, caught(by), guest, paging, tamper=tamper)


INTERCEPTION: Final = (
    _broken(
        "alias-unwatched",
        "one alias of a guest table is not watched",
        "alias",
        "nopae",
        "self-check",
        watches(AliasUnwatched),
    ),
    _broken(
        "not-watched-again",
        "a table is not watched again after its resync",
        "basic",
        "nopae",
        "self-check",
        watches(NeverWatchedAgain),
    ),
    _broken(
        "stores-not-told", "watchpoint hits do not reach the engine", "basic", "pae", "self-check", observer(StoresDeaf)
    ),
    _broken("mov-cr3-overlooked", "MOV CR3 has no breakpoint", "basic", "nopae", "self-check", scanner(Cr3Overlooked)),
    _broken(
        "page-unscanned", "a page of code is never scanned", "basic", "long4", "self-check", scanner(PageUnscanned)
    ),
    _broken("invlpg-not-told", "INVLPG does not reach the engine", "basic", "nopae", "probe", observer(InvlpgDeaf)),
    _broken(
        "invlpg-operand-wrong", "INVLPG's address is one page off", "basic", "nopae", "probe", observer(InvlpgNextPage)
    ),
    _broken(
        "cr4-not-told", "a write of CR4 does not reach the engine", "perm", "nopae", "self-check", observer(Cr4Deaf)
    ),
    _broken(
        "one-owner",
        "a store where two tables are watched is told of one",
        "alias",
        "nopae",
        "self-check",
        watches(OneOwner),
    ),
)
