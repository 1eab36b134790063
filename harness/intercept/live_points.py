"""A debugger's points and single steps in live mode, and how a guest that runs is made to stand for it.

QEMU's stub knows nothing of monitor and guest: to it the machine runs, whoever of the two does. So

- while the guest stands, the monitor waits and no point is set in QEMU: what checks and probes touch is none of the
  guest's, and setting one takes the machine no stop. They are put in place where the guest is let go;
- a point that the guest meets stops the machine in the middle of the guest. An NMI is sent and the machine let go: the
  processor takes NMIs before anything else, so it leaves the guest where it was, and all of its state is in the VMCB;
- a step lets the monitor come to its VMRUN, by a breakpoint there, steps that, and then the guest. Behind the VMRUN
  QEMU (7.2) stops in front of the guest's first instruction; behind an instruction that makes the guest leave it stops
  in the monitor. It blocks interrupts while it steps. Where an event is to be injected nothing is stepped (behind the
  injection of an interrupt it does not stop any more): an NMI that waits makes the guest leave once the event has been
  delivered, in front of the first instruction of its handler.

Breakpoints match linear addresses in every address space; the monitor's own are out of the guest's way
(`firmware/layout.h`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from harness.intercept.instructions import fetches
from harness.intercept.interception import Outcome, Ran
from harness.intercept.points import Point, PointKind, PointSet
from harness.machine import monitor_abi as abi
from harness.machine.deadline import Deadline
from harness.machine.errors import DeadlineExceeded, MachineError, StubClosed
from harness.machine.gdbstub import CONTINUE, INTERRUPTED, STEP, GdbStub, StopReply
from harness.machine.qemu import Machine
from harness.x86.events import VALID

if TYPE_CHECKING:
    from harness.intercept.live import Live

DIRECT_MAP: Final = range(0xFFFF_8700_0000_0000, 0xFFFF_8701_0000_0000)  # the monitor's addresses: firmware/layout.h
ROM_END: Final = 1 << 32
TRAP: Final = 5  # signal of a stop at a point or behind a step

_RUN: Final = bytes.fromhex("0f01da 0f01d8 0f01db")  # vmload, vmrun, vmsave: where the monitor enters the guest
_VMRUN: Final = 3  # offset in these of the VMRUN
_POLL_EVERY: Final = 16  # calls of `look`, each of which ends 64 reads of the mailbox, between two looks at the stub
_SLICE: Final = 0.05  # seconds that a step waits for the machine before it looks whether somebody else wants something
_STOP_SECONDS: Final = 5.0  # for the machine to stop when told to
_NMI: Final = b"qRcmd," + b"nmi".hex().encode()  # a command of QEMU's monitor; through QMP it takes 1 ms longer
_STEP_WITH_INTERRUPTS: Final = b"Qqemu.sstep=1"
_STEP_WITHOUT: Final = b"Qqemu.sstep=7"  # QEMU's default: no interrupts, no timers
_RIP: Final = abi.RIP >> 3
_CR3: Final = abi.CR3 >> 3
_EVENTINJ: Final = abi.EVENTINJ >> 3


def vmrun_address(firmware: bytes) -> int:
    """Where the monitor in the ROM image `firmware`, which ends at 4 GiB, enters the guest. Raises MachineError."""
    found = firmware.find(_RUN)
    if found < 0 or firmware.find(_RUN, found + 1) >= 0:
        raise MachineError("this firmware has no monitor that a debugger can step through: `make guests`")
    return DIRECT_MAP.start + ROM_END - len(firmware) + found + _VMRUN


class LivePoints:
    """The points that a debugger has set for the guest of `live` on `machine`, and what it takes to step.

    While the guest stands the machine runs, and none of them is set in QEMU.
    """

    def __init__(self, live: Live, machine: Machine) -> None:
        self._live, self._machine = live, machine
        self._points = PointSet()
        self._inserted: list[Point] = []  # what QEMU has
        self._vmrun: Point | None = None
        self._poked = False
        self._turn = 0
        self._stood = False  # the guest was stopped at a point and is on its way out, or is out
        self._halt: int | None = None  # address of the HLT in which the guest was when it was pulled out
        self._stepping: Deadline | None = None  # a step is under way
        self._stepped = False
        self._left_at = 0  # RIP where the guest was let go, or where it left: a step that has moved it is done

    @property
    def _gdb(self) -> GdbStub:
        return self._machine.gdb

    # ---- what `Interception` offers

    def set_point(self, point: Point) -> None:
        """Raises MachineError for one that QEMU, or the monitor's addresses, cannot have."""
        last = point.address + max(point.length, 1) - 1
        if (not point.breaks and point.length < 1) or last >> 64:
            raise MachineError(f"no point can be set over {point.length} bytes at {point.address:#x}")
        if point.address < DIRECT_MAP.stop and DIRECT_MAP.start <= last:
            raise MachineError(f"{point.address:#x} is where the harness's monitor is: no point can be set there")
        self._points.add(point)

    def clear_point(self, point: Point) -> None:
        self._points.discard(point)

    def poke(self) -> None:
        self._poked = True

    def step(self, deadline: Deadline) -> Ran:
        """One instruction of the guest, or the delivery of the event that waits for it."""
        live = self._live
        self._stepping = deadline
        live.meanwhile.append(self._advance)
        live.between.append(self._ended)
        try:
            return live.run(deadline)
        finally:
            live.meanwhile.remove(self._advance)
            live.between.remove(self._ended)
            self._stepping = None

    # ---- around `Live.run`

    def begin(self) -> Callable[[], object]:
        """The guest is about to run. What is to be called while it does, in the engine's idle moments."""
        live = self._live
        live.hit = None
        self._stood = self._stepped = False
        self._halt = None
        if self._stepping is not None:
            self._install((self._at_vmrun(),))
            return self.look
        self._install(self._points)
        if live.attention is None and not self._inserted:
            return live.engine.idle
        live.between.append(self.attend)
        return self.look

    def end(self) -> None:
        """The guest stands, or has ended."""
        live = self._live
        if self.attend in live.between:
            live.between.remove(self.attend)
        if self._stepping is None:
            with contextlib.suppress(StubClosed):
                self._install(())

    def look(self) -> bool:
        """To be called while the guest runs: pulls it out when somebody wants it to stand, or it met a point."""
        self._turn += 1
        if self._poked and self._stepping is None:
            self._poked = False
            self._stopped(self._gdb.interrupt(Deadline(_STOP_SECONDS)))
        elif (self._inserted or self._stood) and self._turn % _POLL_EVERY == 0:
            reply = self._gdb.poll_stop()
            if reply is not None:
                self._stopped(reply)
        self._live.engine.idle()
        return True

    def attend(self) -> Outcome | None:
        """The guest has been pulled out or has left: whether it is to stand."""
        live = self._live
        self._poked = False  # before it is answered: one that comes now is another
        self._back_to_halt()
        if self._stood:
            if live.hit is None:
                address, _ = fetches(live.vcpu.vmcb)
                live.hit = self._points.breaks_at(address)
            return Outcome.PAUSED
        if live.attention is not None and live.attention():
            return Outcome.PAUSED
        if len(self._points) and not self._inserted:  # pulled out for nobody, and without them
            self._install(self._points)
        return None

    # ---- stepping

    def _advance(self) -> None:
        """The guest has been let go: it executes one instruction and is pulled out, or it leaves by itself."""
        live, gdb, vmrun = self._live, self._gdb, self._at_vmrun()
        if gdb.wait_stop(Deadline(_STOP_SECONDS)).exited:
            raise StubClosed("QEMU has ended")
        vmcb = live.vcpu.vmcb
        self._left_at = vmcb[_RIP]
        if vmcb[_EVENTINJ] & VALID:
            self._resume([*self._packets(()), _NMI])  # a breakpoint that stays would stop it where it is
            return
        self._resume(how=STEP)
        reply = self._await()
        if self._in_guest():  # in front of the instruction; else it left at once
            reply = self._step_one(vmrun)
        if not self._in_guest():
            self._left_at = vmcb[_RIP]
            self._resume(self._packets((vmrun,)))
            return
        if reply.signal == TRAP:
            self._stepped = True
            live.hit = self._watch(reply)
        self._pull_out((vmrun,))

    def _step_one(self, vmrun: Point) -> StopReply:
        """The machine has stopped in the guest: one instruction of it, watched."""
        packets = self._packets((vmrun, *self._points.watches()))
        if not self._live.halted:
            self._resume(packets, STEP)
            return self._await()
        # It waits for an interrupt, so one has to come; delivered, it ends the step.
        self._gdb.checked(*packets, _STEP_WITH_INTERRUPTS)
        self._resume(how=STEP)
        reply = self._await()
        self._gdb.checked(_STEP_WITHOUT)
        return reply

    def _await(self) -> StopReply:
        """Waits until the machine stops; it is stopped when somebody wants the guest, or the step's time is over."""
        gdb, deadline = self._gdb, self._stepping
        assert deadline is not None
        while True:
            try:
                reply = gdb.wait_stop(Deadline(_SLICE))
            except DeadlineExceeded:
                if not (self._poked or deadline.passed):
                    continue
                reply = gdb.interrupt(Deadline(_STOP_SECONDS))
            if reply.exited:
                raise StubClosed("QEMU has ended")
            return reply

    def _ended(self) -> Outcome | None:
        """At each exit of a step: whether it is done. An instruction that the harness carries out has moved RIP; one
        that is only to be tried again, or raises an exception, goes on."""
        live, deadline = self._live, self._stepping
        assert deadline is not None
        self._back_to_halt()
        if self._stepped or live.vcpu.vmcb[_RIP] != self._left_at:
            return Outcome.STEPPED
        if self._poked:
            self._poked = False
            if live.attention is not None and live.attention():
                return Outcome.PAUSED
        if deadline.passed:
            return Outcome.DEADLINE
        self._install((self._at_vmrun(),))
        return None

    # ---- the machine

    @contextlib.contextmanager
    def stopped(self) -> Iterator[GdbStub]:
        """The guest stands, and inside so does the machine: for what only the stub can tell. Raises StubClosed."""
        gdb = self._gdb
        if gdb.running:
            reply = gdb.interrupt(Deadline(_STOP_SECONDS))
            if reply.exited:
                raise StubClosed("QEMU has ended")
        try:
            yield gdb
        finally:
            gdb.resume()

    def _install(self, points: Iterable[Point]) -> None:
        """Exactly `points` are set in QEMU from now on. The guest stands."""
        packets = self._packets(points)
        if packets:
            with self.stopped() as gdb:
                gdb.checked(*packets)

    def _packets(self, points: Iterable[Point]) -> list[bytes]:
        """What makes QEMU have exactly `points`, each once however often it is named; taken for done."""
        wanted = list(dict.fromkeys(points))
        gone = [point.packet(insert=False) for point in self._inserted if point not in wanted]
        new = [point.packet() for point in wanted if point not in self._inserted]
        self._inserted = wanted
        return gone + new

    def _resume(self, packets: Iterable[bytes] = (), how: bytes = CONTINUE) -> None:
        for reply in self._gdb.resume(list(packets), how):
            if reply != b"OK":
                raise MachineError(f"gdbstub answered {reply!r} to a point of the debugger's")

    def _at_vmrun(self) -> Point:
        if self._vmrun is None:
            bios = self._machine.spec.bios
            assert bios is not None  # the monitor is in it
            self._vmrun = Point(PointKind.HARDWARE, vmrun_address(bios.read_bytes()), 1)
        return self._vmrun

    def _in_guest(self) -> bool:
        """Whether the machine has stopped in the guest and not in the monitor, which has tables of its own."""
        return self._gdb.read_registers()["cr3"] == self._live.vcpu.vmcb[_CR3]

    def _stopped(self, reply: StopReply) -> None:
        """The machine has stopped while the guest ran."""
        if reply.exited:
            self._inserted = []
            raise StubClosed("QEMU has ended")
        # On its way out: a watchpoint that was met in a step makes QEMU (7.2) stop once more. Or it has left by itself:
        # an access that met a watchpoint, and then a fault, stops in the monitor, and is made again.
        if self._stood or self._stepped or not self._in_guest():
            self._poked |= reply.signal == INTERRUPTED  # the monitor may have been about to enter the guest
            self._resume()
            return
        if reply.signal == TRAP:
            self._stood = True
            self._live.hit = self._watch(reply)
        self._pull_out(())

    def _watch(self, reply: StopReply) -> Point | None:
        """The watchpoint that made the machine stop, if one did."""
        found = (p for p in self._points.watches() if (p.address, p.kind) == (reply.watch, reply.kind))
        return next(found, None)

    def _pull_out(self, points: Iterable[Point]) -> None:
        """Lets the machine, stopped in the guest, run: it leaves the guest at once, with `points` set in QEMU."""
        live = self._live
        if live.halted and "HLT=1" in self._machine.monitor.human("info registers"):
            self._halt = live.vcpu.vmcb[_RIP]  # where it was let go: it has not left since
        self._resume([*self._packets(points), _NMI])

    def _back_to_halt(self) -> None:
        """An NMI ends a HLT; this one was none of the guest's, which waits on."""
        if self._halt is not None:
            self._live.vcpu.vmcb[_RIP] = self._halt
            self._halt = None
