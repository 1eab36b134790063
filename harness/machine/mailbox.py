"""The mailbox that a guest and the harness share, as numpy dtypes.

The layout's definition is `guest-kernels/lib/xi_abi.h`; a test compiles it and holds it against these.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

import numpy as np

MAGIC: Final = 0x424D4958
PROBE_MAX: Final = 8192
BOOT_INFO: Final = 0x500
BOOT_MAGIC: Final = 0x54424958
EXIT_PORT: Final = 0xF4
EXIT_PASS: Final = 0x10
EXIT_FAIL: Final = 0x11
EXIT_NO_GUEST: Final = 0x12
EXIT_NO_SVM: Final = 0x13
STOP_PORT: Final = 0xE4
TAG_OFFSET: Final = 0xE40
TAG_BYTES: Final = 16

PROBE: Final = np.dtype(
    [("va", "<u8"), ("op", "<u4"), ("value", "<u4"), ("status", "<u4"), ("code", "<u4"), ("cr2", "<u8")]
)
MAILBOX: Final = np.dtype(
    [
        ("magic", "<u4"),
        ("version", "<u4"),
        ("checkpoint", "<u4"),
        ("flags", "<u4"),
        ("pkru", "<u4"),
        ("command", "<u4"),
        ("count", "<u4"),
        ("done", "<u4"),
        ("name", "S64"),
        ("reserved", "<u8", (20,)),
        ("probes", PROBE, (PROBE_MAX,)),
    ]
)


class Checkpoint(IntFlag):
    COHERENT = 0
    STALE = 1
    FINAL = 2


class Command(IntEnum):
    RESUME = 0
    PROBE = 1


class Status(IntEnum):
    NOT_RUN = 0
    DONE = 1
    FAULT = 2
    EXCEPTION = 3


def code_tag(gfn: int) -> int:
    """What EAX holds after a fetch probe of frame `gfn`. Even, and bit 24 clear for gfn < 2**23."""
    return (0x42000000 | (gfn << 1)) & 0xFFFFFFFF


def load_tag(gfn: int) -> int:
    """What a load probe of frame `gfn` reads at tag offset + 8. Even."""
    return (0x5A000000 | (gfn << 1)) & 0xFFFFFFFF


def tag_slot(gfn: int) -> bytes:
    """The 16 bytes of a tagged frame's slot."""
    code = b"\xb8" + code_tag(gfn).to_bytes(4, "little") + b"\xcd\x80\x90"
    return code + load_tag(gfn).to_bytes(4, "little") + b"\0\0\0\0"
