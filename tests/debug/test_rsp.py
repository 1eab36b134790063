"""The server's end of the remote protocol: frames, acknowledgements, signals, connections that come and go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.debug import rsp
from harness.debug.rsp import FRAME_BYTES, Framing, GdbServer, Mark, Signal, escape, unescape
from harness.machine.gdbstub import packet
from tests.debug.raw_gdb import RawGdb


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GdbServer]:
    one = GdbServer(tmp_path / "gdb")
    yield one
    one.close()


@pytest.fixture
def client(server: GdbServer) -> Iterator[RawGdb]:
    one = RawGdb(server.path)
    assert server.next(5) is Signal.CONNECTED
    yield one
    one.close()


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.005)


# ---- framing


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30)))
def test_packets_are_the_same_however_they_are_fragmented(payloads: list[bytes], cuts: list[int]) -> None:
    data = b"".join(packet(escape(payload)) for payload in payloads)
    framing, found = Framing(), []
    for cut in cuts:
        found += list(framing.feed(data[:cut]))
        data = data[cut:]
    found += list(framing.feed(data))
    assert found == payloads


@given(st.binary())
def test_no_bytes_upset_the_framing(data: bytes) -> None:
    framing = Framing()
    list(framing.feed(data))
    assert list(framing.feed(b"####" + packet(b"g")))[-1:] == [b"g"]


@given(st.binary())
def test_escapes_come_undone(data: bytes) -> None:
    assert unescape(escape(data)) == data
    assert not set(escape(data)) & set(b"#$*")


def test_ctrl_c_is_one_between_packets_and_data_within() -> None:
    assert list(Framing().feed(b"\x03" + packet(b"X1,1:\x03") + b"\x03")) == [
        Mark.INTERRUPT,
        b"X1,1:\x03",
        Mark.INTERRUPT,
    ]


def test_a_packet_that_was_cut_off_is_forgotten_once_another_begins() -> None:
    assert list(Framing().feed(b"$m10" + packet(b"g"))) == [b"g"]


def test_an_overlong_packet_is_marked_and_the_next_one_is_whole() -> None:
    framing = Framing()
    found = []
    for _ in range(10):
        found += list(framing.feed(b"$" + b"a" * FRAME_BYTES))
    found += list(framing.feed(b"#00" + packet(b"g")))
    assert found == [Mark.OVERLONG, b"g"]


@pytest.mark.parametrize("digits", [b"00", b"zz", b"-1", b" 1"])
def test_a_wrong_checksum_is_marked(digits: bytes) -> None:
    assert list(Framing().feed(b"$g#" + digits)) == [Mark.BAD]


# ---- acknowledgements


def test_a_good_packet_is_acknowledged_and_a_bad_one_is_asked_for_again(server: GdbServer, client: RawGdb) -> None:
    client.send(b"$g#00")
    assert client.sign() == b"-"
    client.send(packet(b"g"))
    assert client.sign() == b"+"
    assert server.next(5) == b"g"
    assert server.next(0) is None


def test_a_reply_is_sent_again_until_it_is_acknowledged(server: GdbServer, client: RawGdb) -> None:
    client.send(packet(b"g"))
    assert server.next(5) == b"g"
    server.reply(b"1234")
    assert client.receive() == b"1234"
    client.send(b"-")
    assert client.receive() == b"1234"
    client.send(b"+-")
    assert client.silent()


def test_an_impatient_client_does_not_get_the_last_reply_for_its_next_question(
    server: GdbServer, client: RawGdb
) -> None:
    client.send(packet(b"g"))
    assert server.next(5) == b"g"
    server.reply(b"1234")
    assert client.receive() == b"1234"
    client.send(packet(b"m0,1") + b"-")
    assert client.sign() == b"+"
    assert server.next(5) == b"m0,1"
    assert client.silent()


def test_without_acknowledgements_none_is_sent(server: GdbServer, client: RawGdb) -> None:
    client.send(packet(b"QStartNoAckMode"))
    assert server.next(0.2) is None  # it is no packet for the proxy
    assert client.receive() == b"OK"
    client.send(b"+" + packet(b"g"))
    assert server.next(5) == b"g"
    server.reply(b"1234")
    assert client.receive() == b"1234"
    assert client.signs == b"+"  # that of QStartNoAckMode itself
    client.send(b"-" + b"$g#00")
    assert client.silent()


def test_the_next_connection_begins_with_acknowledgements(server: GdbServer, client: RawGdb) -> None:
    client.send(packet(b"QStartNoAckMode"))
    assert server.next(0.2) is None
    client.close()
    assert server.next(5) is Signal.GONE
    second = RawGdb(server.path)
    second.send(packet(b"g"))
    assert second.sign() == b"+"
    second.close()


# ---- the queue


def test_ctrl_c_is_a_signal_in_its_place(server: GdbServer, client: RawGdb) -> None:
    client.send(packet(b"c") + b"\x03" + packet(b"g"))
    assert [server.next(5) for _ in range(3)] == [b"c", Signal.INTERRUPT, b"g"]


def test_wanted_says_whether_something_waits(server: GdbServer, client: RawGdb) -> None:
    assert not server.wanted
    client.send(b"\x03")
    eventually(lambda: server.wanted)
    assert server.next(5) is Signal.INTERRUPT
    assert not server.wanted


def test_somebody_is_called_until_somebody_comes(server: GdbServer, client: RawGdb) -> None:
    calls: list[str] = []
    server.on_wanted = lambda: calls.append(threading.current_thread().name)
    client.send(b"\x03")
    eventually(lambda: len(calls) >= 2)
    assert set(calls) == {"gdb server"}
    server.attending = True
    assert server.next(5) is Signal.INTERRUPT
    before = len(calls)
    client.send(b"\x03")
    eventually(lambda: server.wanted)
    time.sleep(2 * rsp.NUDGE_SECONDS)
    assert len(calls) <= before + 1  # one may have been on its way
    server.attending = False
    eventually(lambda: len(calls) > before + 1)


def test_next_comes_back_in_time(server: GdbServer) -> None:
    begin = time.monotonic()
    assert server.next(0.1) is None
    assert 0.1 <= time.monotonic() - begin < 2


# ---- connections


def test_a_client_that_goes_away_is_a_signal(server: GdbServer, client: RawGdb) -> None:
    client.send(packet(b"g"))
    client.close()
    assert server.next(5) == b"g"
    assert server.next(5) is Signal.GONE
    server.reply(b"nobody hears it")
    server.console("nor this")
    assert not server.connected


def test_a_second_client_is_told_and_turned_away(server: GdbServer, client: RawGdb) -> None:
    second = RawGdb(server.path)
    assert second.ask(b"qSupported") == b"E.another gdb is attached to this run"
    assert second.ended()
    second.close()
    client.send(packet(b"g"))
    assert server.next(5) == b"g"


def test_the_next_client_gets_none_of_the_replies_to_the_one_before(server: GdbServer, client: RawGdb) -> None:
    client.send(packet(b"g"))
    eventually(lambda: server.wanted)
    client.close()
    eventually(lambda: not server.connected)
    second = RawGdb(server.path)
    eventually(lambda: server.connected)
    assert server.next(5) == b"g"
    server.reply(b"1234")
    assert second.silent()
    assert server.next(5) is Signal.GONE
    assert server.next(5) is Signal.CONNECTED
    second.send(packet(b"m0,1"))
    assert server.next(5) == b"m0,1"
    server.reply(b"55")
    assert second.receive() == b"55"
    second.close()


def test_who_is_hung_up_gets_the_last_reply_and_is_not_heard_of_again(server: GdbServer, client: RawGdb) -> None:
    client.send(packet(b"D"))
    assert server.next(5) == b"D"
    client.send(packet(b"g") + b"\x03")
    eventually(lambda: server.wanted)
    server.reply(b"OK")
    server.hang_up()
    assert not server.connected
    assert not server.wanted
    assert client.receive() == b"OK"
    assert client.ended()
    client.send(packet(b"g"))
    client.close()
    assert server.next(0.3) is None
    second = RawGdb(server.path)
    assert server.next(5) is Signal.CONNECTED
    second.close()


def test_a_client_that_reads_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsp, "SEND_SECONDS", 0.2)
    server = GdbServer(tmp_path / "gdb")
    client = RawGdb(server.path)
    client.send(packet(b"g"))
    assert server.next(5) is Signal.CONNECTED
    assert server.next(5) == b"g"
    begin = time.monotonic()
    while server.connected:
        server.reply(b"a" * 3000)
    assert time.monotonic() - begin < 5
    assert server.next(5) is Signal.GONE
    client.close()
    server.close()


def test_long_text_is_cut_into_packets_that_gdb_takes(server: GdbServer, client: RawGdb) -> None:
    client.send(packet(b"qRcmd,"))
    assert server.next(5) == b"qRcmd,"
    text = "𝄞ö\n" * 2000
    server.console(text)
    server.console("\x1b[2J")
    shown = b""
    while not shown.endswith(b"[2J"):
        part = client.receive()
        assert part[:1] == b"O"
        assert len(part) <= rsp.PACKET_BYTES
        bytes.fromhex(part[1:].decode()).decode()  # no character is cut
        shown += bytes.fromhex(part[1:].decode())
    assert shown.decode() == text + "\\x1b[2J"


def test_closing_ends_connections_waits_and_the_socket(server: GdbServer, client: RawGdb) -> None:
    waiter = threading.Thread(target=server.next, args=(30,))
    waiter.start()
    server.close()
    server.close()
    waiter.join(5)
    assert not waiter.is_alive()
    assert client.ended()
    assert not server.path.exists()
    server.reply(b"nobody")


def test_a_path_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        GdbServer(tmp_path / "nowhere" / "gdb")
