"""The file format of a trace, as data.

A file is MAGIC, the header (u32 length, JSON) and chunks: u32 packed length, u32 raw length, u32 CRC-32 of the packed
bytes, and the packed bytes, by zlib. A raw chunk holds whole records. A record is a u8 kind and that kind's FIELDS,
little-endian, without padding; where the kind is in TAILED, the last field is the length of the bytes that follow. The
last chunk holds one record, END: a file without it is incomplete, and readable up to its last whole chunk.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any, Final

import numpy as np

from harness.check.memory import Ints
from harness.engine import EngineConfig, Words

NAME: Final = b"XITRACE"
VERSION: Final = 1
MAGIC: Final = NAME + bytes([VERSION])
LENGTH: Final = Struct("<I")
CHUNK: Final = Struct("<III")
MOST_HEADER: Final = 1 << 28
MOST_CHUNK: Final = 1 << 28
"""Lengths beyond these are damage."""

PAGE_FAULT: Final = "page_fault"
"""Kind of the events of a PAGE_FAULTS. Their text is empty."""
MOST_IDLES: Final = (1 << 24) - 1

STALE: Final = 1
FINAL: Final = 2
"""Flags of a CHECKPOINT."""


class Kind(IntEnum):
    """Kinds of records. What each means: the class of that name in `harness.trace.records`."""

    END = 0
    STRING = 1  # text number 0, 1, ... that an EVENT names
    EVENT = 2  # `Intercepted`
    CONTROL = 3
    LOAD_CR3 = 4
    INVLPG = 5
    TABLE_WRITTEN = 6
    FAULT = 7
    FAULTS = 8
    PKRU = 9
    INVALIDATE_MFN = 10
    PDPTES = 11
    DIRTY_START = 12
    DIRTY_READ = 13
    DIRTY_STOP = 14
    RESYNC_ALL = 15
    UNEXPLAINED = 16
    WATCH_CHANGES = 17
    EXECUTABLE_CHANGES = 18
    IDLE = 19
    AUDIT = 20
    WORDS = 21
    PAGE = 22
    RAISED = 23
    CHECKPOINT = 24
    CHECKED = 25
    SHADOW_WORDS = 26
    PAGE_FAULTS = 27  # for each an EVENT, an IDLE unless it is none, and a FAULT that is not AWAY


FIELDS: Final[dict[Kind, str]] = {
    Kind.END: "QI",  # events; tail: verdict, NUL, reason
    Kind.STRING: "I",  # tail: the text
    Kind.EVENT: "IQQI",  # kind (string), rip, value, text (string)
    Kind.CONTROL: "QQQQI",
    Kind.LOAD_CR3: "Q",
    Kind.INVLPG: "Q",
    Kind.TABLE_WRITTEN: "q",
    Kind.FAULT: "QBiq",
    Kind.FAULTS: "qI",  # away; tail: u64 addresses, u8 accesses, i32 results, as many of each
    Kind.PKRU: "I",
    Kind.INVALIDATE_MFN: "qq",
    Kind.PDPTES: "QQQQ",
    Kind.DIRTY_START: "",
    Kind.DIRTY_READ: "IQ",
    Kind.DIRTY_STOP: "",
    Kind.RESYNC_ALL: "",
    Kind.UNEXPLAINED: "I",  # tail: i64 gfns
    Kind.WATCH_CHANGES: "I",
    Kind.EXECUTABLE_CHANGES: "I",
    Kind.IDLE: "I",
    Kind.AUDIT: "I",
    Kind.WORDS: "qI",  # mfn; tail: u16 indices, u64 values, as many of each
    Kind.PAGE: "qI",  # mfn; tail: 4096 bytes
    Kind.RAISED: "I",  # tail: the text
    Kind.CHECKPOINT: "IBIQQQQII",  # number, flags, crc, CR0, CR3, CR4, EFER, PKRU; tail: the name
    Kind.CHECKED: "QQQI",
    Kind.SHADOW_WORDS: "qI",  # as WORDS
    Kind.PAGE_FAULTS: "I",  # tail: for each u64 rip, u64 va, u8 access, u24 calls of `idle`, i32 result
}
TAILED: Final = frozenset(
    {
        Kind.END,
        Kind.STRING,
        Kind.FAULTS,
        Kind.UNEXPLAINED,
        Kind.WORDS,
        Kind.PAGE,
        Kind.RAISED,
        Kind.CHECKPOINT,
        Kind.SHADOW_WORDS,
        Kind.PAGE_FAULTS,
    }
)
PACK: Final = {kind: Struct("<B" + fields).pack for kind, fields in FIELDS.items()}  # with its kind in front
UNPACK: Final = {kind: Struct("<x" + fields) for kind, fields in FIELDS.items()}  # without it


def tailed(kind: Kind, *fields: int, tail: bytes) -> bytes:
    """A record of a kind that is in TAILED."""
    return PACK[kind](kind, *fields, len(tail)) + tail


def words_tail(indices: Sequence[int] | Ints, values: Sequence[int] | Words) -> bytes:
    """The tail of a WORDS."""
    return np.asarray(indices, "<u2").tobytes() + np.asarray(values, "<u8").tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """What was run, and how the engine was set up.

    mode: observe or live. command: the run's, to paste. created_by: the harness's version. config: the engine's,
    without `pool_memory`, which began as zeros. memory_frames: of the machine memory that the engine saw.
    """

    guest: str
    paging: str
    mode: str
    seed: int
    engine: str
    command: str
    created_by: str
    config: EngineConfig
    memory_frames: int

    def encode(self) -> bytes:
        """As JSON; the p2m is the base64 of a zlib stream of int32."""
        config = self.config
        told = {name: getattr(self, name) for name in self.__slots__ if name != "config"}
        own = {name: getattr(config, name) for name in _CONFIG}
        return json.dumps(told | {"config": own | {"p2m": _pack_p2m(config.p2m)}}).encode()

    @classmethod
    def decode(cls, text: bytes) -> Header:
        """Raises ValueError, KeyError or TypeError for what is no header."""
        told: dict[str, Any] = json.loads(text)
        config = told.pop("config")
        p2m = _unpack_p2m(config.pop("p2m"))
        return cls(config=EngineConfig(p2m=p2m, **{name: config[name] for name in _CONFIG}), **told)


_CONFIG: Final = ("frames", "pool_frames", "pool_base_mfn", "fill", "phys_bits", "options")


def _pack_p2m(p2m: Ints | None) -> str | None:
    return None if p2m is None else base64.b64encode(zlib.compress(p2m.astype("<i4").tobytes())).decode()


def _unpack_p2m(text: str | None) -> Ints | None:
    return None if text is None else np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4").astype(np.int64)
