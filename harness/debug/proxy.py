"""The stub that gdb talks to: each packet of the remote protocol, answered from a guest that stands.

gdb never reaches QEMU's own stub, which the harness needs for itself: what gdb asks is answered here, and its points
are set through the interception, so that the harness's own stops stay out of sight. Protocol: the GDB manual, appendix
"GDB Remote Serial Protocol"; where it leaves a choice, the answers are those of QEMU's stub. What gdb does with them
was seen with gdb 13.
"""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final, Protocol

from harness.debug.debuggee import Debuggee, Refused
from harness.debug.description import Slot, slots
from harness.debug.hmp import refused_because
from harness.debug.rsp import PACKET_BYTES, GdbServer, Signal, escape
from harness.debug.scene import CommandError
from harness.intercept.points import Point, PointKind
from harness.machine.errors import MachineError
from harness.report.text import one_line

STOPPED: Final = 0  # gdb says "Program stopped.": neither a signal nor a point of gdb's, whatever it was doing
INTERRUPTED: Final = 2
TRAPPED: Final = 5
LOOK_SECONDS: Final = 0.2  # between two looks whether the guest is there still

OK: Final = b"OK"
UNKNOWN: Final = b""
BAD_PACKET: Final = b"E22"  # EINVAL
BAD_ADDRESS: Final = b"E14"  # EFAULT
FAILED: Final = b"E01"

_ERRORS_SHOWN: Final = frozenset((b"g", b"G", b"p", b"P", b"c", b"s", b"C", b"S", b"vCont"))

THREAD: Final = b"1"  # the only one: the vCPU
_ANY_THREAD: Final = frozenset((b"-1", b"0", THREAD))
_NAME: Final = re.compile(rb"[qQv][A-Za-z.]+\??|.", re.DOTALL)
_MONITOR_HELP: Final = "`monitor xi help` lists the commands; any other is one of QEMU's monitor."
_WATCHED: Final = {PointKind.WRITE: b"watch", PointKind.READ: b"rwatch", PointKind.ACCESS: b"awatch"}
_BROKEN: Final = {PointKind.SOFTWARE: b"swbreak", PointKind.HARDWARE: b"hwbreak"}


class Resume(Enum):
    """How gdb leaves the guest that stood."""

    CONTINUE = "continue"
    STEP = "step"  # by one instruction
    DETACH = "detach"  # gdb has taken its leave: the guest runs on without it
    KILL = "kill"
    GONE = "gone"  # gdb has vanished, or the guest has


@dataclass(frozen=True, slots=True)
class StopReason:
    """Why the guest stands. signal: TRAPPED for a step or a point, INTERRUPTED for Ctrl-C, STOPPED for a stop that gdb
    did not ask for. point: gdb's, if that was it. text: for the user, of any number of lines."""

    signal: int = TRAPPED
    point: Point | None = None
    text: str = ""


class PointSetter(Protocol):
    """What the proxy needs of an `harness.intercept.interception.Interception`."""

    def set_point(self, point: Point) -> None: ...

    def clear_point(self, point: Point) -> None: ...


class _BadPacket(Exception):
    """A packet that says nothing sensible."""


