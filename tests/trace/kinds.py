"""One record of each kind as bytes, and what a reader makes of it; None for the texts that the others name."""

from __future__ import annotations

from struct import pack
from typing import Final

from harness.trace import records as r
from harness.trace.format import FINAL, PACK, STALE, Kind, tailed, words_tail
from harness.x86.control import ControlState

_TOP: Final = (1 << 64) - 1


def _fixed(kind: Kind, *fields: int) -> bytes:
    return PACK[kind](kind, *fields)


KINDS: Final[tuple[tuple[bytes, tuple[r.Record, ...] | None], ...]] = (
    (tailed(Kind.STRING, tail=b"invlpg"), None),
    (_fixed(Kind.EVENT, 0, 0x1000, _TOP, 0), (r.Intercepted(0, "invlpg", 0x1000, _TOP, "invlpg"),)),
    (_fixed(Kind.CONTROL, 1, 2, 3, 4, 5), (r.Control(1, 2, 3, 4, 5),)),
    (_fixed(Kind.LOAD_CR3, _TOP), (r.LoadCr3(_TOP),)),
    (_fixed(Kind.INVLPG, 0x5000), (r.Invlpg(0x5000),)),
    (_fixed(Kind.TABLE_WRITTEN, 7), (r.TableWritten(7),)),
    (_fixed(Kind.FAULT, _TOP, 5, -4, 3), (r.Fault(_TOP, 5, -4, 3),)),
    (
        tailed(Kind.PAGE_FAULTS, tail=pack("<QQIiQQIi", _TOP, 0x5000, 9 << 8 | 6, -1, 1, _TOP, 5, 0xFFFF)),
        (
            r.Intercepted(0, "page_fault", _TOP, 0x5000, ""),
            r.Idle(9),
            r.Fault(0x5000, 6, -1, -1),
            r.Intercepted(1, "page_fault", 1, _TOP, ""),
            r.Fault(_TOP, 5, 0xFFFF, -1),
        ),
    ),
    (
        tailed(Kind.FAULTS, -1, tail=b"".join((_TOP.to_bytes(8, "little"), b"\x06", b"\xff\xff\xff\xff"))),
        (r.Faults((_TOP,), (6,), (-1,), -1),),
    ),
    (_fixed(Kind.PKRU, 0xFFFF_FFFF), (r.Pkru(0xFFFF_FFFF),)),
    (_fixed(Kind.INVALIDATE_MFN, 3, -1), (r.InvalidateMfn(3, -1),)),
    (_fixed(Kind.PDPTES, 1, 2, 3, _TOP), (r.Pdptes((1, 2, 3, _TOP)),)),
    (_fixed(Kind.DIRTY_START), (r.DirtyStart(),)),
    (_fixed(Kind.DIRTY_READ, 0xDEAD_BEEF, 4), (r.DirtyRead(0xDEAD_BEEF, 4),)),
    (_fixed(Kind.DIRTY_STOP), (r.DirtyStop(),)),
    (_fixed(Kind.RESYNC_ALL), (r.ResyncAll(),)),
    (tailed(Kind.UNEXPLAINED, tail=b"\x05" + bytes(7)), (r.Unexplained((5,)),)),
    (tailed(Kind.UNEXPLAINED, tail=b""), (r.Unexplained(()),)),
    (_fixed(Kind.WATCH_CHANGES, 2), (r.WatchChanges(2),)),
    (_fixed(Kind.EXECUTABLE_CHANGES, 3), (r.ExecutableChanges(3),)),
    (_fixed(Kind.IDLE, 4), (r.Idle(4),)),
    (_fixed(Kind.AUDIT, 1), (r.Audit(1),)),
    (tailed(Kind.WORDS, 9, tail=words_tail([0, 511], [1, _TOP])), (r.Words(9, (0, 511), (1, _TOP)),)),
    (tailed(Kind.PAGE, 9, tail=bytes(range(256)) * 16), (r.Page(9, bytes(range(256)) * 16),)),
    (tailed(Kind.SHADOW_WORDS, 80, tail=words_tail([4], [0x21])), (r.ShadowWords(80, (4,), (0x21,)),)),
    (tailed(Kind.RAISED, tail=b"ValueError: no"), (r.Raised("ValueError: no"),)),
    (
        tailed(Kind.CHECKPOINT, 2, STALE | FINAL, 77, 1, 2, 3, 4, 5, tail="zurückgestellt".encode()),
        (r.Checkpoint(2, "zurückgestellt", ControlState(1, 2, 3, 4, 5), True, True, 77),),
    ),
    (_fixed(Kind.CHECKED, 1 << 40, 2, 3, 78), (r.Checked(1 << 40, 2, 3, 78),)),
    (tailed(Kind.END, 12, tail=b"fail\0why"), (r.End("fail", "why", 12),)),
)
