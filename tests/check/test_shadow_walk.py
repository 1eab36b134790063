"""The vectorised shadow walk gives, element by element, what the model processor gives for the same tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.check.shadow_walk import ShadowView, describe_shadow, shadow_walk
from harness.check.verdict import ESCAPED, FRAME, GP
from harness.engine import ShadowRoot
from harness.x86 import bits
from harness.x86.access import ALL_ACCESSES
from harness.x86.control import ControlState
from harness.x86.modes import LONG4, LONG5, PAE, PagingMode
from tests.check.guest_tables import NX, PS, P, U, W, control_of
from tests.check.model_mmu import Fault, ModelMmu

POOL = 8
BASE = 4  # mfn of the pool's first frame
SHADOW_MODES = (PAE, LONG4, LONG5)
BITS = (P, W, U, PS, NX, 1 << 13, 1 << 21, 1 << 45, 1 << 52, 1 << 60)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SHADOW_MODES),
    st.lists(
        st.tuples(st.integers(BASE, BASE + POOL), st.lists(st.sampled_from(BITS), max_size=2)), min_size=24, max_size=24
    ),
    st.lists(st.integers(0, (1 << 64) - 1), min_size=20, max_size=20),
    st.integers(0, 15),
    st.integers(0, (1 << 32) - 1),
)
def test_it_agrees_with_the_model(
    mode: PagingMode, rows: list[tuple[int, list[int]]], drawn: list[int], controls: int, pkru: int
) -> None:
    table = []
    for frame, flips in rows:
        entry = frame << 12 | P | W | U
        for bit in flips:
            entry ^= bit
        table.append(entry)
    words = np.resize(np.asarray(table, np.uint64), POOL * 512)
    state = control_of(mode, BASE << 12)
    cr4 = state.cr4
    for at, bit in enumerate((bits.CR4_SMEP, bits.CR4_SMAP, bits.CR4_PKE)):
        cr4 ^= bit if controls >> at & 1 else 0
    state = replace(state, cr4=cr4, cr0=state.cr0 ^ (bits.CR0_WP if controls & 8 else 0), pkru=pkru)
    view = ShadowView(ShadowRoot(mode, BASE << 12, state), BASE, words.reshape(POOL, 512), pkru)
    mask = (1 << mode.va_bits) - 1
    va = np.asarray([mode.sign_extend(one & mask) for one in drawn] * len(ALL_ACCESSES), np.uint64)
    access = np.repeat(np.asarray(ALL_ACCESSES, np.uint8), len(drawn))
    answers = shadow_walk(view, va, access)
    for at in range(len(va)):
        code, frame = _model(words, state, int(va[at]), int(access[at]))
        assert answers.codes[at] == code
        assert frame == (answers.frames[at] if code == FRAME else -1)


class _Escaped(Exception):
    pass


def _model(words: np.typing.NDArray[np.uint64], state: ControlState, va: int, op: int) -> tuple[int, int]:
    class OnPool(ModelMmu):
        def _load(self, address: int, size: int) -> int:
            if not BASE << 12 <= address < BASE + POOL << 12:
                raise _Escaped
            return int(words[(address - (BASE << 12)) // 8])

        def _mark(self, address: int, bits: int) -> None:
            pass

    try:
        return FRAME, OnPool(np.zeros(0, np.uint8), state).translate(va, op) >> 12
    except _Escaped:
        return ESCAPED, -1
    except Fault as fault:
        return fault.code | (1 if fault.code & 8 else 0), -1


def one(mode: PagingMode, words: np.typing.NDArray[np.uint64], va: int, root: int = BASE << 12) -> int:
    view = ShadowView(ShadowRoot(mode, root, control_of(mode, root)), BASE, words)
    return int(shadow_walk(view, np.asarray([va], np.uint64), np.zeros(1, np.uint8)).codes[0])


def test_a_root_below_or_above_the_pool_escapes() -> None:
    words = np.zeros((2, 512), np.uint64)
    assert one(LONG4, words, 0, root=0) == ESCAPED
    assert one(LONG4, words, 0, root=BASE + 2 << 12) == ESCAPED
    assert one(LONG4, words, 0) == 0


@pytest.mark.parametrize(("mode", "va"), [(LONG4, 1 << 47), (LONG5, 1 << 56), (PAE, 1 << 32)])
def test_addresses_that_the_format_cannot_hold_are_general_protection(mode: PagingMode, va: int) -> None:
    assert one(mode, np.zeros((1, 512), np.uint64), va) == GP


def test_the_walk_is_described_level_by_level_up_to_where_it_stops() -> None:
    words = np.zeros((2, 512), np.uint64)
    words[0, 0] = BASE + 1 << 12 | P | W
    words[1, 0] = 0x99 << 12 | P
    view = ShadowView(ShadowRoot(LONG4, BASE << 12, control_of(LONG4, 0)), BASE, words)
    rows = describe_shadow(view, 0)
    assert [row["level"] for row in rows] == [4, 3, 2]
    assert rows[-1]["note"] == "outside the pool"
    assert rows[0]["flags"] == "P W"
