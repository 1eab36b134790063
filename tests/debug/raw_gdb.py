"""A client of the remote protocol that sends exactly what it is told to."""

from __future__ import annotations

import socket
from pathlib import Path

from harness.machine.gdbstub import packet


class RawGdb:
    """One connection. Every wait ends after some seconds with an error."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self._data = b""
        self.signs = b""  # the acknowledgements that came, in order

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, payload: bytes) -> bytes:
        """Sends a packet; the reply to it."""
        self.send(packet(payload))
        return self.receive()

    def receive(self) -> bytes:
        """The payload of the next packet, as it comes."""
        while True:
            start = self._data.find(b"$")
            end = self._data.find(b"#", start)
            if start >= 0 and end >= 0 and len(self._data) >= end + 3:
                payload = self._data[start + 1 : end]
                assert self._data[: end + 3].endswith(packet(payload))
                self.signs += self._data[:start]
                self._data = self._data[end + 3 :]
                return payload
            data = self.socket.recv(65536)
            assert data, "the server has ended the connection"
            self._data += data

    def sign(self) -> bytes:
        """The next byte, which must not be of a packet."""
        if not self._data:
            self._data = self.socket.recv(65536)
        sign, self._data = self._data[:1], self._data[1:]
        assert sign in (b"+", b"-"), f"{sign!r} instead of an acknowledgement"
        return sign

    def silent(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes for `seconds`."""
        self.socket.settimeout(seconds)
        try:
            self._data += self.socket.recv(65536)
        except TimeoutError:
            return not self._data
        finally:
            self.socket.settimeout(10)
        return False

    def ended(self) -> bool:
        """Whether the server has ended the connection, or does so now."""
        try:
            return self.socket.recv(65536) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()