class Proxy:
    """Serves one gdb after another at the stops of one guest.

    command: a line behind ``monitor xi`` -> what it shows; it raises CommandError. hmp: a command of QEMU's monitor ->
    its output.
    """

    def __init__(
        self,
        server: GdbServer,
        debuggee: Debuggee,
        interception: PointSetter,
        command: Callable[[str], str],
        hmp: Callable[[str], str],
    ) -> None:
        self._server = server
        self._debuggee = debuggee
        self._interception = interception
        self._command = command
        self._hmp = hmp
        self._slots = {slot.number: slot for slot in slots(debuggee.documents)}
        self._points: dict[Point, None] = {}  # that gdb has set, in its order
        self._reason = StopReason()
        self._waiting = False  # gdb has let the guest run and waits for the stop
        self._features: frozenset[bytes] = frozenset()  # that gdb says it has
        self._unsaid = ""  # text for which gdb had no ear yet
        self._alive: Callable[[], bool] = lambda: True

    # ---- what a debugging session calls

    @property
    def waiting(self) -> bool:
        """Whether gdb has let the guest run, so that it can be told something."""
        return self._waiting and self._server.connected

    def serve(self, reason: StopReason, alive: Callable[[], bool]) -> Resume:
        """Tells gdb of the stop, if it waits for one, and answers its packets until it lets the guest go on.

        Without a gdb it waits for one. alive: asked every LOOK_SECONDS while gdb is silent; False, because the guest
        has ended or nobody is to be waited for any longer, ends it with GONE.
        """
        self._reason, self._alive = reason, alive
        self._server.attending = True
        try:
            self.say(reason.text)
            if self._waiting:
                self._waiting = False
                self._server.reply(self._stop_reply())
            while True:
                item = self._server.next(LOOK_SECONDS)
                if item is None:
                    resume = None if alive() else Resume.GONE
                elif isinstance(item, bytes):
                    resume = self._answer(item)
                else:
                    resume = self._signalled(item)
                if resume is not None:
                    return resume
        finally:
            self._server.attending = False

    def say(self, text: str) -> None:
        """Shows `text` on gdb's console; now if gdb waits for a stop, otherwise with its next `monitor` command."""
        if not text:
            return
        text = text if text.endswith("\n") else text + "\n"
        if self._waiting:
            self._server.console(text)
        else:
            self._unsaid += text

    def exited(self, status: int, text: str) -> None:
        """The guest has ended by itself, with exit `status`."""
        self._end(b"W%02x" % (status & 0xFF), text)

    def lost(self, text: str) -> None:
        """The guest has been lost: QEMU was killed, or the harness ends."""
        self._end(b"X09", text)

    def _end(self, reply: bytes, text: str) -> None:
        # A gdb at its prompt cannot be told: it sees with its next command that the connection has ended.
        self._points.clear()
        if self._waiting:
            self.say(text)
            self._waiting = False
            self._server.reply(reply)
        self._server.hang_up()

    # ---- gdb comes and goes

    def _signalled(self, signal: Signal) -> Resume | None:
        if signal is Signal.CONNECTED:
            self._features = frozenset()
            return None
        if signal is Signal.GONE:
            self._forget()
            return Resume.GONE
        return None  # Ctrl-C of a guest that stands: gdb pressed it as the guest stopped

    def _forget(self) -> None:
        """gdb leaves: nothing of it stays in the guest."""
        self._waiting = False
        points, self._points = self._points, {}
        for point in points:
            with contextlib.suppress(MachineError):  # QEMU has ended: so have they
                self._interception.clear_point(point)

    # ---- packets

    def _answer(self, payload: bytes) -> Resume | None:
        """Replies to one packet; what is to become of the guest, if it was about that."""
        name = _NAME.match(payload)
        handler = self._HANDLERS.get(name[0]) if name else None
        if name is None or handler is None:
            self._server.reply(UNKNOWN)
            return None
        reply: bytes | Resume
        try:
            reply = handler(self, payload[name.end() :])
        except _BadPacket:
            reply = BAD_PACKET
        except Refused as error:
            reply = self._error(str(error), FAILED, name[0])
        except MachineError as error:
            self._server.reply(self._error(str(error), FAILED, name[0]))
            return None if self._alive() else Resume.GONE
        except Exception as error:  # a mistake of ours must not take the user's session away
            self._unsaid += f"The harness has made a mistake; please report it.\n{traceback.format_exc()}"
            reply = self._error(f"the harness has made a mistake: {error!r}", FAILED, name[0])
        if isinstance(reply, Resume):
            return reply
        self._server.reply(reply)
        return None

    def _error(self, text: str, code: bytes, name: bytes) -> bytes:
        """The reply to packet `name`, which failed: in words where gdb shows them, `code` otherwise."""
        # Before gdb 14 some replies show them (and no other client announces qRelocInsn), while that to `m` must not
        # have any.
        shown = b"qRelocInsn+" in self._features and name in _ERRORS_SHOWN
        if not shown and b"error-message+" not in self._features:
            return code
        # An error is not binary data: nothing in it may need an escape.
        plain = one_line(text).translate(str.maketrans("", "", "#$}*"))
        return b"E." + plain.encode("ascii", "replace")

    def _supported(self, arguments: bytes) -> bytes:
        self._features = frozenset(arguments.lstrip(b":").split(b";"))
        ours = b"PacketSize=%x;QStartNoAckMode+;qXfer:features:read+;vContSupported+" % PACKET_BYTES
        return ours + b"".join(b";%b+" % name for name in _BROKEN.values() if name + b"+" in self._features)

    def _transfer(self, arguments: bytes) -> bytes:
        match arguments.split(b":"):
            case [b"", b"features", b"read", annex, place]:
                document = self._debuggee.documents.get(annex.decode("ascii", "replace"))
                offset, length = _numbers(place)
                if document is None:
                    return b"E00"
                # Half a packet, since each byte may take two.
                part = document[offset : offset + min(length, PACKET_BYTES // 2 - 4)]
                return (b"m" if offset + len(part) < len(document) else b"l") + escape(part)
        return UNKNOWN

    def _attached(self, _: bytes) -> bytes:
        return b"1"  # the guest was there before: a gdb that quits detaches from it

    def _symbols(self, _: bytes) -> bytes:
        return OK  # none is wanted

    # ---- threads: the one vCPU

    def _first_threads(self, _: bytes) -> bytes:
        return b"m" + THREAD

    def _more_threads(self, _: bytes) -> bytes:
        return b"l"

    def _current_thread(self, _: bytes) -> bytes:
        return b"QC" + THREAD

    def _thread_info(self, arguments: bytes) -> bytes:
        return b"vCPU 0".hex().encode() if arguments == b"," + THREAD else BAD_PACKET

    def _select_thread(self, arguments: bytes) -> bytes:
        return OK if arguments[:1] in (b"c", b"g") and arguments[1:] in _ANY_THREAD else BAD_PACKET

    def _thread_alive(self, arguments: bytes) -> bytes:
        return OK if arguments in _ANY_THREAD else BAD_PACKET

    # ---- stops

    def _stop_reply(self) -> bytes:
        point = self._reason.point
        reply = b"T%02xthread:%b;" % (self._reason.signal, THREAD)
        if point is None:
            return reply
        if not point.breaks:
            return reply + b"%b:%x;" % (_WATCHED[point.kind], point.address)
        # Told so, gdb never takes the address behind a one-byte instruction for a breakpoint at it.
        name = _BROKEN[point.kind]
        return reply + name + b":;" if name + b"+" in self._features else reply

    def _why(self, _: bytes) -> bytes:
        return self._stop_reply()

    # ---- registers

    def _read_registers(self, _: bytes) -> bytes:
        return _hex(self._debuggee.read_registers())

    def _write_registers(self, arguments: bytes) -> bytes:
        wanted, present = _bytes(arguments), self._debuggee.read_registers()
        if len(wanted) != len(present):
            raise _BadPacket
        for slot in self._slots.values():
            value = _part(wanted, slot)
            if value != _part(present, slot):
                self._debuggee.write_register(slot.number, value)
        return OK

    def _read_register(self, arguments: bytes) -> bytes:
        slot = self._slot(arguments)
        return _hex(_part(self._debuggee.read_registers(), slot))

    def _write_register(self, arguments: bytes) -> bytes:
        number, _, digits = arguments.partition(b"=")
        slot, value = self._slot(number), _bytes(digits)
        if len(value) != slot.size:
            raise _BadPacket
        self._debuggee.write_register(slot.number, value)
        return OK

    def _slot(self, digits: bytes) -> Slot:
        slot = self._slots.get(_number(digits))
        if slot is None:
            raise _BadPacket
        return slot

    # ---- memory

    def _read_memory(self, arguments: bytes) -> bytes:
        address, count = _numbers(arguments)
        if count == 0:
            raise _BadPacket  # no reply could be told from that to an unknown packet
        try:
            return _hex(self._debuggee.read_memory(address, min(count, PACKET_BYTES // 2))) or BAD_ADDRESS
        except Refused as error:
            return self._error(str(error), BAD_ADDRESS, b"m")

    def _write_hex(self, arguments: bytes) -> bytes:
        place, colon, digits = arguments.partition(b":")
        return self._write_memory(place, _bytes(digits), colon)

    def _write_binary(self, arguments: bytes) -> bytes:
        place, colon, data = arguments.partition(b":")
        return self._write_memory(place, data, colon)

    def _write_memory(self, place: bytes, data: bytes, colon: bytes) -> bytes:
        address, count = _numbers(place)
        if not colon or count != len(data):
            raise _BadPacket
        try:
            if data:  # gdb asks with none whether X is known
                self._debuggee.write_memory(address, data)
        except Refused as error:
            return self._error(str(error), BAD_ADDRESS, b"M")
        return OK

    # ---- points

    def _point(self, arguments: bytes) -> Point | None:
        """The point of a Z or z packet; None for a kind that does not exist."""
        kind, _, place = arguments.partition(b",")
        if kind not in (b"0", b"1", b"2", b"3", b"4"):
            return None
        address, length = _numbers(place)
        point = Point(PointKind(int(kind)), address, length)
        if not point.breaks and not 0 < length <= (1 << 64) - address:
            raise _BadPacket
        return point

    def _set_point(self, arguments: bytes) -> bytes:
        point = self._point(arguments)
        if point is None:
            return UNKNOWN
        if point not in self._points:  # "should be implemented in an idempotent way"
            self._interception.set_point(point)
            self._points[point] = None
        return OK

    def _clear_point(self, arguments: bytes) -> bytes:
        point = self._point(arguments)
        if point is None:
            return UNKNOWN
        if point in self._points:
            self._interception.clear_point(point)
            del self._points[point]
        return OK

    # ---- the guest goes on

    def _resume(self, how: Resume) -> Resume:
        self._waiting = True
        return how

    def _continue(self, arguments: bytes) -> Resume:
        return self._go(Resume.CONTINUE, arguments)

    def _step(self, arguments: bytes) -> Resume:
        return self._go(Resume.STEP, arguments)

    def _continue_signalled(self, arguments: bytes) -> Resume:
        return self._go(Resume.CONTINUE, arguments.partition(b";")[2])  # a machine has no signals

    def _step_signalled(self, arguments: bytes) -> Resume:
        return self._go(Resume.STEP, arguments.partition(b";")[2])

    def _go(self, how: Resume, address: bytes) -> Resume:
        """Resumes, at `address` if there is one."""
        if address:
            pc = next(slot for slot in self._slots.values() if slot.name in ("rip", "eip"))
            value = _number(address) & ((1 << 8 * pc.size) - 1)
            self._debuggee.write_register(pc.number, value.to_bytes(pc.size, "little"))
        return self._resume(how)

    def _actions(self, _: bytes) -> bytes:
        return b"vCont;c;C;s;S"

    def _act(self, arguments: bytes) -> bytes | Resume:
        """vCont: the first action that is for the one thread, or for any."""
        for action in arguments.split(b";")[1:]:
            verb, _, thread = action.partition(b":")
            if thread and thread not in _ANY_THREAD:
                continue
            how = {b"c": Resume.CONTINUE, b"s": Resume.STEP}.get(verb[:1].lower())
            if how is None:
                break
            return self._resume(how)
        return BAD_PACKET

    def _detach(self, _: bytes) -> Resume:
        return self._part_with(Resume.DETACH, OK)

    def _kill(self, _: bytes) -> Resume:
        return self._part_with(Resume.KILL, None)  # nobody waits for a reply

    def _kill_process(self, _: bytes) -> Resume:
        return self._part_with(Resume.KILL, OK)

    def _part_with(self, how: Resume, reply: bytes | None) -> Resume:
        self._forget()
        if reply is not None:
            self._server.reply(reply)
        self._server.hang_up()
        return how

    # ---- monitor

    def _monitor(self, arguments: bytes) -> bytes:
        """qRcmd: whatever comes of it is text on gdb's console."""
        line = _bytes(arguments.removeprefix(b",")).decode(errors="replace").strip()
        text = self._unsaid
        self._unsaid = ""
        try:
            text += self._run(line, bool(text))
        except (CommandError, Refused, MachineError) as error:
            text += str(error)
        except Exception:  # a mistake in one of many commands must not take the user's session away
            text += f"The harness has made a mistake; please report it.\n{traceback.format_exc()}"
        if text:
            self._server.console(text if text.endswith("\n") else text + "\n")
        return OK

    def _run(self, line: str, heard: bool) -> str:
        """What the command `line` shows. heard: gdb's user gets some news before it already."""
        word, _, rest = line.partition(" ")
        if not word:
            return "" if heard else self._reason.text or _MONITOR_HELP
        if word == "xi":
            return self._command(rest.strip())
        reason = refused_because(word)
        if reason is not None:
            raise CommandError(f"`{word}` is not passed on to QEMU: {reason}")
        return self._hmp(line)

    _HANDLERS: ClassVar[dict[bytes, Callable[[Proxy, bytes], bytes | Resume]]] = {
        b"qSupported": _supported,
        b"qXfer": _transfer,
        b"qAttached": _attached,
        b"qSymbol": _symbols,
        b"qRcmd": _monitor,
        b"qfThreadInfo": _first_threads,
        b"qsThreadInfo": _more_threads,
        b"qThreadExtraInfo": _thread_info,
        b"qC": _current_thread,
        b"H": _select_thread,
        b"T": _thread_alive,
        b"?": _why,
        b"g": _read_registers,
        b"G": _write_registers,
        b"p": _read_register,
        b"P": _write_register,
        b"m": _read_memory,
        b"M": _write_hex,
        b"X": _write_binary,
        b"Z": _set_point,
        b"z": _clear_point,
        b"c": _continue,
        b"C": _continue_signalled,
        b"s": _step,
        b"S": _step_signalled,
        b"vCont?": _actions,
        b"vCont": _act,
        b"D": _detach,
        b"k": _kill,
        b"vKill": _kill_process,
    }


def _number(digits: bytes) -> int:
    """An address or length: up to 64 bits in hexadecimal."""
    if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", digits):
        raise _BadPacket
    return int(digits, 16)


def _numbers(place: bytes) -> tuple[int, int]:
    """``address,length``."""
    address, _, length = place.partition(b",")
    return _number(address), _number(length)


def _bytes(digits: bytes) -> bytes:
    if len(digits) % 2 or not re.fullmatch(rb"[0-9a-fA-F]*", digits):
        raise _BadPacket
    return bytes.fromhex(digits.decode())


def _hex(data: bytes) -> bytes:
    return data.hex().encode()


def _part(registers: bytes, slot: Slot) -> bytes:
    return registers[slot.offset : slot.offset + slot.size]
