"""Scenes in which the work of an engine is counted by hand. Guests are in long mode, on demand."""

from __future__ import annotations

from typing import Final

from harness.work import Counted, Work
from harness.x86.access import Access
from tests.xi.domain import Domain

VA: Final = 0x40000000
PATH: Final = 4  # tables on the path of a fault, and so what each finds on its way
TABLE: Final = 512
NOTHING: Final = Work(0, 0, 0, 0, 0)


class Account:
    """What `engine` does from one asking to the next."""

    def __init__(self, engine: Counted) -> None:
        self._engine = engine
        self._before = engine.work()

    def __call__(self) -> Work:
        before, self._before = self._before, self._engine.work()
        return self._before.since(before)


def use(domain: Domain, pages: int) -> Account:
    """The guest stores to `pages` pages from VA on, gfns from 300 on, and loads CR3 again. One more page is mapped, and
    not used. One path: 4 tables."""
    for page in range(pages + 1):
        domain.map(VA + page * 4096, 300 + page)
    domain.start()
    for page in range(pages):
        domain.check(VA + page * 4096, Access.STORE)
    domain.flush()
    return Account(domain.engine)


def share(domain: Domain) -> tuple[Account, int]:
    """A page, the second of what is returned, that 3 SPTEs map writable, the eighth ones of the first 3 of 5 tables of
    level 1; there is one table of each level above. Of 8 leaves all are writable, and CR3 was loaded again."""
    page = domain.frame()
    for table in range(5):
        domain.map(VA + (table << 21), 300 + table)
    for table in range(3):
        domain.map(VA + (table << 21) + 0x7000, page)
    domain.start()
    for table in range(5):
        domain.check(VA + (table << 21), Access.STORE)
    for table in range(3):
        domain.check(VA + (table << 21) + 0x7000, Access.STORE)
    domain.flush()
    return Account(domain.engine), page
