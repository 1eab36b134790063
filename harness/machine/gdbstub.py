"""A client of QEMU's gdbstub: UNIX socket, pipelined packets, target description, stop replies.

The rules that shape it, seen with QEMU 7.2:
- no-ack mode is not offered, but the next ``$`` counts as the acknowledgement, so ``+`` is never sent;
- packets may be pipelined: many requests in one write, their replies read in order;
- any byte received while the guest runs stops it, so nothing ever follows a ``c`` or ``s``;
- single registers are read with ``p`` only after the target description was fetched;
- ``g`` has one layout whatever the code's width, but ``G`` has not: registers are written one by one with ``P``.
Protocol: the GDB manual, appendix "GDB Remote Serial Protocol".
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from harness.machine.deadline import Deadline
from harness.machine.errors import DeadlineExceeded, MachineError, StubClosed
from harness.machine.sockets import connect

CONTINUE: Final = b"c"
STEP: Final = b"s"
ALL_REGISTERS: Final = b"g"
INTERRUPTED: Final = 2  # StopReply.signal: a byte came in while the guest ran
PIPELINED: Final = 256  # packets in one write: their replies must fit the socket's buffer until they are read

_WATCH = re.compile(rb"(a|r)?watch:([0-9a-f]+);")
_WATCH_KINDS: Final = {None: 2, b"r": 3, b"a": 4}


@dataclass(frozen=True, slots=True)
class StopReply:
    """Why the guest stopped. watch: start of the watched range that was accessed, None for anything else; kind: of
    that watchpoint, as in `point_packet`. exited: QEMU said that the machine ended (``W``/``X``), status its code.
    signal: 5 trap, 2 interrupt."""

    signal: int
    watch: int | None = None
    exited: bool = False
    status: int = 0
    kind: int = 2


@dataclass(frozen=True, slots=True)
class Register:
    """One register of the target description. number: for ``p``/``P``. size: bytes in 64-bit code."""

    name: str
    number: int
    size: int


def packet(payload: bytes) -> bytes:
    """`payload` framed: ``$payload#checksum``."""
    return b"$%b#%02x" % (payload, sum(payload) & 0xFF)


def point_packet(kind: int, address: int, length: int, insert: bool = True) -> bytes:
    """Z/z of `kind`: 0 and 1 break on execution, 2 watches stores, 3 loads, 4 both, over virtual addresses."""
    return b"%b%d,%x,%x" % (b"Z" if insert else b"z", kind, address, length)


def breakpoint_packet(address: int, insert: bool = True) -> bytes:
    """Z1/z1: QEMU's breakpoints live in the translator and never touch guest memory."""
    return point_packet(1, address, 1, insert)


def watch_packet(address: int, length: int, insert: bool = True) -> bytes:
    """Z2/z2: a write watchpoint over `length` bytes of virtual addresses."""
    return point_packet(2, address, length, insert)


