"""The server's end of gdb's remote serial protocol: a UNIX socket, framing, acknowledgements, a queue of packets.

What the packets mean is `harness.debug.proxy`'s business. A thread of its own reads the socket, because a gdb connects,
interrupts and goes away while the harness waits for the guest. Protocol: the GDB manual, appendix "GDB Remote Serial
Protocol", sections "Overview" and "Packet Acknowledgment".
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum, auto
from pathlib import Path
from typing import Final

from harness.machine.gdbstub import packet
from harness.report.text import printable

PACKET_BYTES: Final = 0x1000  # as QEMU's stub has it: what a `Debuggee` is asked for is never more than half of it
FRAME_BYTES: Final = 2 * PACKET_BYTES  # of a packet as it comes, escapes included
CONSOLE_CHARACTERS: Final = 500  # in one O packet: two digits a byte, up to four bytes a character
SEND_SECONDS: Final = 10.0  # a gdb that reads nothing for so long (stopped with SIGSTOP) is given up
NUDGE_SECONDS: Final = 0.2  # between two calls of `on_wanted` while nobody comes to look
NO_ACKS: Final = b"QStartNoAckMode"
BUSY: Final = b"E.another gdb is attached to this run"


class Signal(Enum):
    """What happens besides packets."""

    CONNECTED = auto()  # a gdb is there
    INTERRUPT = auto()  # Ctrl-C
    GONE = auto()  # its connection has ended


class Mark(Enum):
    """What a stream of frames has besides packets."""

    ACK = auto()
    NAK = auto()
    INTERRUPT = auto()
    BAD = auto()  # a packet whose checksum is wrong
    OVERLONG = auto()  # one that is longer than FRAME_BYTES


_MARKS: Final = {ord("+"): Mark.ACK, ord("-"): Mark.NAK, 3: Mark.INTERRUPT}
_HEX: Final = b"0123456789abcdefABCDEF"


def escape(data: bytes) -> bytes:
    """Binary `data` as a packet may carry it: ``#``, ``$``, ``}`` and ``*`` escaped."""
    return re.sub(rb"[#$}*]", lambda found: bytes((0x7D, found[0][0] ^ 0x20)), data)


def unescape(data: bytes) -> bytes:
    """What `escape` made, undone."""
    return re.sub(rb"}(.)", lambda found: bytes((found[1][0] ^ 0x20,)), data, flags=re.DOTALL)


