"""Observe mode: the guest runs on its own tables, and the gdbstub tells what it does to them.

CR3, CR0, CR4 and EFER writes and INVLPG are seen by breakpoints at the instructions; stores to guest tables by
write watchpoints over their virtual aliases. A table that went out of sync is no longer watched until it
is resynced, as XI prescribes. What neither can see is found by the self-check at each checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from harness.engine import ShadowEngine
from harness.intercept.follow import Follower, control_state
from harness.intercept.interception import Outcome, Ran
from harness.intercept.points import Point
from harness.intercept.stub_points import pages_of
from harness.machine.deadline import Deadline
from harness.machine.errors import DeadlineExceeded, StubClosed
from harness.machine.gdbstub import ALL_REGISTERS, CONTINUE, INTERRUPTED, STEP, StopReply, breakpoint_packet
from harness.machine.qemu import Machine
from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.decode import ControlInstruction, decode
from harness.x86.operands import MAX_INSTRUCTION

Translate = Callable[[ControlState, int], int | None]

_CONTROL_KINDS: Final = frozenset(("cr0", "cr4", "lmsw", "wrmsr"))
_AT_ONCE: Final = 10.0  # seconds for one instruction that cannot wait for anything
_SETTLE: Final = 0.2  # seconds for one that can: a halted processor executes none


def linear_rip(registers: Mapping[str, int]) -> int:
    """Where the instruction is. The stub does not tell the base of CS: it is taken as 0, but for real mode's."""
    return registers["rip"] + (0 if registers["cr0"] & bits.CR0_PE else registers["cs"] << 4)