class GdbStub:
    """One connection to a gdbstub. Not thread-safe: one owner."""

    def __init__(self, path: Path, deadline: Deadline, ended: Callable[[], bool] = lambda: False) -> None:
        """Connects to the UNIX socket at `path` and reads the target description.

        Raises DeadlineExceeded if nothing listens there in time, StubClosed if QEMU goes away.
        """
        self._socket = connect(path, deadline, ended)
        self._buffer = bytearray()
        self._sending = threading.Lock()
        self._running = False
        self.documents: dict[str, bytes] = {}  # the target description: annex -> XML, as QEMU gives it
        self.registers = self._read_description(deadline)
        # The integer registers in front, up to EFER: 8 or 4 bytes each.
        front = list(self.registers.values())
        front = front[: [register.name for register in front].index("efer") + 1]
        self._names = [register.name for register in front]
        self._layout = struct.Struct("<" + "".join("Q" if register.size == 8 else "I" for register in front))

    def close(self) -> None:
        self._socket.close()

    # ---- packets

    def _fill(self, deadline: Deadline) -> None:
        left = deadline.left
        # SO_RCVTIMEO keeps a wait at one system call; select would make it two.
        if left <= 0:
            raise DeadlineExceeded(f"gdbstub: no answer within {deadline.seconds:g} s")
        self._set_timeout(left)
        try:
            data = self._socket.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError as error:
            raise StubClosed(f"gdbstub connection lost: {error}") from error
        if not data:
            raise StubClosed("gdbstub connection closed by QEMU")
        self._buffer += data

    _timeout = 0.0

    def _set_timeout(self, seconds: float) -> None:
        # Re-arming costs a system call: only when the bound would change by much.
        wanted = min(1.0, seconds)
        if self._timeout == 0.0 or wanted < 1.0 or self._timeout != wanted:
            whole = int(wanted)
            option = struct.pack("ll", whole, max(1000, int((wanted - whole) * 1e6)))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, option)
            self._timeout = wanted

    def _receive(self, deadline: Deadline) -> bytes:
        buffer = self._buffer
        while True:
            start = buffer.find(b"$")
            if start >= 0:
                end = buffer.find(b"#", start)
                if end >= 0 and len(buffer) >= end + 3:
                    payload = bytes(buffer[start + 1 : end])
                    del buffer[: end + 3]
                    return payload
            self._fill(deadline)

    def _send(self, payloads: Sequence[bytes]) -> None:
        try:
            with self._sending:
                self._socket.sendall(b"".join(map(packet, payloads)))
        except OSError as error:
            raise StubClosed(f"gdbstub connection lost: {error}") from error

    def request(self, *payloads: bytes, seconds: float = 10.0) -> list[bytes]:
        """Sends all `payloads` in one write and gives their replies in order. The guest must be stopped."""
        if self._running:
            raise MachineError("gdbstub: a packet was about to be sent to a running guest")
        self._send(payloads)
        deadline = Deadline(seconds)
        return [self._receive(deadline) for _ in payloads]

    def checked(self, *payloads: bytes) -> None:
        """Like `request`, for packets that answer OK. Raises MachineError with the first that did not."""
        for payload, reply in zip(payloads, self.request(*payloads), strict=True):
            if reply != b"OK":
                raise MachineError(f"gdbstub answered {reply!r} to {payload[:60]!r}")

    # ---- running

    def resume(self, before: Sequence[bytes] = (), how: bytes = CONTINUE) -> list[bytes]:
        """Sends `before` and then `how` (continue or step) in one write; gives the replies to `before`."""
        if self._running:
            raise MachineError("gdbstub: the guest already runs")
        self._send([*before, how])
        self._running = True
        deadline = Deadline(10.0)
        return [self._receive(deadline) for _ in before]

    def wait_stop(self, deadline: Deadline) -> StopReply:
        """Waits until the guest stops. Raises DeadlineExceeded (the guest still runs) or StubClosed."""
        return self._stopped(self._receive(deadline))

    def poll_stop(self) -> StopReply | None:
        """The stop reply if the guest has stopped by now, without waiting. Raises StubClosed."""
        try:
            data = self._socket.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        except OSError as error:
            raise StubClosed(f"gdbstub connection lost: {error}") from error
        else:
            if not data:
                raise StubClosed("gdbstub connection closed by QEMU")
            self._buffer += data
        if b"$" not in self._buffer:  # at most the acknowledgement of what let the guest run
            return None
        return self._stopped(self._receive(Deadline(1.0)))  # the rest of a packet is never far

    def _stopped(self, reply: bytes) -> StopReply:
        self._running = False
        kind = reply[:1]
        if kind in (b"T", b"S"):
            signal, match = int(reply[1:3], 16), _WATCH.search(reply)
            if match is None:
                return StopReply(signal)
            return StopReply(signal, int(match.group(2), 16), kind=_WATCH_KINDS[match.group(1)])
        if kind in (b"W", b"X"):
            return StopReply(0, exited=True, status=int(reply[1:3], 16))
        raise MachineError(f"gdbstub sent {reply!r} instead of a stop reply")

    def interrupt(self, deadline: Deadline) -> StopReply:
        """Stops a running guest (Ctrl-C of the protocol)."""
        if not self._running:
            raise MachineError("gdbstub: interrupt of a guest that is stopped")
        self.poke()  # if QEMU has ended, the wait will tell
        return self.wait_stop(deadline)

    def poke(self) -> None:
        """Stops the guest if it runs, for whoever waits in `wait_stop`: signal 2. From any thread; QEMU ignores it
        while the guest stands."""
        with contextlib.suppress(OSError), self._sending:  # not in the middle of a packet
            self._socket.sendall(b"\x03")

    @property
    def running(self) -> bool:
        return self._running

    # ---- registers

    def _read_annex(self, annex: str, deadline: Deadline) -> bytes:
        document = b""
        while True:
            query = b"qXfer:features:read:%b:%x,ffb" % (annex.encode(), len(document))
            self._send([query])
            reply = self._receive(deadline)
            # A fresh connection may first deliver the stop reply that QEMU queued for it.
            while reply[:1] in (b"T", b"S"):
                reply = self._receive(deadline)
            if reply[:1] not in (b"l", b"m"):
                raise MachineError(f"gdbstub: no target description ({reply[:40]!r} for {annex})")
            document += re.sub(rb"}(.)", lambda m: bytes([m.group(1)[0] ^ 0x20]), reply[1:], flags=re.DOTALL)
            if reply[:1] == b"l":
                self.documents[annex] = document
                return document

    def _read_description(self, deadline: Deadline) -> dict[str, Register]:
        top = self._read_annex("target.xml", deadline).decode()
        registers: dict[str, Register] = {}
        number = 0
        for annex in re.findall(r'<xi:include href="([^"]+)"', top):
            text = self._read_annex(annex, deadline).decode()
            for element in ElementTree.fromstring(text).iter("reg"):
                number = int(element.get("regnum", number))
                name = element.attrib["name"]
                registers[name] = Register(name, number, int(element.attrib["bitsize"]) // 8)
                number += 1
        missing = {"rax", "rip", "eflags", "cs", "cr0", "cr3", "cr4", "efer"} - registers.keys()
        if missing:
            raise MachineError(f"gdbstub: the target description lacks {', '.join(sorted(missing))}")
        return registers

    def parse_registers(self, reply: bytes) -> dict[str, int]:
        """The reply to ``g`` as name -> value, integer registers up to EFER, in one layout for all code widths."""
        data = bytes.fromhex(reply.decode())
        if len(data) < self._layout.size:
            raise MachineError(f"gdbstub: `g` gave {len(data)} bytes, the description says {self._layout.size}")
        return dict(zip(self._names, self._layout.unpack_from(data), strict=True))

    def write_register(self, number: int, value: bytes) -> None:
        """P: `value` is little-endian, of the register's size. Raises MachineError if QEMU refuses."""
        self.checked(b"P%x=%b" % (number, value.hex().encode()))

    def raw_registers(self) -> bytes:
        """The reply to ``g``: all registers of the description, in its order, little-endian."""
        return bytes.fromhex(self.request(ALL_REGISTERS)[0].decode())

    def read_registers(self) -> dict[str, int]:
        return self.parse_registers(self.request(ALL_REGISTERS)[0])

    # ---- memory

    def read_memory(self, addresses: Sequence[int], count: int) -> list[bytes | None]:
        """`count` bytes at each virtual address by QEMU's debug walk; None where it answers an error."""
        out: list[bytes | None] = []
        for start in range(0, len(addresses), PIPELINED):
            replies = self.request(*(b"m%x,%x" % (at, count) for at in addresses[start : start + PIPELINED]))
            out += [None if reply[:1] == b"E" else bytes.fromhex(reply.decode()) for reply in replies]
        return out

    def write_physical(self, writes: Sequence[tuple[int, bytes]]) -> None:
        """Writes (physical address, bytes) so that translated code there is dropped."""
        packets = [b"M%x,%x:%b" % (address, len(data), data.hex().encode()) for address, data in writes]
        for start in range(0, len(packets), PIPELINED):
            chunk = packets[start : start + PIPELINED]
            self.checked(b"Qqemu.PhyMemMode:1", *chunk, b"Qqemu.PhyMemMode:0")