class Framing:
    """Cuts the bytes of a connection into packets and marks, however they are fragmented."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skipping = False  # in an overlong packet, up to its end

    def feed(self, data: bytes) -> Iterator[bytes | Mark]:
        """Takes `data` in; gives the payload (unescaped) of each packet that is complete now, and the marks between."""
        self._buffer += data
        while self._buffer:
            if self._buffer[0] != ord("$") and not self._skipping:
                mark = _MARKS.get(self._buffer.pop(0))
                if mark is not None:
                    yield mark
                continue
            end = self._buffer.find(b"#")
            if end < 0 and len(self._buffer) > FRAME_BYTES:
                self._skipping = True
                self._buffer.clear()
            if end < 0 or len(self._buffer) < end + 3:
                return
            # A `$` is escaped inside a packet: one that is not begins it anew.
            raw = bytes(self._buffer[:end]).rpartition(b"$")[2]
            digits = bytes(self._buffer[end + 1 : end + 3])
            del self._buffer[: end + 3]
            if self._skipping or len(raw) > FRAME_BYTES:
                self._skipping = False
                yield Mark.OVERLONG
            elif any(digit not in _HEX for digit in digits) or int(digits, 16) != sum(raw) & 0xFF:
                yield Mark.BAD
            else:
                yield unescape(raw)


class GdbServer:
    """Waits for gdb on a UNIX socket: one at a time, a second one is told so and turned away.

    wanted: somebody must look: a packet or signal waits in the queue. on_wanted: called in the server's thread when
    `wanted` becomes true while nobody is `attending`, and again every NUDGE_SECONDS until somebody is, so that a call
    that comes between two looks at the guest is not lost. `next`, `reply` and `console` are for one thread, the one
    that serves.
    """

    def __init__(self, path: Path) -> None:
        """Listens at `path` from now on. Raises OSError if that cannot be."""
        self.path = path
        self.wanted = False
        self.on_wanted: Callable[[], None] | None = None
        self._attended = False
        self._changed = threading.Condition()  # holds the queue and the connection
        self._sending = threading.Lock()
        self._queue: deque[tuple[int, bytes | Signal]] = deque()
        self._client: socket.socket | None = None
        self._number = 0  # of the connection: each has one of its own, from 1 on
        self._served = 0  # the number of the connection whose packet or signal `next` gave last
        self._left = 0  # connections up to this number were hung up: nothing more is heard of them
        self._leaving: list[socket.socket] = []  # hung up or turned away, until gdb closes its end too
        self._acks = True
        self._unacknowledged = b""
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
            self._listener.listen(4)
        except OSError:
            self._listener.close()
            raise
        self._wake_end, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._work, name="gdb server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends every connection and takes the socket away. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._wake()
        self._thread.join()
        with self._changed:
            self._changed.notify_all()
        for sock in (*self._leaving, self._client, self._listener, self._wake_end, self._woken):
            if sock is not None:
                sock.close()
        self._client = None
        self.path.unlink(missing_ok=True)

    # ---- for the one that serves

    @property
    def connected(self) -> bool:
        """Whether a gdb is there now."""
        return self._client is not None

    @property
    def attending(self) -> bool:
        """Whether somebody takes what comes with `next`: set by whoever does, and taken back when the guest runs."""
        return self._attended

    @attending.setter
    def attending(self, value: bool) -> None:
        self._attended = value
        if not value:
            self._wake()

    def next(self, seconds: float) -> bytes | Signal | None:
        """The next packet's payload or the next signal, in the order in which they came; None after `seconds`."""
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                while self._queue:
                    self._served, item = self._queue.popleft()
                    self.wanted = bool(self._queue)
                    if item != NO_ACKS:
                        return item
                    self._stop_acks()
                left = end - time.monotonic()
                if left <= 0 or self._closed:
                    return None
                self._changed.wait(left)

    def reply(self, payload: bytes) -> None:
        """Sends `payload` to the gdb whose packet came last; nothing happens once that one is gone."""
        client = self._client
        if client is not None and self._number == self._served:
            with self._sending:
                self._unacknowledged = packet(payload)
                self._send(client, self._unacknowledged)

    def console(self, text: str) -> None:
        """Shows `text` on gdb's console. gdb takes it only while it waits for a stop or for the end of a `monitor`."""
        text = printable(text.replace("\r\n", "\n"))
        for start in range(0, len(text), CONSOLE_CHARACTERS):
            self.reply(b"O" + text[start : start + CONSOLE_CHARACTERS].encode(errors="replace").hex().encode())

    def hang_up(self) -> None:
        """Ends the connection of the gdb whose packet came last, without a GONE: it was told, or said so itself."""
        with self._changed:
            client = self._client if self._number == self._served else None
            self._left = self._served
            self._queue = deque(entry for entry in self._queue if entry[0] > self._left)
            self.wanted = bool(self._queue)
            if client is not None:
                self._client = None
                self._leave(client)
        self._wake()

    def _stop_acks(self) -> None:
        # The reply to it is acknowledged still: by then nobody minds a `+`.
        self.reply(b"OK")
        self._acks = False

    # ---- the thread

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_end.send(b".")

    def _work(self) -> None:
        framing = Framing()
        while not self._closed:
            client = self._client
            sources = [self._listener, self._woken, *self._leaving, *([client] if client else [])]
            unheard = self.wanted and not self._attended
            ready, _, _ = select.select(sources, [], [], NUDGE_SECONDS if unheard else None)
            if self._woken in ready:
                self._woken.recv(4096)
            for sock in [sock for sock in self._leaving if sock in ready]:
                if not _received(sock):
                    self._leaving.remove(sock)
                    sock.close()
            if client is not None and client in ready:
                self._take(client, framing)
            if self._listener in ready:
                framing = self._accept() or framing
            if self.wanted and not self._attended and self.on_wanted is not None:
                self.on_wanted()

    def _accept(self) -> Framing | None:
        """A new connection, with a framing of its own; None if it was turned away."""
        try:
            client, _ = self._listener.accept()
        except OSError:  # it has gone already
            return None
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(SEND_SECONDS))
        with self._changed:
            if self._client is not None:
                self._send(client, b"+" + packet(BUSY))
                self._leave(client)
                return None
            self._client = client
            self._number += 1
            self._acks, self._unacknowledged = True, b""
            self._put(Signal.CONNECTED)
        return Framing()

    def _take(self, client: socket.socket, framing: Framing) -> None:
        data = _received(client)
        if not data:
            with self._changed:
                if self._client is client:  # else it was hung up just now
                    self._client = None
                    self._put(Signal.GONE)
                    client.close()
            return
        for item in framing.feed(data):
            if item is Mark.ACK:
                self._unacknowledged = b""
            elif item is Mark.NAK:
                self._again(client)
            elif item is Mark.INTERRUPT:
                with self._changed:
                    self._put(Signal.INTERRUPT)
            else:
                self._take_packet(client, item)

    def _take_packet(self, client: socket.socket, item: bytes | Mark) -> None:
        if item is Mark.BAD:
            # Without acknowledgements nobody would send it again.
            self._acknowledge(client, b"-")
            return
        self._acknowledge(client, b"+")
        with self._changed:
            # No packet that gdb was promised is so long: like any that is not known, it gets the empty reply.
            self._put(item if isinstance(item, bytes) else b"")

    def _acknowledge(self, client: socket.socket, sign: bytes) -> None:
        if self._acks:
            with self._sending:
                self._send(client, sign)

    def _again(self, client: socket.socket) -> None:
        # A gdb that grows impatient sends `-` as well: what it acknowledged is not the answer that it misses.
        with self._sending:
            if self._acks and self._unacknowledged:
                self._send(client, self._unacknowledged)

    def _put(self, item: bytes | Signal) -> None:
        if self._number <= self._left:
            return
        if isinstance(item, bytes):
            self._unacknowledged = b""  # it had the reply, or it would not ask anew
        self._queue.append((self._number, item))
        self.wanted = True
        self._changed.notify_all()

    def _leave(self, client: socket.socket) -> None:
        """Nothing more is said on `client`; what gdb says still is thrown away until it closes.

        Were it closed at once, with something unread in it, gdb would get an error instead of what was said last.
        """
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        self._leaving.append(client)

    @staticmethod
    def _send(client: socket.socket, data: bytes) -> None:
        """A gdb to which nothing can be sent is gone: the thread sees the end of its connection."""
        try:
            client.sendall(data)
        except OSError:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


def _received(sock: socket.socket) -> bytes:
    """What `sock` has to read; nothing at its end."""
    try:
        return sock.recv(65536)
    except OSError:
        return b""


def _timeval(seconds: float) -> bytes:
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
