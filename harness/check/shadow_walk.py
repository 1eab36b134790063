"""The shadow tables walked as the processor would walk them, many addresses at a time.

It reads the words of the engine's pool and the control registers that go with them, and nothing else of the
engine: what is in the tables counts, not what the engine means by it. No code is shared with
`harness.x86.walk`, so that a slip in one shows as a difference between the two.

Source: Intel SDM vol. 3A, 4.4-4.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.check.verdict import ESCAPED, FRAME, GP, NO_FRAME, Answers, Mask
from harness.engine import ShadowRoot, Words
from harness.x86 import bits
from harness.x86.modes import PHYS_BITS_DEFAULT, PagingMode, reserved_bits
from harness.x86.walk import entry_text

Accesses = npt.NDArray[np.uint8]

_P: Final = np.uint64(bits.PTE_P)
_PS: Final = np.uint64(bits.PTE_PS)
_ADDR: Final = np.uint64(bits.PTE_ADDR)
_RIGHTS: Final = np.uint64(bits.PTE_RW | bits.PTE_US)


@dataclass(frozen=True, slots=True)
class ShadowView:
    """The shadow as hardware is given it. base: mfn of the pool's first frame. words: shape (frames, 512)."""

    root: ShadowRoot
    base: int
    words: Words
    pkru: int = 0
    phys_bits: int = PHYS_BITS_DEFAULT


def shadow_walk(view: ShadowView, va: Words, access: Accesses) -> Answers:
    """Walks every (va, access); the frames of the answers are mfns.

    Codes: FRAME, a #PF code, GP (non-canonical), or ESCAPED where an entry's next table lies outside the pool.
    """
    answers = Answers.empty(len(va))
    mode = view.root.mode
    top = _bad_high_bits(mode, va)
    answers.codes[top] = GP
    flat = view.words.reshape(-1)
    origin = view.base << bits.PAGE_SHIFT
    live = np.flatnonzero(~top)
    table = np.full(len(live), view.root.root, np.uint64)
    rights = np.full(len(live), _RIGHTS, np.uint64)
    no_execute = np.zeros(len(live), np.bool_)
    nxe = view.root.control.nxe
    fetch_bit = view.root.control.reports_fetch
    for level in mode.levels:
        index = (va[live] >> np.uint64(level.shift)) & np.uint64(level.entries - 1)
        slot = ((table - np.uint64(origin)) >> np.uint64(3)) + index  # wraps far out of the pool when below it
        inside = slot < np.uint64(len(flat))
        if not inside.all():
            answers.codes[live[~inside]] = ESCAPED
            live, slot = live[inside], slot[inside]
            rights, no_execute = rights[inside], no_execute[inside]
        entry = flat[slot.astype(np.int64)]
        large = (entry & _PS != 0) if level.may_map_large else np.zeros(len(entry), np.bool_)
        forbidden = np.where(
            large,
            np.uint64(reserved_bits(mode, level.number, True, nxe, view.phys_bits)),
            np.uint64(reserved_bits(mode, level.number, False, nxe, view.phys_bits)),
        )
        absent = entry & _P == 0
        reserved = ~absent & (entry & forbidden != 0)
        stop = absent | reserved
        if stop.any():
            code = _error_bits(access[live], fetch_bit)
            code |= np.where(reserved, bits.PF_P | bits.PF_RSVD, 0).astype(np.int32)
            answers.codes[live[stop]] = code[stop]
        if level.has_rights:
            rights &= entry
            if nxe:
                no_execute |= (entry >> np.uint64(63)).astype(np.bool_)
        leaf = ~stop & (large | (level.number == 1))
        if leaf.any():
            at = live[leaf]
            offset = np.uint64((level.span - 1) & ~(bits.PAGE_SIZE - 1))
            frame = ((entry[leaf] & _ADDR & ~offset) | (va[at] & offset)) >> np.uint64(bits.PAGE_SHIFT)
            code = _judge(view, access[at], rights[leaf], no_execute[leaf], entry[leaf], fetch_bit)
            answers.codes[at] = code
            answers.frames[at] = np.where(code == FRAME, frame.astype(np.int64), NO_FRAME)
        go_on = ~stop & ~leaf
        live, table = live[go_on], entry[go_on] & _ADDR
        rights, no_execute = rights[go_on], no_execute[go_on]
        if not len(live):
            break
    return answers


