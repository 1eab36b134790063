"""Each packet's reply, asked for by a client that may send anything."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.debug.description import slots
from harness.debug.hmp import REFUSED
from harness.debug.proxy import Resume, StopReason
from harness.debug.rsp import PACKET_BYTES, escape, unescape
from harness.intercept.points import Point, PointKind
from tests.debug.fake_guest import CODE, DATA, DOCUMENTS, LAYOUT, FakeGuest, FakeRun
from tests.debug.raw_gdb import RawGdb

GDB13 = b"qSupported:multiprocess+;swbreak+;hwbreak+;qRelocInsn+;fork-events+;xmlRegisters=i386"
NOPS = b"\x90" * 16 + b"\xf4"  # and a HLT

UNKNOWN = """
vMustReplyEmpty qTStatus qOffsets vFile:setfs:0 ! R00 qXfer:memory-map:read::0,10 qXfer:features:write:target.xml:0:x
qXfer Z5,0,1 Z9,0,1 qCRC:0,1 QNonStop:1 q v
"""
SENSELESS = """
m m0 m, mzz,1 m0,zz m0,0 m-1,1 m11111111111111111,1 m0,1,2 m0x1,1
M200000,1 M200000,1: M200000,1:0 M200000,1:zz M200000,2:00 M200000,0:00 M:00
X200000,1 X200000,2:a X200000,ffffffffffffffff:a X200000,zz:a
p pzz p42 pffffffff p-1 P0 P0= P0=00 P0=0000000000000000ff P0=zz P42=00
G G00 Gzz
Z0 Z0, Z0,zz,1 Z2,0,0 Z2,ffffffffffffffff,2 Z3,1,10000000000000000 z2,0,0 Z0,0,1;X1,0
qXfer:features:read:target.xml:zz qXfer:features:read:target.xml:0 qRcmd,zz qRcmd,6
vCont vCont; vCont;t vCont;c:2 vCont;s:p1.1 czz s11111111111111111 C05;zz
"""


@pytest.fixture
def guest() -> FakeGuest:
    one = FakeGuest()
    one.write_memory(CODE, NOPS)
    return one


@pytest.fixture
def run(guest: FakeGuest, tmp_path: Path) -> Iterator[FakeRun]:
    one = FakeRun(guest, tmp_path / "gdb")
    one.start()
    yield one
    one.close()


@pytest.fixture
def client(run: FakeRun) -> Iterator[RawGdb]:
    one = RawGdb(run.server.path)
    yield one
    one.close()


def test_what_is_supported_is_said(client: RawGdb) -> None:
    assert client.ask(b"qSupported:multiprocess+;swbreak+") == (
        b"PacketSize=1000;QStartNoAckMode+;qXfer:features:read+;vContSupported+;swbreak+"
    )
    assert client.ask(b"qSupported").endswith(b"vContSupported+")
    assert client.ask(GDB13).endswith(b";swbreak+;hwbreak+")


@pytest.mark.parametrize(
    ("packet", "reply"),
    [
        (b"?", b"T05thread:1;"),
        (b"qC", b"QC1"),
        (b"qfThreadInfo", b"m1"),
        (b"qsThreadInfo", b"l"),
        (b"qThreadExtraInfo,1", b"vCPU 0".hex().encode()),
        (b"qThreadExtraInfo,2", b"E22"),
        (b"T1", b"OK"),
        (b"T2", b"E22"),
        (b"Hg0", b"OK"),
        (b"Hg1", b"OK"),
        (b"Hc-1", b"OK"),
        (b"Hg2", b"E22"),
        (b"Hx1", b"E22"),
        (b"H", b"E22"),
        (b"qAttached", b"1"),
        (b"qAttached:1", b"1"),
        (b"qSymbol::", b"OK"),
        (b"vCont?", b"vCont;c;C;s;S"),
        (b"QStartNoAckMode", b"OK"),
    ],
)
def test_what_does_not_depend_on_the_guest(client: RawGdb, packet: bytes, reply: bytes) -> None:
    assert client.ask(packet) == reply


@pytest.mark.parametrize("packet", [b"", b"\xff\x00", b"a" * 9000, *UNKNOWN.encode().split()])
def test_what_is_unknown_gets_the_empty_reply(client: RawGdb, packet: bytes) -> None:
    assert client.ask(packet) == b""


@pytest.mark.parametrize("packet", [b"m 1,1", b"G" + b"0" * 1218, *SENSELESS.encode().split()])
def test_a_packet_that_makes_no_sense_is_an_error(client: RawGdb, guest: FakeGuest, packet: bytes) -> None:
    before = guest.read_registers(), guest.read_memory(CODE, 4096), guest.read_memory(DATA, 4096)
    assert client.ask(packet) == b"E22"
    assert client.ask(b"?") == b"T05thread:1;"
    assert before == (guest.read_registers(), guest.read_memory(CODE, 4096), guest.read_memory(DATA, 4096))
    assert len(guest.points) == 0


# ---- the target description


def test_the_description_comes_in_portions_as_it_is(client: RawGdb) -> None:
    assert client.ask(b"qXfer:features:read:nothing.xml:0,100") == b"E00"
    for annex, document in DOCUMENTS.items():
        for length in (b"10", b"ffb", b"ffffffffffffffff"):
            got, more = b"", True
            while more:
                reply = client.ask(b"qXfer:features:read:%b:%x,%b" % (annex.encode(), len(got), length))
                assert len(reply) <= PACKET_BYTES
                got += unescape(reply[1:])
                more = {b"m": True, b"l": False}[reply[:1]]
            assert got == document
        assert client.ask(b"qXfer:features:read:%b:fffff,10" % annex.encode()) == b"l"


# ---- registers


def test_all_registers_and_each_one(client: RawGdb, guest: FakeGuest) -> None:
    for value, (name, bits, _) in enumerate(LAYOUT):
        guest.registers[name] = value * 0x01010101 & ((1 << bits) - 1)
    whole = client.ask(b"g")
    assert bytes.fromhex(whole.decode()) == guest.read_registers()
    assert b"".join(client.ask(b"p%x" % number) for number in range(len(LAYOUT))) == whole


def test_one_register_is_written(client: RawGdb, guest: FakeGuest) -> None:
    assert client.ask(b"P10=8877665544332211") == b"OK"
    assert guest.registers["rip"] == 0x1122334455667788
    assert client.ask(b"P11=46020000") == b"OK"
    assert guest.registers["eflags"] == 0x246


def test_G_writes_what_is_different(client: RawGdb, guest: FakeGuest) -> None:
    guest.refused = {number: "not this one" for number in range(len(LAYOUT)) if number != 3}
    wanted = bytearray(guest.read_registers())
    wanted[24:32] = (0x42).to_bytes(8, "little")
    assert client.ask(b"G" + wanted.hex().encode()) == b"OK"
    assert guest.registers["rdx"] == 0x42
    wanted[0] ^= 1
    assert client.ask(b"G" + wanted.hex().encode()) == b"E01"


def test_a_refusal_is_in_words_where_the_client_shows_them(client: RawGdb, guest: FakeGuest) -> None:
    guest.refused = {29: "CR3 0x1:\n#GP $5 *bits* {beyond} – 52"}
    assert client.ask(b"P1d=0100000000000000") == b"E01"
    assert client.ask(b"m999000,4") == b"E14"
    client.ask(GDB13)
    assert client.ask(b"P1d=0100000000000000") == b"E.CR3 0x1: GP 5 bits {beyond ? 52"
    assert client.ask(b"m999000,4") == b"E14"  # gdb 13 takes the text for data
    client.ask(b"qSupported:error-message+")
    assert client.ask(b"m999000,4") == b"E.0x999000 is not mapped"


# ---- memory


def test_memory_is_read_as_far_as_it_goes(client: RawGdb, guest: FakeGuest) -> None:
    guest.write_memory(DATA + 0xFFE, b"\xab\xcd")
    assert client.ask(b"m%x,1" % CODE) == b"90"
    assert client.ask(b"m%x,10" % (DATA + 0xFFE)) == b"abcd"
    assert client.ask(b"m%x,4" % (DATA + 0x1000)) == b"E14"
    assert len(client.ask(b"m%x,ffffffffffffffff" % DATA)) == PACKET_BYTES


def test_memory_is_written_in_both_forms(client: RawGdb, guest: FakeGuest) -> None:
    assert client.ask(b"M200010,3:0102Ff") == b"OK"
    assert guest.read_memory(0x200010, 3) == b"\x01\x02\xff"
    data = b"}#$*\x03:,\x00"
    assert client.ask(b"X200020,8:" + escape(data)) == b"OK"
    assert guest.read_memory(0x200020, 8) == data
    assert client.ask(b"X200000,0:") == b"OK"
    assert client.ask(b"X999000,0:") == b"OK"
    assert client.ask(b"M999000,1:00") == b"E14"
    assert client.ask(b"M200fff,2:0000") == b"E14"


# ---- points


@pytest.mark.parametrize("kind", list(PointKind))
def test_a_point_is_set_once_and_taken_away_once(client: RawGdb, guest: FakeGuest, kind: PointKind) -> None:
    for _ in range(2):
        assert client.ask(b"Z%d,100003,4" % kind) == b"OK"
        assert list(guest.points) == [Point(kind, 0x100003, 4)]
    assert client.ask(b"z%d,100003,2" % kind) == b"OK"  # never set
    assert len(guest.points) == 1
    for _ in range(2):
        assert client.ask(b"z%d,100003,4" % kind) == b"OK"
        assert len(guest.points) == 0


@pytest.mark.parametrize(
    ("point", "told"),
    [
        (Point(PointKind.SOFTWARE, 0x100003, 1), b"swbreak:;"),
        (Point(PointKind.HARDWARE, 0x100003, 1), b"hwbreak:;"),
        (Point(PointKind.WRITE, DATA, 4), b"watch:200000;"),
        (Point(PointKind.ACCESS, DATA + 2, 1), b"awatch:200002;"),
        (Point(PointKind.READ, DATA, 8), b"rwatch:200000;"),
    ],
)
def test_the_stop_names_the_point(client: RawGdb, guest: FakeGuest, point: Point, told: bytes) -> None:
    guest.write_memory(CODE + 3, b"\x8b\x0b" if point.kind is PointKind.READ else b"\x89\x03")
    client.ask(GDB13)
    assert client.ask(point.packet()) == b"OK"
    assert client.ask(b"c") == b"T05thread:1;" + told
    assert client.ask(b"?") == b"T05thread:1;" + told


def test_a_client_that_does_not_know_swbreak_is_not_told_it(client: RawGdb) -> None:
    assert client.ask(b"Z0,100003,1") == b"OK"
    assert client.ask(b"c") == b"T05thread:1;"


# ---- the guest goes on


@pytest.mark.parametrize("packet", [b"s", b"S05", b"vCont;s", b"vCont;s:1", b"vCont;S05:1;c", b"vCont;c:2;s:-1"])
def test_a_step_is_of_one_instruction(client: RawGdb, guest: FakeGuest, packet: bytes) -> None:
    assert client.ask(packet) == b"T05thread:1;"
    assert guest.registers["rip"] == CODE + 1


@pytest.mark.parametrize(
    "packet", [b"c", b"C05", b"vCont;c", b"vCont;c:1", b"vCont;C05:-1", b"vCont;s:2;c", b"c100002"]
)
def test_continuing_goes_to_the_point(client: RawGdb, guest: FakeGuest, packet: bytes) -> None:
    client.ask(b"Z1,100005,1")
    assert client.ask(packet) == b"T05thread:1;"
    assert guest.registers["rip"] == CODE + 5


@pytest.mark.parametrize("packet", [b"s100008", b"S05;100008"])
def test_an_address_to_go_on_from(client: RawGdb, guest: FakeGuest, packet: bytes) -> None:
    assert client.ask(packet) == b"T05thread:1;"
    assert guest.registers["rip"] == CODE + 9


def test_an_address_that_is_refused_lets_nothing_run(client: RawGdb, guest: FakeGuest, run: FakeRun) -> None:
    guest.refused = {16: "RIP stays"}
    client.ask(GDB13)
    assert client.ask(b"c100008") == b"E.RIP stays"
    assert run.ways == []


def test_ctrl_c_stops_the_guest_even_in_the_same_breath(client: RawGdb, guest: FakeGuest) -> None:
    guest.write_memory(CODE, b"\xeb\xfe")
    client.send(b"$c#63\x03")
    assert client.receive() == b"T02thread:1;"
    client.send(b"\x03")  # the guest stands already
    assert client.ask(b"?") == b"T02thread:1;"


def test_the_end_of_the_guest_ends_the_connection(client: RawGdb, guest: FakeGuest, run: FakeRun) -> None:
    guest.registers["rax"] = 7
    assert client.ask(b"c") == b"O" + b"the guest has ended: verdict pass\n".hex().encode()
    assert client.receive() == b"W07"
    assert client.ended()
    run.wait()


@pytest.mark.parametrize(
    ("packet", "way", "reply"),
    [
        (b"D", Resume.DETACH, b"OK"),
        (b"D;1", Resume.DETACH, b"OK"),
        (b"vKill;1", Resume.KILL, b"OK"),
        (b"k", Resume.KILL, b""),
    ],
)
def test_leaving_takes_the_points_away(
    client: RawGdb, guest: FakeGuest, run: FakeRun, packet: bytes, way: Resume, reply: bytes
) -> None:
    client.ask(b"Z0,100003,1")
    client.ask(b"Z2,200000,4")
    if reply:
        assert client.ask(packet) == reply
    else:
        client.send(b"$k#6b")
        client.sign()
    run.wait()
    assert run.ways == [way]
    assert len(guest.points) == 0
    assert client.ended()


def test_a_client_that_vanishes_takes_its_points_along(client: RawGdb, guest: FakeGuest, run: FakeRun) -> None:
    client.ask(b"Z0,100003,1")
    client.close()
    run.wait()
    assert run.ways == [Resume.GONE]
    assert len(guest.points) == 0


def test_what_one_client_knows_is_nothing_to_the_next(client: RawGdb, guest: FakeGuest, run: FakeRun) -> None:
    guest.write_memory(CODE, b"\xeb\xfe")
    client.ask(GDB13)
    client.close()
    second = RawGdb(run.server.path)
    guest.refused = {0: "no"}
    assert second.ask(b"P0=0000000000000000") == b"E01"
    second.close()


# ---- a machine that is lost


def test_a_lost_machine_ends_the_serving(client: RawGdb, guest: FakeGuest, run: FakeRun) -> None:
    client.ask(b"Z0,100003,1")
    guest.broken = run.alive = True
    assert client.ask(b"g") == b"E01"
    run.alive = False
    run.wait()
    assert run.ways == [Resume.GONE]
    assert client.ended()


def test_serving_without_a_client_ends_when_nobody_is_to_be_waited_for(run: FakeRun) -> None:
    begin = time.monotonic()
    run.alive = False
    run.wait()
    assert run.ways == [Resume.GONE]
    assert time.monotonic() - begin < 2


# ---- monitor


def _monitor(client: RawGdb, line: str) -> str:
    reply, shown = client.ask(b"qRcmd," + line.encode().hex().encode()), b""
    while reply != b"OK":
        assert reply[:1] == b"O"
        shown += bytes.fromhex(reply[1:].decode())
        reply = client.receive()
    return shown.decode()


def test_monitor_lines_go_where_they_belong(client: RawGdb) -> None:
    assert _monitor(client, "") == "at the entry\n"
    assert _monitor(client, "") == "at the entry\n"
    assert _monitor(client, " xi  help ") == "walk VA\n"
    assert _monitor(client, "xi") == "xi knows no command ''\n"
    assert _monitor(client, "xifoo") == "QEMU ran: xifoo\n"
    assert _monitor(client, "info mem") == "QEMU ran: info mem\n"


@pytest.mark.parametrize("word", [*REFUSED, "migrate_set_parameter", "snapshot_blkdev"])
def test_what_would_pull_the_machine_away_is_refused_with_what_to_do(client: RawGdb, word: str) -> None:
    _monitor(client, "")
    assert re.fullmatch(rf"`{word}` is not passed on to QEMU: .{{20,}}\n", _monitor(client, f"{word} now"))


def test_text_for_which_gdb_had_no_ear_comes_with_the_next_command(client: RawGdb, run: FakeRun) -> None:
    _monitor(client, "")
    run.proxy.say("the pool is full")
    assert _monitor(client, "xi help") == "the pool is full\nwalk VA\n"
    assert _monitor(client, "xi help") == "walk VA\n"


def test_a_mistake_of_ours_is_an_error_and_is_shown(
    client: RawGdb, guest: FakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    _monitor(client, "")
    monkeypatch.setattr(guest, "read_memory", lambda va, count: {}[va])
    assert client.ask(b"m0,1") == b"E01"
    assert "KeyError" in _monitor(client, "xi help")


# ---- anything at all


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.sampled_from(
        ["m", "M", "X", "p", "P", "G", "Z0", "z3", "H", "T", "?", "q", "Q", "v", "qXfer:features:read:", "qRcmd,", "!"]
    )
    .map(str.encode)
    .flatmap(lambda name: st.binary(max_size=30).map(lambda rest: name + rest))
    .filter(lambda payload: not payload.startswith((b"vCont", b"vKill")))
)
def test_whatever_is_asked_gets_one_reply(client: RawGdb, payload: bytes) -> None:
    reply = client.ask(escape(payload))
    while reply[:1] == b"O" and reply != b"OK":
        reply = client.receive()
    assert client.ask(b"qC") == b"QC1"


def test_the_toy_has_the_layout_of_its_description() -> None:
    assert [(slot.name, 8 * slot.size) for slot in slots(DOCUMENTS)] == [(name, bits) for name, bits, _ in LAYOUT]
    assert StopReason().point is None
