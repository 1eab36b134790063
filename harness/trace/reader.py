"""Reading a trace back: its header at once, its records one after another."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, iter_unpack
from struct import error as StructError
from typing import Any, BinaryIO, Final

from harness.trace import records as r
from harness.trace.format import (
    CHUNK,
    FINAL,
    LENGTH,
    MAGIC,
    MOST_CHUNK,
    MOST_HEADER,
    NAME,
    PAGE_FAULT,
    STALE,
    TAILED,
    UNPACK,
    VERSION,
    Header,
    Kind,
)
from harness.x86.control import ControlState

Make = Callable[..., r.Record]


class TraceError(Exception):
    """The file is no trace, or none that this version reads, or it is damaged. One line for the user."""


@dataclass(frozen=True, slots=True)
class Trace:
    """end: the run's end, None in a trace that is incomplete: whoever wrote it was killed, or had no room left."""

    path: Path
    header: Header
    end: r.End | None
    _chunks: int  # where they begin in the file

    @property
    def complete(self) -> bool:
        return self.end is not None

    def records(self) -> Iterator[r.Record]:
        """All records in order, up to the last whole chunk. Raises TraceError at damage."""
        for record in self.follow():
            if record is None:
                return
            yield record

    def follow(self) -> Iterator[r.Record | None]:
        """The same in a trace that is still being written: None where no further whole chunk is there yet. Asked again
        it looks again; it never ends."""
        decoder = _Decoder(self.path)
        try:
            with self.path.open("rb") as file:
                file.seek(self._chunks)
                while True:
                    at = file.tell()
                    chunk = _next_chunk(file, self.path)
                    if chunk is not None:
                        yield from decoder.records(chunk, at)
                    else:
                        file.seek(at)
                        yield None
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be read: {error.strerror}") from error


def open_trace(path: Path) -> Trace:
    """Reads the header, and whether the trace is complete. Raises TraceError for what is no trace, or another
    version's, or cannot be read."""
    try:
        with path.open("rb") as file:
            header = _read_header(file, path)
            chunks = file.tell()
            return Trace(path, header, _read_end(file, path), chunks)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from error


def _read_header(file: BinaryIO, path: Path) -> Header:
    magic = file.read(len(MAGIC))
    if magic[: len(NAME)] != NAME:
        raise TraceError(f"{path}: no trace of xi-harness (`xi-harness run GUEST --record FILE` writes one)")
    if magic != MAGIC:
        version = f"version {magic[-1]}" if len(magic) == len(MAGIC) else "no version"
        raise TraceError(f"{path}: a trace of {version}, and this xi-harness reads version {VERSION}: record it again")
    length = file.read(LENGTH.size)
    size = LENGTH.unpack(length)[0] if len(length) == LENGTH.size else MOST_HEADER + 1
    text = file.read(size) if size <= MOST_HEADER else b""
    try:
        return Header.decode(text)
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise TraceError(f"{path}: its header is damaged: record it again") from error


def _read_end(file: BinaryIO, path: Path) -> r.End | None:
    """The END record, if the last chunk is one. Only lengths are looked at before it."""
    last = None
    size = path.stat().st_size
    while True:
        at = file.tell()
        head = file.read(CHUNK.size)
        if len(head) < CHUNK.size:
            break
        packed = CHUNK.unpack(head)[0]
        if at + CHUNK.size + packed > size:
            break
        last = at
        file.seek(packed, 1)
    if last is None:
        return None
    file.seek(last)
    chunk = _next_chunk(file, path)
    if not chunk or chunk[0] != Kind.END:
        return None
    (end,) = _Decoder(path).records(chunk, last)
    assert isinstance(end, r.End)
    return end


def _next_chunk(file: BinaryIO, path: Path) -> bytes | None:
    """The next raw chunk; None at the end, or where a chunk is cut off. Raises TraceError for one that is damaged."""
    at = file.tell()
    head = file.read(CHUNK.size)
    if len(head) < CHUNK.size:
        return None
    packed, raw, crc = CHUNK.unpack(head)
    if packed > MOST_CHUNK or raw > MOST_CHUNK:
        raise _damaged(path, at)
    data = file.read(packed)
    if len(data) < packed:
        return None
    if zlib.crc32(data) != crc:
        raise _damaged(path, at)
    try:
        chunk = zlib.decompress(data, bufsize=raw or 1)
    except zlib.error as error:
        raise _damaged(path, at) from error
    if len(chunk) != raw:
        raise _damaged(path, at)
    return chunk


def _damaged(path: Path, at: int) -> TraceError:
    return TraceError(f"{path}: damaged at byte {at:#x}: what is before it can be used, or record it again")


