"""Guest entries by number: from the buffer where it says all, and asked for where it does not."""

from __future__ import annotations

import numpy as np
import pytest

from harness.engine import PlainMemory, reads_plainly
from harness.xi.guest_entries import NARROW, WIDE, entries_in

ENTRY = 0x1122_3344_5566_7788


class Asked(PlainMemory):
    """Memory whose reads are more than what its buffer holds."""

    def read64(self, address: int) -> int:
        return super().read64(address) + 1

    def read32(self, address: int) -> int:
        return super().read32(address) + 1


@pytest.mark.parametrize(("kind", "more"), [(PlainMemory, 0), (Asked, 1)])
def test_entries_are_numbered_by_their_size(kind: type[PlainMemory], more: int) -> None:
    memory = kind(np.zeros(8192, np.uint8))
    assert reads_plainly(memory) is (kind is PlainMemory)
    wide, narrow = entries_in(memory, WIDE), entries_in(memory, NARROW)
    memory.or64(0x1008, ENTRY)
    assert wide[0x1008 >> 3] == ENTRY + more
    assert [narrow[0x1008 >> 2], narrow[0x100C >> 2]] == [(ENTRY & 0xFFFF_FFFF) + more, (ENTRY >> 32) + more]
    with pytest.raises(IndexError):
        wide[8192 >> 3]
