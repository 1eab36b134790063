"""Running a kernel that knows nothing of the harness: no mailbox, no probe server, SeaBIOS beneath it.

The machine runs free until the kernel has turned paging on; from there every event is observed. Now and then
the guest is stopped wherever it is and checked by the oracles that need no help from it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from harness.catalogue import Guest
from harness.check.target import Stop
from harness.machine.deadline import Deadline
from harness.machine.errors import DeadlineExceeded, StubClosed
from harness.machine.image import Image
from harness.machine.qemu import Machine, MachineSpec
from harness.options import RunOptions, Watcher
from harness.session import Session
from harness.x86 import bits

MEMORY_MIB: Final = 256
TIME_LIMIT: Final = 60.0
SLICE: Final = 0.005  # seconds between two looks whether paging is on
SETTLE: Final = 1.0  # seconds with paging on, but below: a kernel that lives in the lower half


def kernel_spec(options: RunOptions) -> MachineSpec:
    """The machine for `options.kernel`."""
    return MachineSpec(
        cpu=options.cpu or ("max,-la57" if options.paging == "long4" else "max"),
        ram_mib=options.memory_mib or MEMORY_MIB,
        kernel=options.kernel,
        initrd=options.initrd,
        append=options.append,
    )


class KernelSession(Session):
    """A session for a foreign kernel: entered once paging is on and the loader's part is over."""

    msr_writes = False

    def __init__(self, path: Path, options: RunOptions, watcher: Watcher | None) -> None:
        options = replace(options, kernel=path, time_limit=options.time_limit or TIME_LIMIT)
        image = Image(path, 0, (), {})
        guest = Guest(path.name, "a foreign kernel", (options.paging or "any",))
        super().__init__(guest, options.paging or "any", options, watcher, image=image)

    def _launch(self) -> Machine:
        return Machine(kernel_spec(self.options))

    def _reach_entry(self) -> None:
        """Lets the machine run in short slices until the kernel proper runs. Raises DeadlineExceeded or StubClosed.

        That is: paging is on, and the code runs in the upper half of the address space (a decompressor runs in the
        lower one, amidst compressed bytes that look like anything), or it has been on for SETTLE seconds.
        """
        gdb = self.machine.gdb
        settled: Deadline | None = None
        while True:
            gdb.resume()
            try:
                reply = gdb.wait_stop(Deadline(SLICE))
            except DeadlineExceeded:
                reply = gdb.interrupt(Deadline(5.0))
            if reply.exited:
                raise StubClosed("the machine ended before the kernel had turned paging on")
            registers = gdb.read_registers()
            if registers["cr0"] & bits.CR0_PG:
                settled = settled or Deadline(SETTLE)
                upper = 1 << (63 if registers["efer"] & bits.EFER_LMA else 31)
                if registers["rip"] & upper or settled.passed:
                    return
            self._deadline.check("a kernel that turns paging on")

    # Code that a kernel brings in, moves or patches after it was scanned is found by the self-check only: that is
    # reported and repaired, but no fault of the kernel's.
    forgives_misses = True

    def run_to_checkpoint(self, name: str | None = None) -> Stop | None:
        stop = super().run_to_checkpoint(name)
        self.record.paging = self.observer.state.mode.name
        return stop

    def _judge_timeout(self, registers: dict[str, int]) -> None:
        """A kernel is not expected to end: its time limit is the end of the checking."""
        self.record.verdict = "pass"
        self.record.reason = f"time limit of {self._deadline.seconds:g} s reached, everything checked agreed"

    def _judge_exit(self, status: int | None) -> None:
        record = self.record
        if status != 0:
            record.verdict, record.reason = "error", f"QEMU ended with status {status}"
        elif self.machine.powered_off:
            record.verdict, record.reason = "pass", "the kernel powered the machine off"
        else:
            record.verdict, record.reason = "crash", "the machine was reset"
