"""Memory that takes room only where something was written into it."""

from __future__ import annotations

import mmap
from typing import Final

import numpy as np

from harness.engine import Bytes

_NORESERVE: Final = 0x4000  # <sys/mman.h>; Python 3.11's mmap has no name for it


def sparse(size: int) -> Bytes:
    """`size` zeros. Raises ValueError, OverflowError or OSError for a size that there cannot be."""
    return np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE), np.uint8)
