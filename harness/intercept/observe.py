"""Observe mode: the guest runs on its own tables, and the gdbstub tells what it does to them.

CR3, CR0, CR4 and EFER writes and INVLPG are seen by breakpoints at the instructions; stores to guest tables by
write watchpoints over their virtual aliases. A table that went out of sync is no longer watched until it
is resynced, as XI prescribes. What neither can see is found by the self-check at each checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.engine import ShadowEngine
from harness.intercept.breakpoints import CodeScanner
from harness.intercept.events import EventLog
from harness.intercept.interception import Outcome, Ran
from harness.intercept.watchpoints import WatchSet
from harness.machine.deadline import Deadline
from harness.machine.errors import DeadlineExceeded, StubClosed
from harness.machine.gdbstub import ALL_REGISTERS, STEP, StopReply, breakpoint_packet, watch_packet
from harness.machine.qemu import Machine
from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.decode import ControlInstruction, decode
from harness.x86.operands import MAX_INSTRUCTION

Translate = Callable[[ControlState, int], int | None]

_CONTROL_KINDS: Final = frozenset(("cr0", "cr4", "lmsw", "wrmsr"))


_UNSEEN: Final = "guest table gfn {:#x} changed and no store was seen"


def control_state(registers: Mapping[str, int], pkru: int = 0) -> ControlState:
    return ControlState(registers["cr0"], registers["cr3"], registers["cr4"], registers["efer"], pkru)


class Observer:
    """Drives `engine` with what the guest on `machine` does.

    translate: (state, virtual address) -> physical address or None: an architectural walk of the guest's own tables
    in RAM, to read the code at a breakpoint. msr_writes: see `CodeScanner`. misses: what the self-check found
    unannounced, in words.
    """

    def __init__(self, machine: Machine, engine: ShadowEngine, translate: Translate, msr_writes: bool = True) -> None:
        self._gdb = machine.gdb
        self._ram = machine.ram.bytes
        self.engine = engine
        self._translate = translate
        self.log = EventLog()
        self.watches = WatchSet()
        self._msr_writes = msr_writes
        self.code = CodeScanner(machine.ram.bytes, msr_writes)
        self.state = ControlState()
        self.misses: list[str] = []
        self.false_breakpoints = 0
        self.run_seconds = 0.0  # spent in `run`, guest and interception together
        self.late_alias_tables = 0  # tables written through an alias that was too new to be watched
        self.unreported = 0  # misses found between two self-checks
        self._pending: list[bytes] = []
        self._stops: set[int] = set()
        self._at_breakpoint = False

    # ---- beginning

    def attach(self) -> None:
        """Begins to observe the stopped guest, wherever it is: takes its registers and tables as they are."""
        self.state = control_state(self._gdb.read_registers())
        self.engine.control(self.state)
        self._at_breakpoint = True
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

    def _refresh(self) -> None:
        """Queues the packets that bring watchpoints and breakpoints up to date with the engine."""
        engine = self.engine
        changes = engine.watch_changes()
        if changes:
            gained = {gfn for gfn, addresses in changes.items() if self._gained(gfn, addresses)}
            self._pending += self.watches.update(changes)
            if gained:
                self._late_aliases(gained)
        executable = engine.executable_changes()
        if len(executable):
            self._scan_code(executable)

    def _scan_code(self, gfns: npt.NDArray[np.int64]) -> None:
        """Queues breakpoints for the instructions in `gfns` that change translations."""
        engine = self.engine
        self._pending += self.code.executable(gfns, lambda gfn: engine.addresses_of(gfn, executable=True))

    def _gained(self, gfn: int, addresses: frozenset[int]) -> bool:
        """Whether `gfn`, a table that was in sync all along, has become writable at one more address."""
        before = self.watches.addresses(gfn)
        return bool(before) and not addresses <= before

    def _late_aliases(self, gained: set[int]) -> None:
        """Tables that gained an alias may have been written through it before anybody could watch it.

        A mapping made by an entry of an out-of-sync table is used without a flush, and where the shadow is not what
        the hardware walks, its first use faults nowhere. What such a store changed is explained by the event that
        let the other table go; what else changed is a miss.
        """
        changed = self.engine.unexplained_changes()
        self.late_alias_tables += len(gained.intersection(changed))
        self.misses += [_UNSEEN.format(gfn) for gfn in changed if gfn not in gained]
        self.unreported += sum(gfn not in gained for gfn in changed)
        if changed:
            self.engine.resync_all()
            self._refresh()

    def _flush_pending(self) -> None:
        # Few packets ride along with the next resume; many are sent in bounded portions.
        while len(self._pending) > 128:
            batch, self._pending = self._pending[:128], self._pending[128:]
            self._gdb.checked(*batch)

    # ---- running

    def run(self, deadline: Deadline, max_events: int | None = None) -> Ran:
        """Lets the guest run, event after event, until a `stop_at` address, its end, or the deadline."""
        began = time.perf_counter()
        try:
            return self._run(deadline, max_events)
        finally:
            self.run_seconds += time.perf_counter() - began

    def _run(self, deadline: Deadline, max_events: int | None) -> Ran:
        gdb = self._gdb
        limit = None if max_events is None else self.log.total + max_events
        try:
            if self._at_breakpoint:
                # A breakpoint's own instruction must be stepped: continuing would hit it again.
                reply = self._step()
                if reply.exited:
                    return Ran(Outcome.EXITED, {})
            while True:
                self._flush_pending()
                pending, self._pending = self._pending, []
                gdb.resume(pending)
                self._at_breakpoint = False
                self.engine.idle()
                try:
                    reply = gdb.wait_stop(deadline)
                except DeadlineExceeded:
                    reply = gdb.interrupt(Deadline(5.0))
                    if not reply.exited:
                        self._at_breakpoint = True
                        return Ran(Outcome.DEADLINE, gdb.read_registers())
                if reply.exited:
                    return Ran(Outcome.EXITED, {})
                if reply.watch is not None:
                    self._table_write(reply.watch)
                else:
                    stopped = self._breakpoint()
                    if stopped is not None:
                        return stopped
                if deadline.passed:
                    self._at_breakpoint = True
                    return Ran(Outcome.DEADLINE, gdb.read_registers())
                if limit is not None and self.log.total >= limit:
                    return Ran(Outcome.EVENTS, gdb.read_registers())
        except StubClosed:
            return Ran(Outcome.EXITED, {})

    def _step(self) -> StopReply:
        self._flush_pending()
        pending, self._pending = self._pending, []
        self._gdb.resume(pending, STEP)
        reply = self._gdb.wait_stop(Deadline(10.0))
        if reply.watch is not None:
            self._table_write(reply.watch)
        return reply

    def _table_write(self, address: int) -> None:
        page = address & ~(bits.PAGE_SIZE - 1)
        for gfn in self.watches.tables_at(page):
            self.log.add("table_write", 0, gfn)
            self.engine.table_written(gfn)
        self._refresh()

    def _breakpoint(self) -> Ran | None:
        gdb = self._gdb
        # One write: the registers before the instruction, and the step over it.
        (reply,) = gdb.resume((ALL_REGISTERS,), STEP)
        registers = gdb.parse_registers(reply)
        rip = registers["rip"]
        stop_here = rip in self._stops
        self._notice_efer(registers)
        instruction, width = (None, 64) if stop_here else self._decode(registers)
        if instruction is not None and instruction.kind == "cr3":
            # The engine works while QEMU steps: the tables do not change in a MOV CR3.
            self._cr3_load(rip, instruction.value(registers, width), instruction.text)
        elif instruction is not None and instruction.kind in ("invlpg", "invpcid"):
            self._invalidate(rip, instruction, registers, width)
        stepped = gdb.wait_stop(Deadline(10.0))
        if stepped.exited:
            return Ran(Outcome.EXITED, {})
        if stop_here:
            return Ran(Outcome.STOP, registers)
        if instruction is None:
            self.false_breakpoints += 1
        elif instruction.kind in _CONTROL_KINDS and (
            instruction.kind != "wrmsr" or registers["rcx"] & 0xFFFF_FFFF == bits.MSR_EFER
        ):
            # Rare, and it may fault or change the mode: read what the processor made of it.
            self._control(rip, instruction)
        if stepped.watch is not None:
            self._table_write(stepped.watch)
        return None

    def _decode(self, registers: Mapping[str, int]) -> tuple[ControlInstruction | None, int]:
        """The instruction at RIP and the width of the code (16, 32, 64)."""
        # The stub does not tell CS.L. While EFER.LMA is set the code is taken as 64-bit: the few instructions of
        # compatibility mode before the far jump decode alike there (no REX among their bytes).
        width = 64 if registers["efer"] & bits.EFER_LMA else 32 if registers["cr0"] & bits.CR0_PE else 16
        physical = self._translate(self.state, registers["rip"])
        if physical is None or physical >= len(self._ram):
            return None, width
        code = self._ram[physical : physical + MAX_INSTRUCTION].tobytes()
        room = bits.PAGE_SIZE - (physical & (bits.PAGE_SIZE - 1))
        if room < MAX_INSTRUCTION:
            following = self._translate(self.state, registers["rip"] + room)
            code = code[:room]
            if following is not None and following < len(self._ram):
                code += self._ram[following : following + MAX_INSTRUCTION - room].tobytes()
        return decode(code, width), width

    # ---- events

    def _cr3_load(self, rip: int, value: int, text: str) -> None:
        if self.state.cr4 & bits.CR4_PCIDE:
            value &= ~(1 << 63)  # "do not flush" is not kept in CR3; XI resyncs all the same
        self.log.add("cr3_load", rip, value, text)
        self.state = replace(self.state, cr3=value)
        self.engine.load_cr3(value)
        self._refresh()

    def _invalidate(self, rip: int, instruction: ControlInstruction, registers: Mapping[str, int], width: int) -> None:
        address = instruction.value(registers, width)
        self.log.add("invlpg", rip, address, instruction.text)
        if instruction.kind == "invlpg":
            self.engine.invlpg(address)
        else:
            # INVPCID may name any number of addresses and contexts: taken as the flush of all.
            self.engine.load_cr3(self.state.cr3)
        self._refresh()

    def _control(self, rip: int, instruction: ControlInstruction) -> None:
        self.state = control_state(self._gdb.read_registers(), self.state.pkru)
        value = (
            self.state.efer if instruction.kind == "wrmsr" else getattr(self.state, instruction.kind, self.state.cr0)
        )
        self.log.add("control", rip, value, instruction.text)
        self.engine.control(self.state)
        self._refresh()

    def _notice_efer(self, registers: Mapping[str, int]) -> None:
        """Takes over an EFER written since the last stop by a WRMSR that had no breakpoint, where none has."""
        if self._msr_writes or registers["efer"] == self.state.efer:
            return
        self.state = replace(self.state, efer=registers["efer"])
        self.log.add("control", registers["rip"], registers["efer"], "EFER, seen at the next stop")
        self.engine.control(self.state)
        self._refresh()

    # ---- self-check

    def self_check(self, registers: Mapping[str, int]) -> int:
        """Compares what was announced with what is: control registers, CR3 and every in-sync table.

        Returns how many unannounced changes there were; each is put into `misses` and repaired.
        """
        found = 0
        self._notice_efer(registers)
        actual = control_state(registers, self.state.pkru)
        if actual != self.state:
            found += 1
            self.misses.append(f"control registers changed unannounced: {self.state} is really {actual}")
            self.state = actual
            self.engine.control(actual)
        found += self.unreported
        self.unreported = 0
        changed = self.engine.unexplained_changes()
        if changed:
            before = {gfn: self.engine.addresses_of(gfn, writable=True) for gfn in changed}
            self.engine.resync_all()
            for gfn in changed:
                if self.engine.addresses_of(gfn, writable=True) <= before[gfn]:
                    found += 1
                    self.misses.append(_UNSEEN.format(gfn))
                else:  # an alias that a table out of sync has made since: see _late_aliases
                    self.late_alias_tables += 1
        if found:
            self.engine.resync_all()
        if found or changed:
            self._refresh()
        if found:
            # Code that was not there at the scan is the usual reason: look again.
            self._scan_code(self.code.forget())
        return found

    # ---- quiet phases

    def unwatch(self, pages: Iterable[int]) -> list[int]:
        """Removes the watchpoints of those `pages` that have one, for a while: the stores of a check's probes are
        not the guest's. Gives the pages to hand to `rewatch`."""
        watched = [page for page in pages if self.watches.tables_at(page)]
        self._flush_pending()
        pending, self._pending = self._pending, []
        self._gdb.checked(*pending, *(watch_packet(page, bits.PAGE_SIZE, insert=False) for page in watched))
        return watched

    def rewatch(self, pages: Iterable[int]) -> None:
        self._pending += [watch_packet(page, bits.PAGE_SIZE) for page in pages if self.watches.tables_at(page)]

    def refresh(self) -> None:
        """Takes over what changed in the engine outside an event (the faults that a check drives)."""
        self._refresh()
