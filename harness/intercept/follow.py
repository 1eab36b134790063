"""What the guest of observe mode did, told to one engine; and the breakpoints and watchpoints that follow from it.

Control registers are followed as the guest writes them, watchpoints over the aliases of in-sync tables and breakpoints
in its code as the engine's view of both changes. Packets for QEMU's stub are queued until the guest runs on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from harness.engine import ShadowEngine
from harness.intercept.breakpoints import CodeScanner
from harness.intercept.events import EventLog
from harness.intercept.stub_points import StubPoints
from harness.intercept.watchpoints import WatchSet
from harness.machine.gdbstub import watch_packet
from harness.machine.qemu import Machine
from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.decode import ControlInstruction

_UNSEEN: Final = "guest table gfn {:#x} changed and no store was seen"


def control_state(registers: Mapping[str, int], pkru: int = 0) -> ControlState:
    return ControlState(registers["cr0"], registers["cr3"], registers["cr4"], registers["efer"], pkru)


class Follower:
    """Drives `engine` with the events of the guest on `machine`; `harness.intercept.observe` finds them.

    msr_writes: see `CodeScanner`. misses: what the self-check found unannounced, in words.
    """

    def __init__(self, machine: Machine, engine: ShadowEngine, msr_writes: bool = True) -> None:
        self._gdb = machine.gdb
        self._points = StubPoints(machine.gdb)
        self.engine = engine
        self.log = EventLog()
        self.watches = WatchSet()
        self._msr_writes = msr_writes
        self.code = CodeScanner(machine.ram.bytes, msr_writes)
        self.state = ControlState()
        self.misses: list[str] = []
        self.late_alias_tables = 0  # tables written through an alias that was too new to be watched
        self.unreported = 0  # misses found between two self-checks
        self._pending: list[bytes] = []

    # ---- watchpoints and breakpoints

    def _refresh(self) -> None:
        """Queues the packets that bring watchpoints and breakpoints up to date with the engine."""
        engine = self.engine
        changes = engine.watch_changes()
        if changes:
            gained = {gfn for gfn, addresses in changes.items() if self._gained(gfn, addresses)}
            self._pending += self.watches.update(changes)
            if self._points.active:
                self._pending += self._points.in_front(page for pages in changes.values() for page in pages)
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

    def _send_pending(self, *others: bytes) -> None:
        """At once, and then `others`."""
        self._flush_pending()
        pending, self._pending = self._pending, []
        self._gdb.checked(*pending, *others)

    # ---- events

    def _table_write(self, address: int) -> None:
        self._stored(self.watches.tables_at(address & -bits.PAGE_SIZE))

    def _stored(self, tables: Iterable[int]) -> None:
        for gfn in tables:
            self.log.add("table_write", 0, gfn)
            self.engine.table_written(gfn)
        self._refresh()

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
        register = {"wrmsr": "efer", "lmsw": "cr0"}.get(instruction.kind, instruction.kind)
        self._control_is(control_state(self._gdb.read_registers(), self.state.pkru), rip, register, instruction.text)

    def _control_is(self, state: ControlState, rip: int, register: str, text: str) -> None:
        self.state = state
        self.log.add("control", rip, getattr(state, register), text)
        self.engine.control(state)
        self._refresh()

    def _notice_efer(self, registers: Mapping[str, int]) -> None:
        """Takes over an EFER written since the last stop by a WRMSR that had no breakpoint, where none has."""
        if self._msr_writes or registers["efer"] == self.state.efer:
            return
        state = replace(self.state, efer=registers["efer"])
        self._control_is(state, registers["rip"], "efer", "EFER, seen at the next stop")

    # ---- what somebody else did to the standing guest

    def stored(self, gfns: Iterable[int]) -> None:
        """Takes it that something was stored to these frames of the standing guest, which no watchpoint tells."""
        gfns = set(gfns)
        self._stored(sorted(gfns & self.engine.guest_tables().keys()))
        self._scan_code(self.code.forget(gfns))

    def control_written(self, register: str, text: str) -> None:
        """Takes it that `register` (cr0, cr3, cr4, efer) of the standing guest was written by somebody else."""
        registers = self._gdb.read_registers()
        if register == "cr3":
            self._cr3_load(registers["rip"], registers["cr3"], text)
        else:
            self._control_is(control_state(registers, self.state.pkru), registers["rip"], register, text)

    def invalidated(self, va: int, text: str) -> None:
        """Takes it that the translation of `va` was flushed by somebody else."""
        self.log.add("invlpg", 0, va, text)
        self.engine.invlpg(va)
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
        self._send_pending(*(watch_packet(page, bits.PAGE_SIZE, insert=False) for page in watched))
        return watched

    def rewatch(self, pages: Iterable[int]) -> None:
        pages = [page for page in pages if self.watches.tables_at(page)]
        self._pending += [watch_packet(page, bits.PAGE_SIZE) for page in pages]
        self._pending += self._points.in_front(pages)

    def refresh(self) -> None:
        """Takes over what changed in the engine outside an event (the faults that a check drives)."""
        self._refresh()
