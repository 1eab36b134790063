"""Machine memory whose reads are written to a trace, as far as a replay would not know what they give."""

from __future__ import annotations

from struct import Struct
from typing import Final

import numpy as np

from harness.engine import MachineMemory, PlainMemory, Words, reads_plainly
from harness.trace.format import Kind, tailed, words_tail
from harness.trace.sparse import sparse
from harness.trace.writer import TraceWriter

_ONE_WORD: Final = Struct("<HQ").pack
_WHOLE: Final = 4096 // 10  # changed words of a page from which on the whole page is the shorter record


def record_memory(memory: MachineMemory, writer: TraceWriter) -> RecordedMemory:
    """The cover of `memory`: a faster one where that is plain memory."""
    return RecordedPlainMemory(memory, writer) if reads_plainly(memory) else RecordedMemory(memory, writer)


class RecordedMemory:
    """`harness.engine.MachineMemory` over another, `memory`, that writes what is read for the first time, or is not
    what it was. The engine gets what was written: its own copy."""

    def __init__(self, memory: MachineMemory, writer: TraceWriter) -> None:
        self._memory, self._put = memory, writer.put
        copy = sparse(memory.frames << 12)
        self._pages = copy.view(np.uint64).reshape(-1, 512)
        raw = copy.data.cast("B")
        self._q, self._d = raw.cast("Q"), raw.cast("I")
        self._read64, self._read32 = memory.read64, memory.read32

    @property
    def frames(self) -> int:
        return self._memory.frames

    def read64(self, address: int) -> int:
        value = self._read64(address)
        if value != self._q[address >> 3]:
            self._changed(address >> 3, value)
        return value

    def read32(self, address: int) -> int:
        value = self._read32(address)
        if value != self._d[address >> 2]:
            self._changed(address >> 3, self._read64(address & ~7))
        return value

    def or64(self, address: int, bits: int) -> None:
        self._memory.or64(address, bits)
        self._q[address >> 3] |= bits

    def or32(self, address: int, bits: int) -> None:
        self._memory.or32(address, bits)
        self._d[address >> 2] |= bits

    def page(self, mfn: int) -> Words:
        now = self._memory.page(mfn)
        copy: Words = self._pages[mfn]
        if now.tobytes() != copy.tobytes():  # much faster than numpy's comparison
            self._page_changed(mfn, now.copy())
        return copy

    def _changed(self, word: int, value: int) -> None:
        self._q[word] = value
        self._put(tailed(Kind.WORDS, word >> 9, tail=_ONE_WORD(word & 511, value)))

    def _page_changed(self, mfn: int, now: Words) -> None:
        copy = self._pages[mfn]
        # In a page of which something is known the engine may just have set A and D, in this very call. PAGE would tell
        # them as if they had been there before it.
        unknown = not copy.any()
        at = np.flatnonzero(now != copy)
        copy[:] = now
        if unknown and len(at) >= _WHOLE:
            self._put(tailed(Kind.PAGE, mfn, tail=now.tobytes()))
        else:
            self._put(tailed(Kind.WORDS, mfn, tail=words_tail(at, now[at])))


class RecordedPlainMemory(RecordedMemory):
    """The same over a `harness.engine.PlainMemory`: the words of a live guest's tables are read at every exit."""

    def __init__(self, memory: PlainMemory, writer: TraceWriter) -> None:
        super().__init__(memory, writer)
        raw = memory.bytes.data.cast("B")
        self._real_q, self._real_d = raw.cast("Q"), raw.cast("I")

    def read64(self, address: int) -> int:
        value = self._real_q[address >> 3]
        if value != self._q[address >> 3]:
            self._changed(address >> 3, value)
        return value

    def read32(self, address: int) -> int:
        value = self._real_d[address >> 2]
        if value != self._d[address >> 2]:
            self._changed(address >> 3, self._real_q[address >> 3])
        return value
