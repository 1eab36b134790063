"""Writing a trace: chunks into a file without a name, which gets one when the trace is to be kept."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
import zlib
from array import array
from pathlib import Path
from typing import BinaryIO, Final

from harness.report.output_file import copy_atomic
from harness.trace.format import CHUNK, LENGTH, MAGIC, PACK, Header, Kind, tailed

LEVEL: Final = 1  # of zlib: higher ones take a good part of a live run's time for some percent of its size
CHUNK_RECORDS: Final = 2048  # in a chunk, some 60 KB of the small kinds: about a millisecond's work for zlib
_WORD: Final = (1 << 64) - 1


class TraceWriter:
    """Takes records, as bytes, and writes them in chunks to a file in `folder` that has no name: nothing is left of it
    when this process ends, however it does.

    What comes at each exit of a live guest is held back as it is, to be written together with more of its kind. event:
    the last event, if nothing is written of it yet. run: of each fault since the last record, the three words of a
    PAGE_FAULTS. idles: calls of `idle` since. lost: why the trace could not be written, empty as long as it could. What
    comes after that is dropped.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self.lost = ""
        self.event: tuple[str, int, int, str] | None = None
        self.run: list[int] = []
        self.idles = 0
        self._records: list[bytes] = []  # of the chunk that is not written yet
        self._strings: dict[str, int] = {}
        self._file: BinaryIO | None = None
        text = header.encode()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The file lives as long as the run does, wherever that ends: it is closed with this object.
            file = self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            weakref.finalize(self, _close, file)
            file.write(MAGIC + LENGTH.pack(len(text)) + text)
            file.flush()
        except OSError as error:
            self.lose(error)

    def put(self, record: bytes) -> None:
        """Appends a record."""
        self.settle()
        self._records.append(record)

    def settle(self) -> None:
        """Makes records of what is held back."""
        records = self._records
        if len(records) >= CHUNK_RECORDS:
            self._write_chunk()
        if self.run:
            records.append(tailed(Kind.PAGE_FAULTS, tail=array("Q", self.run).tobytes()))
            self.run.clear()
        if self.event is not None:
            kind, rip, value, text = self.event
            self.event = None
            fields = self._string(kind), rip & _WORD, value & _WORD, self._string(text)
            records.append(PACK[Kind.EVENT](Kind.EVENT, *fields))
        if self.idles:
            records.append(PACK[Kind.IDLE](Kind.IDLE, self.idles))
            self.idles = 0

    def _string(self, text: str) -> int:
        """The number of `text` in the trace."""
        number = self._strings.get(text)
        if number is None:
            number = self._strings[text] = len(self._strings)
            self._records.append(tailed(Kind.STRING, tail=text.encode(errors="replace")))
        return number

    @property
    def path(self) -> Path:
        """A path at which this process can open the file. Raises OSError once the trace is lost or closed."""
        if self._file is None:
            raise FileNotFoundError(2, self.lost or "it is closed")
        return Path(f"/proc/self/fd/{self._file.fileno()}")

    def flush(self) -> None:
        """Closes the chunk: a reader sees all records so far."""
        self.settle()
        self._write_chunk()

    def _write_chunk(self) -> None:
        raw = b"".join(self._records)
        self._records.clear()
        if self._file is None or not raw:
            return
        packed = zlib.compress(raw, LEVEL)
        try:
            self._file.write(CHUNK.pack(len(packed), len(raw), zlib.crc32(packed)) + packed)
            self._file.flush()
        except OSError as error:
            self.lose(error)

    def end(self, verdict: str, reason: str, events: int) -> None:
        """The last record. The trace is complete."""
        self.flush()
        self.put(tailed(Kind.END, events, tail=f"{verdict}\0{reason}".encode(errors="replace")))
        self.flush()

    def keep(self, path: Path) -> None:
        """Copies the trace to `path`, which appears whole or not at all. Where that cannot be, `lost` says why."""
        if self._file is None:
            return
        try:
            self._file.seek(0)
            copy_atomic(path, self._file)
        except OSError as error:
            self.lose(error)

    def close(self) -> None:
        """Nothing is left of what was not kept."""
        if self._file is not None:
            _close(self._file)
            self._file = None

    def lose(self, error: OSError) -> None:
        """The trace cannot be kept, because of `error`."""
        self.lost = error.strerror or str(error)
        self.close()


def _close(file: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # what could not be written is tried once more, and is known to be lost
        file.close()
