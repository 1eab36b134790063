"""Live mode: the guest runs on the engine's shadow tables, and every exit of the processor is an event.

The monitor in the ROM runs the guest until the processor leaves it, and hands over; here it is decided what the exit
means, the engine is told, and the guest goes on. What the guest believes (CR0, CR3, CR4, EFER) is `Live.state`; what
the processor holds is written by `harness.intercept.hardware`. Source: AMD APM vol. 2, chapter 15.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Final

import numpy as np

from harness.engine import AWAY, GENERAL_PROTECTION, RETRY, ShadowEngine, ShadowRoot
from harness.intercept.devices import Devices
from harness.intercept.domain import Domain
from harness.intercept.emulate import CannotEmulate, emulate
from harness.intercept.events import EventLog
from harness.intercept.hardware import run_on
from harness.intercept.instructions import Instructions
from harness.intercept.interception import Outcome, Ran
from harness.intercept.live_points import LivePoints
from harness.intercept.points import Point
from harness.machine import monitor_abi as abi
from harness.machine.deadline import Deadline
from harness.machine.errors import DeadlineExceeded, MachineError, StubClosed
from harness.machine.mailbox import STOP_PORT
from harness.machine.monitor_abi import ExitCode
from harness.machine.qemu import Machine
from harness.machine.vcpu import Vcpu
from harness.x86 import bits, events
from harness.x86.access import ACCESS_OF
from harness.x86.control import ControlState

KICK_SECONDS: Final = 5.0  # for the processor to come out after an NMI
NO_FAULT: Final = (-1, -1, -1)
STUCK_AFTER: Final = 256  # times that one access may fault in a row before the engine is taken to be at a loss

LOOK_EVERY: Final = 64  # exits between two looks at the clock

# Indices into the VMCB as 64-bit words; looked up at every exit.
EXITCODE: Final = abi.EXITCODE >> 3
EXITINFO1: Final = abi.EXITINFO1 >> 3
EXITINFO2: Final = abi.EXITINFO2 >> 3
EXITINTINFO: Final = abi.EXITINTINFO >> 3
EVENTINJ: Final = abi.EVENTINJ >> 3
RIP: Final = abi.RIP >> 3
CR2: Final = abi.CR2 >> 3
_VALID: Final = events.VALID

Hook = Callable[[], None]
Pause = Callable[[], Outcome | None]


def _exit_name(code: int) -> str:
    try:
        return ExitCode(code).name.lower()
    except ValueError:
        return f"exit_{code:#x}"


class Live:
    """Drives `engine` with the exits of the guest on `vcpu`.

    state: the control registers as the guest believes them. faults: (rip, error code, CR2) of each #PF injected, where
    somebody wants them (else None); injected: how many there were. exits: how often each kind of exit came. between:
    called at each exit, with the guest standing (disturbances, migration); one that gives an Outcome ends `run` with
    it. meanwhile: called once each time the guest has been let go, so what it does costs the guest nothing. halted: the
    guest waits in a HLT. points: what a debugger wants. attention, hit: see `harness.intercept.interception`.
    """

    false_breakpoints = 0
    late_alias_tables = 0

    def __init__(
        self,
        vcpu: Vcpu,
        engine: ShadowEngine,
        domain: Domain,
        state: ControlState,
        instructions: Instructions,
        devices: Devices,
        machine: Machine,
    ) -> None:
        self.vcpu, self.engine, self.domain = vcpu, engine, domain
        self.state = state
        self.log = EventLog()
        self.instructions = instructions
        self.devices = devices
        self.exits: Counter[int] = Counter()
        self.faults: list[tuple[int, int, int]] | None = None
        self.injected = 0
        self.misses: list[str] = []
        self.between: list[Pause] = []
        self.meanwhile: list[Hook] = []
        self.run_seconds = 0.0
        self.points = LivePoints(self, machine)
        self.attention: Callable[[], bool] | None = None
        self.hit: Point | None = None
        self._root: ShadowRoot | None = None
        self._pkru = 0
        self.halted = False
        self._pending = 0  # EXITINTINFO of the last exit: an event that was being delivered
        self._last_fault = NO_FAULT
        self.stuck = ""  # what access faults for ever, in words
        self._repeats = 0
        self._ended: Outcome | None = None
        handlers: dict[int, Callable[[], Outcome | None]] = {
            ExitCode.EXCEPTION_BASE + bits.VECTOR_PF: self._page_fault,
            **{ExitCode.EXCEPTION_BASE + vector: self._fault_of_delivery for vector in events.FAULTS_OF_DELIVERY},
            ExitCode.INVLPG: self._instruction,
            ExitCode.CPUID: self._instruction,
            ExitCode.MSR: self._instruction,
            ExitCode.HLT: self._instruction,
            ExitCode.IOIO: self._io,
            ExitCode.NMI: self._nmi,
            ExitCode.SHUTDOWN: lambda: Outcome.SHUTDOWN,
            ExitCode.INVALID: self._invalid,
        }
        handlers |= dict.fromkeys(abi.CR_EXITS, self._instruction)
        handlers |= dict.fromkeys(abi.SVM_INSTRUCTION_EXITS, self._undefined)
        self._handlers = {int(code): handler for code, handler in handlers.items()}

    # ---- running

    def attach(self) -> None:
        """Tells the engine how the guest stands at its entry."""
        self.engine.control(self.state)
        self.instructions.attach(self)

    def take_over(self, other: Live) -> None:
        """Goes on where `other`, which drove this guest on another machine, stood; before `attach`."""
        self.state, self._pkru = other.state, other._pkru
        self.log, self.exits, self.misses = other.log, other.exits, other.misses
        self.faults, self.injected = other.faults, other.injected
        self.run_seconds = other.run_seconds

    def run(self, deadline: Deadline, max_events: int | None = None) -> Ran:
        """Lets the guest run, exit after exit, until its next checkpoint, its end, or the deadline.

        Python's cyclic garbage is collected when the guest stands, not at an exit: a full collection takes some 25 ms.
        """
        began = time.perf_counter()
        collects = gc.isenabled()
        gc.disable()
        try:
            return self._run(deadline, max_events)
        finally:
            self.points.end()
            if collects:
                gc.enable()
            self.run_seconds += time.perf_counter() - began

    def _run(self, deadline: Deadline, max_events: int | None) -> Ran:
        # Every line of the inner loop is paid at each exit: what does not change there is looked up here.
        limit = None if max_events is None else self.log.total + max_events
        vcpu, engine, handlers, exits = self.vcpu, self.engine, self._handlers, self.exits
        vmcb = vcpu.vmcb
        meanwhile, between = self.meanwhile, self.between
        try:
            idle = self.points.begin()
            while True:
                for _ in range(LOOK_EVERY):
                    root = engine.root
                    if root is not self._root:
                        self._root = root
                        self.apply()
                    vcpu.resume()
                    for hook in meanwhile:
                        hook()
                    try:
                        vcpu.wait(deadline, idle)
                    except DeadlineExceeded:
                        return Ran(self._pull_out(), self.registers())
                    if self.halted:
                        self.halted = False
                        vcpu.vmcb_fields["intercept"] = abi.INTERCEPTS
                    code = vmcb[EXITCODE]
                    pending = vmcb[EXITINTINFO]
                    self._pending = pending if pending & _VALID else 0
                    exits[code] += 1
                    handler = handlers.get(code)
                    if handler is None:
                        raise MachineError(f"the processor left the guest with exit code {code:#x}, not asked for")
                    outcome = handler()
                    if outcome is not None:
                        return Ran(outcome, self.registers())
                    for pause in between:
                        outcome = pause()
                        if outcome is not None:
                            return Ran(outcome, self.registers())
                    if limit is not None and self.log.total >= limit:
                        return Ran(Outcome.EVENTS, self.registers())
                if deadline.passed:
                    return Ran(Outcome.DEADLINE, self.registers())
        except StubClosed:
            return Ran(Outcome.EXITED, {})

    def registers(self) -> dict[str, int]:
        """The guest's registers, the control registers as it believes them."""
        state = self.state
        return self.vcpu.registers() | {"cr0": state.cr0, "cr3": state.cr3, "cr4": state.cr4, "efer": state.efer}

    def apply(self) -> None:
        """Gives the processor the root and control registers that go with the guest's."""
        assert self._root is not None
        run_on(self.vcpu, self._root, self.state)

    def changed(self) -> None:
        """The guest's control registers have changed: the processor's follow at its next entry."""
        self._root = None

    def halt_in_guest(self) -> None:
        """The guest halts and waits for an interrupt: from its HLT on it runs without that intercept until it exits."""
        self.vcpu.vmcb_fields["intercept"] &= ~np.uint64(abi.intercept_bit(ExitCode.HLT))
        self.halted = True

    def kick(self) -> None:
        """Makes the processor leave the guest at once (an NMI)."""
        assert self.vcpu.kick is not None
        self.vcpu.kick()

    def _pull_out(self) -> Outcome:
        """Gets the processor out of a guest that does not leave by itself. Raises MachineError if it stays."""
        self.kick()
        try:
            self.vcpu.wait(Deadline(KICK_SECONDS), self.points.look)  # it may stand at a point just now
        except DeadlineExceeded as error:
            raise MachineError(f"the processor did not leave the guest within {KICK_SECONDS:g} s of an NMI") from error
        code = self.vcpu.vmcb[EXITCODE]
        self.exits[code] += 1
        if code == ExitCode.SHUTDOWN:
            return Outcome.SHUTDOWN
        if self.halted:  # an NMI ends a HLT, and this one was none of the guest's
            self.halted = False
            self.vcpu.vmcb_fields["intercept"] = abi.INTERCEPTS
        pending = self.vcpu.vmcb[EXITINTINFO]  # whatever the exit was, the guest comes back to it; not to this event
        if pending & events.VALID:
            self._deliver(events.again(pending))
        return self.points.attend() or Outcome.DEADLINE

    # ---- a debugger

    def step(self, deadline: Deadline) -> Ran:
        return self.points.step(deadline)

    def poke(self) -> None:
        self.points.poke()

    def set_point(self, point: Point) -> None:
        self.points.set_point(point)

    def clear_point(self, point: Point) -> None:
        self.points.clear_point(point)

    def lifted(self) -> AbstractContextManager[None]:
        """No point is set while the guest stands."""
        return nullcontext()

    def exits_by_name(self) -> dict[str, int]:
        """How often each kind of exit came, the most frequent first."""
        return {_exit_name(code): count for code, count in self.exits.most_common()}

    # ---- exits

    def _page_fault(self) -> Outcome | None:
        vcpu = self.vcpu
        vmcb = vcpu.vmcb
        code, va, rip = vmcb[EXITINFO1], vmcb[EXITINFO2], vmcb[RIP]
        access = ACCESS_OF[code & 31]
        fault = rip, va, access
        if fault != self._last_fault:
            self._last_fault = fault
            self._repeats = 0
        elif self._stuck():
            return Outcome.STUCK
        self.log.add("page_fault", rip, va)
        if vcpu.pkru != self._pkru:
            self.take_pkru()
        result = self.engine.shadow_fault(va, access)
        if result == RETRY:
            if self._pending:
                self._deliver(events.again(self._pending))
            return None
        self._last_fault = NO_FAULT  # it came to something: the same fault may come as often as the guest likes
        return self._unresolved(result, rip, va, access)

    def _stuck(self) -> bool:
        """The same access as before faults again. Whether it has too often."""
        self._repeats += 1
        if self._repeats < STUCK_AFTER:
            return False
        rip, va, _ = self._last_fault
        error = self.vcpu.vmcb[EXITINFO1]
        self.stuck = f"the access at rip {rip:#x} to {va:#x} faults again and again (error code {error:#x})"
        self.misses.append(self.stuck)
        return True

    def take_pkru(self) -> None:
        """Tells the engine the guest's PKRU: WRPKRU is not intercepted, the monitor reads the register at each exit."""
        pkru = self.vcpu.pkru
        if pkru != self._pkru:
            self._pkru = pkru
            self.state = replace(self.state, pkru=pkru)
            self.engine.set_pkru(pkru)

    def _fault_of_delivery(self) -> Outcome | None:
        """The guest's own fault, intercepted only to tell a double fault from it."""
        vmcb = self.vcpu.vmcb
        return self._raise(vmcb[EXITCODE] - ExitCode.EXCEPTION_BASE, vmcb[EXITINFO1] & 0xFFFF_FFFF)

    def _unresolved(self, result: int, rip: int, va: int, access: int) -> Outcome | None:
        if result >= 0:
            self.injected += 1
            if self.faults is not None:
                self.faults.append((rip, result, va))
            return self._raise(bits.VECTOR_PF, result, va)
        if result == GENERAL_PROTECTION:
            return self._raise(bits.VECTOR_GP, 0)
        gfn = self._missing(result, va)
        if gfn in self.domain.away:
            self.domain.give(gfn)
            self.log.add("frame_back", rip, gfn)
            if self._pending:
                self._deliver(events.again(self._pending))
            return None  # the access is made again
        return self._mmio(rip, va, access)

    def _missing(self, result: int, va: int) -> int:
        """The guest frame without a machine frame that a fault with `result` (MMIO or AWAY) met."""
        if result == AWAY:
            return self.engine.away_gfn
        physical = self.instructions.translate(va)
        return -1 if physical is None else physical >> bits.PAGE_SHIFT

    def _mmio(self, rip: int, va: int, access: int) -> Outcome | None:
        """An access to what is no memory of the guest: a device, or nothing at all."""
        physical = self.instructions.translate(va)
        if physical is None:
            raise MachineError(f"the engine calls {va:#x} an access to a device, and the guest's tables do not map it")
        if access & 3 == 2:
            raise MachineError(f"the guest executes at {va:#x}, guest-physical {physical:#x}, where there is no memory")
        if self._pending:
            raise MachineError(f"the processor delivers an event through {va:#x}, where there is no memory")
        code, width = self.instructions.code()
        try:
            length = emulate(code, width, self.vcpu, physical, self.devices, rip)
        except CannotEmulate as error:
            raise MachineError(f"at rip {rip:#x}: {error}") from error
        self.log.add("mmio", rip, physical)
        self.vcpu.vmcb[RIP] = rip + length
        return None

    def _instruction(self) -> Outcome | None:
        self._last_fault = NO_FAULT
        return self.instructions.handle()

    def _undefined(self) -> Outcome | None:
        """An instruction that the guest's processor does not have: no SVM is offered."""
        return self._raise(bits.VECTOR_UD, None)

    def _io(self) -> Outcome | None:
        """The guest is at a checkpoint: `xi_stop` writes to a port that nobody but the monitor intercepts."""
        vmcb = self.vcpu.vmcb
        port = vmcb[EXITINFO1] >> 16 & 0xFFFF
        if port != STOP_PORT:
            raise MachineError(f"the guest left at I/O port {port:#x}, which is not intercepted")
        vmcb[RIP] = vmcb[EXITINFO2]  # the next instruction's, unlike with all other exits
        return Outcome.STOP

    def _nmi(self) -> Outcome | None:
        """Somebody wants the guest to stand: the hooks in `between` have their turn now."""
        if self._pending:
            self._deliver(events.again(self._pending))
        return None

    def _invalid(self) -> Outcome | None:
        raise MachineError("VMRUN refused the guest's state (VMEXIT_INVALID)")

    # ---- what the guest, or a debugger in its place, does to its control registers

    def write_control(self, state: ControlState, kind: str, value: int, text: str) -> None:
        """A write made `state` of the guest's control registers. kind: ``cr3_load`` or ``control``; value: what was
        written; text: by what."""
        if self.domain.away:
            needed = self.engine.needs(state)
            if needed >= 0:
                self.domain.give(needed)
        self.log.add(kind, self.vcpu.vmcb[RIP], value, text)
        if kind == "cr3_load":
            self.state = state
            self.engine.load_cr3(state.cr3)  # a new root is taken at the next entry
        elif state != self.state:
            self.state = state
            self.engine.control(state)
            self.changed()

    # ---- events for the guest

    def fault(self, vector: int, error: int | None) -> None:
        """Raises an exception in the guest at the instruction where it stands."""
        self._raise(vector, error)

    def _raise(self, vector: int, error: int | None, cr2: int | None = None) -> Outcome | None:
        if cr2 is not None:
            self.vcpu.vmcb[CR2] = cr2
        if not self._pending:
            self._deliver(events.exception(vector, error))
            return None
        event = events.merge(self._pending, vector, error)
        if event is None:
            return Outcome.SHUTDOWN
        self._deliver(event)
        return None

    def _deliver(self, event: int) -> None:
        self.vcpu.vmcb[EVENTINJ] = event

    # ---- what a session asks

    def self_check(self, registers: dict[str, int]) -> int:
        """What was stored to write-protected tables unseen. Each is put into `misses` and repaired."""
        del registers
        changed = self.engine.unexplained_changes()
        self.misses += [f"guest table gfn {gfn:#x} changed and no store was seen" for gfn in changed]
        if changed:
            self.engine.resync_all()
        return len(changed)

    def refresh(self) -> None:
        """Nothing to do: the hardware walks the engine's tables themselves."""
