"""One access to memory as the MMU judges it: what it does, and from which ring.

The integer codes are shared with the guest's probe server (`guest-kernels/lib/xi_abi.h`): bits 0-1 are the
kind, bit 2 says ring 3.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from harness.x86.bits import PF_I, PF_U, PF_W


class Access(IntEnum):
    """An access; the value is the probe server's `op`."""

    LOAD = 0
    STORE = 1
    FETCH = 2
    USER_LOAD = 4
    USER_STORE = 5
    USER_FETCH = 6

    @property
    def is_store(self) -> bool:
        return self & 3 == 1

    @property
    def is_fetch(self) -> bool:
        return self & 3 == 2

    @property
    def is_user(self) -> bool:
        return bool(self & 4)

    @property
    def text(self) -> str:
        """Human form, e.g. ``store ring 3``."""
        return f"{('load', 'store', 'fetch')[self & 3]} ring {3 if self & 4 else 0}"

    def error_bits(self, instruction_bit: bool) -> int:
        """The bits of a #PF error code that only the access decides (SDM vol. 3A, 4.7).

        `instruction_bit`: whether the I/D flag is reported at all, i.e. CR4.SMEP, or CR4.PAE and EFER.NXE.
        """
        code = PF_W if self.is_store else 0
        if self.is_user:
            code |= PF_U
        if self.is_fetch and instruction_bit:
            code |= PF_I
        return code


ALL_ACCESSES: Final = tuple(Access)
USER_BIT: Final = 4


def access_of(code: int) -> Access:
    """The access that a #PF error code tells (SDM vol. 3A, 4.7).

    A fetch by a processor that does not report fetches (see `Access.error_bits`) is told as a load.
    """
    kind = Access.STORE if code & PF_W else Access.FETCH if code & PF_I else Access.LOAD
    return Access(kind | (USER_BIT if code & PF_U else 0))


ACCESS_OF: Final = tuple(int(access_of(code)) for code in range(32))
"""`access_of` as a table of plain integers, indexed by the low five bits of the code: for who looks at every fault."""