def _bad_high_bits(mode: PagingMode, va: Words) -> Mask:
    if not mode.canonical:
        beyond: Mask = va >> np.uint64(32) != 0
        return beyond
    top = va.view(np.int64) >> (mode.va_bits - 1)
    bad: Mask = (top != 0) & (top != -1)
    return bad


def _error_bits(access: Accesses, fetch_bit: bool) -> npt.NDArray[np.int32]:
    code = np.where(access & 4, bits.PF_U, 0) | np.where(access & 3 == 1, bits.PF_W, 0)
    if fetch_bit:
        code = code | np.where(access & 3 == 2, bits.PF_I, 0)
    return code.astype(np.int32)


def _judge(
    view: ShadowView, access: Accesses, rights: Words, no_execute: Mask, leaf: Words, fetch_bit: bool
) -> npt.NDArray[np.int32]:
    """FRAME or the protection fault's code, per access."""
    control = view.root.control
    ring3 = access & 4 != 0
    store = access & 3 == 1
    fetch = access & 3 == 2
    user_page = rights & np.uint64(bits.PTE_US) != 0
    read_only = rights & np.uint64(bits.PTE_RW) == 0
    deny = ring3 & ~user_page
    deny |= store & read_only & (ring3 | control.wp)
    deny |= fetch & no_execute
    if control.smep:
        deny |= fetch & ~ring3 & user_page
    if control.smap:
        deny |= ~fetch & ~ring3 & user_page
    code = _error_bits(access, fetch_bit) | bits.PF_P
    if control.pke:
        key = ((leaf >> np.uint64(bits.PTE_PK_SHIFT)) & np.uint64(15)).astype(np.int64)
        held = np.int64(view.pkru) >> (2 * key)
        locked = (held & 1 != 0) | ((held & 2 != 0) & store & (ring3 | control.wp))
        locked &= user_page & ~fetch
        deny |= locked
        code = code | np.where(locked, bits.PF_PK, 0)
    return np.where(deny, code, FRAME).astype(np.int32)


def describe_shadow(view: ShadowView, va: int) -> list[dict[str, Any]]:
    """The shadow walk of one address as rows: level, table (mfn), index, entry, flags, note; in the last one mfn, the
    frame of `va` whatever its rights, NO_FRAME if an entry is not present."""
    rows: list[dict[str, Any]] = []
    table = view.root.root
    flat = view.words.reshape(-1)
    for level in view.root.mode.levels:
        index = level.index(va)
        slot = ((table - (view.base << bits.PAGE_SHIFT)) >> 3) + index
        in_pool = 0 <= slot < len(flat)
        entry = int(flat[slot]) if in_pool else 0
        large = level.may_map_large and bool(entry & bits.PTE_PS)
        last = not entry & bits.PTE_P or large or level.number == 1
        note = "" if in_pool else "outside the pool"
        if in_pool and not entry & bits.PTE_P:
            note = "not present"
        rows.append(
            {
                "level": level.number,
                "table": table >> bits.PAGE_SHIFT,
                "index": index,
                "entry": entry,
                "flags": entry_text(entry),
                "note": note,
            }
        )
        if last:
            inside = level.span - 1
            frame = (entry & bits.PTE_ADDR & ~inside | va & inside) >> bits.PAGE_SHIFT
            rows[-1]["mfn"] = frame if entry & bits.PTE_P else NO_FRAME
            break
        table = entry & bits.PTE_ADDR
    return rows
