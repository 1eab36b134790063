"""The pool of shadow pages."""

from __future__ import annotations

import numpy as np
import pytest

from harness.peers.pages import MINIMUM_PAGES, PagePool
from harness.xi.roles import GUEST, Role

ROLE = Role(GUEST, 5, 1, "long4", 0, 3)


def test_a_page_is_zeroed_when_it_is_taken_and_found_by_its_role() -> None:
    pool = PagePool(MINIMUM_PAGES, 0x1000, None)
    pool.words[:] = 7
    page = pool.take(ROLE, 40)
    assert page is not None
    assert not page.spt.any()
    assert pool.by_role == {ROLE: page}
    assert (page.count, page.halved, page.mfn) == (512, 0, 0x1000 + page.index)
    assert pool.child(page.mfn << 12 | 0x67) is page
    assert pool.owner(page.base + 511) is page
    pool.give_back(page)
    assert (page.role, pool.by_role, len(pool.free)) == (None, {}, MINIMUM_PAGES)


def test_every_page_can_be_taken_and_no_more() -> None:
    pool = PagePool(MINIMUM_PAGES, 0, None)
    pages = [pool.take(ROLE._replace(gfn=gfn), 40) for gfn in range(MINIMUM_PAGES)]
    assert len({page.index for page in pages if page is not None}) == MINIMUM_PAGES
    assert pool.take(ROLE._replace(gfn=99), 40) is None
    pool.clear()
    assert (len(pool.free), pool.most_held) == (MINIMUM_PAGES, MINIMUM_PAGES)


def test_a_32_bit_guests_tables_are_covered_in_parts() -> None:
    pool = PagePool(MINIMUM_PAGES, 0, None)
    half = pool.take(Role(GUEST, 5, 1, "nopae", 1, 3), 40)
    quarter = pool.take(Role(GUEST, 5, 2, "nopae", 3, 3), 40)
    assert half is not None
    assert quarter is not None
    assert (half.first, half.count, half.halved) == (512, 512, 0)
    assert (quarter.first, quarter.count, quarter.halved) == (768, 256, 1)


@pytest.mark.parametrize(
    ("frames", "memory", "said"),
    [
        (MINIMUM_PAGES - 1, None, "needs room for"),
        (MINIMUM_PAGES, np.zeros(4096, np.uint8), "pool memory must be"),
    ],
)
def test_what_cannot_work_is_refused(frames: int, memory: np.typing.NDArray[np.uint8] | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PagePool(frames, 0, memory)