class _Decoder:
    """Makes records of raw chunks, one after another: strings and the numbers of events go on across them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._strings: list[str] = []
        self._events = 0

    def records(self, chunk: bytes, where: int) -> Iterator[r.Record]:
        """where: of the chunk in the file, for TraceError."""
        at, size, strings = 0, len(chunk), self._strings
        try:
            while at < size:
                kind = chunk[at]
                layout, tailed, make = _LAYOUTS[kind]
                values = layout.unpack_from(chunk, at)
                at += layout.size
                if kind == _EVENT:
                    name, rip, value, text = values
                    number = self._events
                    self._events += 1
                    yield r.Intercepted(number, strings[name], rip, value, strings[text])
                elif not tailed:
                    yield make(*values)
                else:
                    end = at + values[-1]
                    if end > size:
                        raise ValueError("a record that does not end")
                    tail = chunk[at:end]
                    at = end
                    if kind == _STRING:
                        strings.append(tail.decode())
                    elif kind == _PAGE_FAULTS:
                        yield from self._page_faults(tail)
                    else:
                        yield make(*values[:-1], tail)
        except (StructError, IndexError, ValueError) as error:
            raise _damaged(self._path, where) from error

    def _page_faults(self, tail: bytes) -> Iterator[r.Record]:
        for rip, va, told, result in iter_unpack("<QQIi", tail):
            number = self._events
            self._events += 1
            yield r.Intercepted(number, PAGE_FAULT, rip, va, "")
            if told >> 8:
                yield r.Idle(told >> 8)
            yield r.Fault(va, told & 0xFF, result, -1)


def _arrays(tail: bytes, *codes: str) -> tuple[tuple[Any, ...], ...]:
    """The arrays that `tail` holds one behind the other, equally long, by their struct codes."""
    count = len(tail) // Struct("<" + "".join(codes)).size
    layouts = [Struct(f"<{count}{code}") for code in codes]
    if sum(layout.size for layout in layouts) != len(tail):
        raise ValueError("arrays of unequal length")
    out, at = [], 0
    for layout in layouts:
        out.append(layout.unpack_from(tail, at))
        at += layout.size
    return tuple(out)


def _faults(away: int, tail: bytes) -> r.Faults:
    addresses, accesses, results = _arrays(tail, "Q", "B", "i")
    return r.Faults(addresses, accesses, results, away)


def _words(mfn: int, tail: bytes) -> r.Words:
    indices, values = _arrays(tail, "H", "Q")
    return r.Words(mfn, indices, values)


def _shadow_words(mfn: int, tail: bytes) -> r.ShadowWords:
    return r.ShadowWords(*_words(mfn, tail))


def _checkpoint(
    number: int, flags: int, crc: int, cr0: int, cr3: int, cr4: int, efer: int, pkru: int, tail: bytes
) -> r.Checkpoint:
    state = ControlState(cr0, cr3, cr4, efer, pkru)
    return r.Checkpoint(number, tail.decode(), state, bool(flags & STALE), bool(flags & FINAL), crc)


def _end(events: int, tail: bytes) -> r.End:
    verdict, _, reason = tail.decode().partition("\0")
    return r.End(verdict, reason, events)


_MAKERS: Final[dict[Kind, Make]] = {
    Kind.END: _end,
    Kind.CONTROL: r.Control,
    Kind.LOAD_CR3: r.LoadCr3,
    Kind.INVLPG: r.Invlpg,
    Kind.TABLE_WRITTEN: r.TableWritten,
    Kind.FAULT: r.Fault,
    Kind.FAULTS: _faults,
    Kind.PKRU: r.Pkru,
    Kind.INVALIDATE_MFN: r.InvalidateMfn,
    Kind.PDPTES: lambda *pdptes: r.Pdptes(pdptes),
    Kind.DIRTY_START: r.DirtyStart,
    Kind.DIRTY_READ: r.DirtyRead,
    Kind.DIRTY_STOP: r.DirtyStop,
    Kind.RESYNC_ALL: r.ResyncAll,
    Kind.UNEXPLAINED: lambda tail: r.Unexplained(*_arrays(tail, "q")),
    Kind.WATCH_CHANGES: r.WatchChanges,
    Kind.EXECUTABLE_CHANGES: r.ExecutableChanges,
    Kind.IDLE: r.Idle,
    Kind.AUDIT: r.Audit,
    Kind.WORDS: _words,
    Kind.PAGE: r.Page,
    Kind.SHADOW_WORDS: _shadow_words,
    Kind.RAISED: lambda tail: r.Raised(tail.decode()),
    Kind.CHECKPOINT: _checkpoint,
    Kind.CHECKED: r.Checked,
}


def _made_here(*values: Any) -> r.Record:
    raise AssertionError(f"made where they are read: {values}")


_EVENT, _STRING, _PAGE_FAULTS = int(Kind.EVENT), int(Kind.STRING), int(Kind.PAGE_FAULTS)
_LAYOUTS: Final[list[tuple[Struct, bool, Make]]] = [
    (UNPACK[kind], kind in TAILED, _MAKERS.get(kind, _made_here)) for kind in Kind
]