class Observer(Follower):
    """Drives `engine` with what the guest on `machine` does.

    translate: (state, virtual address) -> physical address or None: an architectural walk of the guest's own tables
    in RAM, to read the code at a breakpoint. For the rest see `Follower` and `harness.intercept.interception`.
    """

    def __init__(self, machine: Machine, engine: ShadowEngine, translate: Translate, msr_writes: bool = True) -> None:
        super().__init__(machine, engine, msr_writes)
        self._ram = machine.ram.bytes
        self._translate = translate
        self.false_breakpoints = 0
        self.run_seconds = 0.0  # spent in `run` and `step`, guest and interception together
        self._stops: set[int] = set()
        self.attention: Callable[[], bool] | None = None
        self.hit: Point | None = None
        self._interrupted = False  # the last stop was for a byte from us: see _settle
        self._echo = False  # after a step that hit a watchpoint QEMU (7.2) stops once more, with nothing executed

    # ---- beginning

    def attach(self) -> None:
        """Begins to observe the stopped guest, wherever it is: takes its registers and tables as they are."""
        self.state = control_state(self._gdb.read_registers())
        self.engine.control(self.state)
        self._refresh()

    def run_to(self, address: int, deadline: Deadline) -> None:
        """Unobserved: lets the guest run until it is about to execute `address` (the end of the firmware).

        Raises DeadlineExceeded or StubClosed if it never gets there.
        """
        gdb = self._gdb
        gdb.checked(breakpoint_packet(address))
        gdb.resume()
        reply = gdb.wait_stop(deadline)
        if reply.exited:
            raise StubClosed(f"the machine ended before the guest's entry at {address:#x} was reached")
        gdb.checked(breakpoint_packet(address, insert=False))

    def stop_at(self, address: int) -> None:
        """`run` comes back when the guest is about to execute `address`."""
        self._stops.add(address)
        self._pending.append(breakpoint_packet(address))

    # ---- running

    def _resume(self, *before: bytes, how: bytes = CONTINUE) -> list[bytes]:
        """Lets the guest run, or one instruction; gives the replies to `before`."""
        self._flush_pending()
        pending, self._pending = self._pending, []
        return self._gdb.resume((*pending, *before), how)[len(pending) :]

    def run(self, deadline: Deadline, max_events: int | None = None) -> Ran:
        """Lets the guest run, event after event, until a `stop_at` address, its end, or the deadline."""
        limit = None if max_events is None else self.log.total + max_events
        return self._timed(lambda: self._run(deadline, limit))

    def step(self, deadline: Deadline) -> Ran:
        """See `harness.intercept.interception`. The guest takes no interrupt meanwhile, as QEMU steps (7.2)."""
        return self._timed(lambda: self._step(deadline))

    def _timed(self, work: Callable[[], Ran]) -> Ran:
        began = time.perf_counter()
        self.hit = None
        try:
            return work()
        except StubClosed:
            return Ran(Outcome.EXITED, {})
        finally:
            self.run_seconds += time.perf_counter() - began

    def _run(self, deadline: Deadline, limit: int | None) -> Ran:
        """limit: of `log.total`."""
        gdb = self._gdb
        while True:
            ran = self._settle() if self._interrupted else None
            if ran is not None:
                return ran
            if self.attention is not None and self._wanted():
                return Ran(Outcome.PAUSED, gdb.read_registers())
            if deadline.passed:
                return Ran(Outcome.DEADLINE, gdb.read_registers())
            if limit is not None and self.log.total >= limit:
                return Ran(Outcome.EVENTS, gdb.read_registers())
            self._resume()
            echo, self._echo = self._echo, False
            if self.attention is not None and self._wanted():
                gdb.poke()  # somebody's own may have come before the guest ran, when QEMU ignores it
            self.engine.idle()
            reply = self._wait(deadline)
            if reply.exited:
                return Ran(Outcome.EXITED, {})
            if reply.watch is not None:
                self._watched(reply)
                ran = self._paused()
            elif not self._interrupted and not echo:
                ran = self._breakpoint(Deadline(_AT_ONCE), counted=True)
            if ran is not None:
                return ran

    def _step(self, deadline: Deadline) -> Ran:
        ran = self._settle() or self._execute(deadline) or self._settle()
        if ran is None or (ran.outcome is Outcome.PAUSED and self.hit is not None):
            return Ran(Outcome.STEPPED, self._gdb.read_registers())
        return ran

    def _wait(self, deadline: Deadline) -> StopReply:
        """The next stop; the guest is interrupted when the deadline has passed."""
        try:
            reply = self._gdb.wait_stop(deadline)
        except DeadlineExceeded:
            reply = self._gdb.interrupt(Deadline(5.0))
        self._interrupted = reply.signal == INTERRUPTED
        return reply

    def _settle(self) -> Ran | None:
        """Has QEMU (7.2) tell the watchpoint that was hit, if the interrupt overtook that stop: it does with the next
        stop of its own, which a breakpoint makes before anything is executed."""
        patience = Deadline(_SETTLE)  # a halted processor comes to no breakpoint, and has nothing to tell
        while self._interrupted and not patience.passed:
            rip = linear_rip(self._gdb.read_registers())
            self._resume(breakpoint_packet(rip))
            self._pending.append(breakpoint_packet(rip, insert=False))
            stop = self._wait(patience)
            if stop.exited:
                return Ran(Outcome.EXITED, {})
            self._watched(stop)
            self._echo = stop.watch is not None
        self._interrupted = False
        return self._paused()

    def _wanted(self) -> bool:
        return self.attention is not None and not self._points.lifted and self.attention()

    def _breakpoint(self, deadline: Deadline, counted: bool = False) -> Ran | None:
        """The guest executes the instruction at RIP, see `_execute`, unless a breakpoint of the debugger's is there."""
        if self._points.active:
            registers = self._gdb.read_registers()
            self.hit = self._points.breaks_at(linear_rip(registers))
            if self.hit is not None:
                return Ran(Outcome.PAUSED, registers)
        return self._execute(deadline, counted)

    def _execute(self, deadline: Deadline, counted: bool = False) -> Ran | None:
        """The guest executes the instruction at RIP, with whatever it makes happen. None when it goes on from there.

        DEADLINE, PAUSED: it was not executed, because the processor is halted, until then. counted: the harness has
        a breakpoint there.
        """
        gdb = self._gdb
        # One write: the registers before the instruction, and the step over it.
        (reply,) = self._resume(ALL_REGISTERS, how=STEP)
        registers = gdb.parse_registers(reply)
        rip = registers["rip"]
        stop_here = rip in self._stops
        self._notice_efer(registers)
        instruction, width = (None, 64) if stop_here else self._decode(registers)
        if instruction is not None:
            deadline = Deadline(_AT_ONCE)
            if instruction.kind == "cr3":
                # The engine works while QEMU steps: the tables do not change in a MOV CR3.
                self._cr3_load(rip, instruction.value(registers, width), instruction.text)
            elif instruction.kind in ("invlpg", "invpcid"):
                self._invalidate(rip, instruction, registers, width)
        elif counted and not stop_here:
            self.false_breakpoints += 1
        stepped = self._wait(deadline)
        while (self._echo or self._interrupted) and not stepped.exited and gdb.read_registers()["rip"] == rip:
            self._echo = False
            if self._interrupted and (deadline.passed or (instruction is None and self._wanted())):
                return Ran(Outcome.DEADLINE if deadline.passed else Outcome.PAUSED, registers)
            gdb.resume((), STEP)
            stepped = self._wait(deadline)
        self._echo = stepped.watch is not None
        if stepped.exited:
            return Ran(Outcome.EXITED, {})
        if (
            instruction is not None
            and instruction.kind in _CONTROL_KINDS
            and (instruction.kind != "wrmsr" or registers["rcx"] & 0xFFFF_FFFF == bits.MSR_EFER)
        ):
            # Rare, and it may fault or change the mode: read what the processor made of it.
            self._control(rip, instruction)
        self._watched(stepped)
        return Ran(Outcome.STOP, registers) if stop_here else self._paused()

    def _watched(self, stop: StopReply) -> None:
        """Follows what a watchpoint tells, if it was one, the harness's or the debugger's (`hit`)."""
        if stop.watch is None:
            return
        point = self._points.hit_by(stop)
        if point is None:
            self._table_write(stop.watch)
            return
        self.hit = point
        # The instruction has stored to the tables there, or may have; what else it did no watchpoint tells.
        for page in {stop.watch & -bits.PAGE_SIZE, *pages_of(point)}:
            self._table_write(page)
        self._stored(self.engine.unexplained_changes())

    def _paused(self) -> Ran | None:
        return None if self.hit is None else Ran(Outcome.PAUSED, self._gdb.read_registers())

    def _decode(self, registers: Mapping[str, int]) -> tuple[ControlInstruction | None, int]:
        """The instruction at RIP and the width of the code (16, 32, 64)."""
        # The stub does not tell CS.L. While EFER.LMA is set the code is taken as 64-bit: the few instructions of
        # compatibility mode before the far jump decode alike there (no REX among their bytes).
        width = 64 if registers["efer"] & bits.EFER_LMA else 32 if registers["cr0"] & bits.CR0_PE else 16
        rip = linear_rip(registers)
        physical = self._translate(self.state, rip)
        if physical is None or physical >= len(self._ram):
            return None, width
        code = self._ram[physical : physical + MAX_INSTRUCTION].tobytes()
        room = bits.PAGE_SIZE - (physical & (bits.PAGE_SIZE - 1))
        if room < MAX_INSTRUCTION:
            following = self._translate(self.state, rip + room)
            code = code[:room]
            if following is not None and following < len(self._ram):
                code += self._ram[following : following + MAX_INSTRUCTION - room].tobytes()
        return decode(code, width), width

    # ---- a debugger

    def poke(self) -> None:
        self._gdb.poke()

    def set_point(self, point: Point) -> None:
        self._send_pending()
        self._points.set(point)

    def clear_point(self, point: Point) -> None:
        self._send_pending()
        self._points.clear(point)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        self._send_pending()
        self._points.lift()
        try:
            yield
        finally:
            self._pending += self._points.back()
