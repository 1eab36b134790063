"""The gdbstub client against a scripted stub: framing, pipelining, stop replies, deadlines."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.machine.deadline import Deadline
from harness.machine.errors import DeadlineExceeded, MachineError, StubClosed
from harness.machine.gdbstub import GdbStub, StopReply, breakpoint_packet, packet, watch_packet

NAMES = ("rax", "rip", "eflags", "cs", "cr0", "cr3", "cr4", "efer")
CORE = "<feature>" + "".join(f'<reg name="{n}" bitsize="{32 if n in ("eflags", "cs") else 64}"/>' for n in NAMES)
ANNEXES = {"target.xml": '<target><xi:include href="core.xml"/></target>', "core.xml": CORE + "</feature>"}


class ScriptedStub:
    """Answers packets from a table; what is not in it gets OK. Records what it was sent."""

    def __init__(self, path: Path) -> None:
        self.answers: dict[bytes, bytes | None] = {}
        self.seen: list[bytes] = []
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        # QEMU queues a stop reply for a new connection: it arrives before the first answer.
        connection.sendall(packet(b"T05thread:01;"))
        data = b""
        while chunk := connection.recv(4096):
            data += chunk
            while b"#" in data and len(data) >= data.index(b"#") + 3:
                end = data.index(b"#") + 3
                raw, data = data[:end], data[end:]
                payload = raw[raw.index(b"$") + 1 : -3]
                self.seen.append(payload)
                if payload.startswith(b"qXfer:features:read:"):
                    text = ANNEXES[payload.split(b":")[3].decode()]
                    connection.sendall(b"+" + packet(b"l" + text.encode()))
                    continue
                answer = self.answers.get(payload, b"OK")
                if answer == b"close":
                    connection.close()
                    return
                if answer is not None:
                    connection.sendall(b"+" + packet(answer))


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[tuple[ScriptedStub, GdbStub]]:
    stub = ScriptedStub(tmp_path / "gdb")
    client = GdbStub(tmp_path / "gdb", Deadline(5))
    yield stub, client
    client.close()


def test_a_packet_is_framed_with_its_checksum() -> None:
    assert packet(b"OK") == b"$OK#9a"
    assert breakpoint_packet(0x1000) == b"Z1,1000,1"
    assert watch_packet(0x2000, 4096, insert=False) == b"z2,2000,1000"


def test_the_queued_stop_reply_of_a_new_connection_is_not_taken_for_an_answer(
    scripted: tuple[ScriptedStub, GdbStub],
) -> None:
    _, client = scripted
    assert list(client.registers) == list(NAMES)


def test_pipelined_requests_get_their_replies_in_order(scripted: tuple[ScriptedStub, GdbStub]) -> None:
    stub, client = scripted
    stub.answers = {b"p0": b"00", b"p1": b"11"}
    assert client.request(b"p0", b"p1", b"Z1,0,1") == [b"00", b"11", b"OK"]


def test_nothing_follows_a_continue(scripted: tuple[ScriptedStub, GdbStub]) -> None:
    stub, client = scripted
    stub.answers = {b"c": b"T05watch:1000;"}
    client.resume((b"Z1,0,1",))
    assert client.wait_stop(Deadline(5)) == StopReply(5, 0x1000)
    assert stub.seen[-2:] == [b"Z1,0,1", b"c"]


@pytest.mark.parametrize(("prefix", "kind"), [(b"", 2), (b"r", 3), (b"a", 4)])
def test_a_stop_names_the_kind_of_watchpoint(scripted: tuple[ScriptedStub, GdbStub], prefix: bytes, kind: int) -> None:
    stub, client = scripted
    stub.answers = {b"c": b"T05thread:01;%bwatch:2000;" % prefix}
    client.resume()
    assert client.wait_stop(Deadline(5)) == StopReply(5, 0x2000, kind=kind)


def test_a_packet_to_a_running_guest_is_refused(scripted: tuple[ScriptedStub, GdbStub]) -> None:
    stub, client = scripted
    stub.answers = {b"c": None}
    client.resume()
    with pytest.raises(MachineError, match="running guest"):
        client.request(b"g")


def test_a_silent_stub_meets_the_deadline(scripted: tuple[ScriptedStub, GdbStub]) -> None:
    stub, client = scripted
    stub.answers = {b"c": None}
    client.resume()
    with pytest.raises(DeadlineExceeded):
        client.wait_stop(Deadline(0.05))
    assert client.running


def test_an_exit_is_told_from_a_stop(scripted: tuple[ScriptedStub, GdbStub]) -> None:
    stub, client = scripted
    stub.answers = {b"c": b"W21"}
    client.resume()
    assert client.wait_stop(Deadline(5)) == StopReply(0, exited=True, status=0x21)


def test_a_stub_that_closes_is_its_own_error(scripted: tuple[ScriptedStub, GdbStub]) -> None:
    stub, client = scripted
    stub.answers = {b"g": b"close"}
    with pytest.raises(StubClosed):
        client.request(b"g")


def test_registers_come_in_the_description_s_order(scripted: tuple[ScriptedStub, GdbStub]) -> None:
    _, client = scripted
    sizes = [register.size for register in client.registers.values()]
    data = b"".join((i + 1).to_bytes(size, "little") for i, size in enumerate(sizes))
    assert list(client.parse_registers(data.hex().encode()).values()) == list(range(1, len(NAMES) + 1))


def test_an_error_answer_names_the_packet(scripted: tuple[ScriptedStub, GdbStub]) -> None:
    stub, client = scripted
    stub.answers = {b"Z2,0,1000": b"E22"}
    with pytest.raises(MachineError, match=r"E22.*Z2,0,1000"):
        client.checked(b"Z2,0,1000")


def test_no_listener_meets_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        GdbStub(tmp_path / "nobody", Deadline(0.05))
