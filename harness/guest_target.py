"""The stopped guest as the cross-check sees it: its probe server, its RAM, and QEMU's weaker answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.check.target import OPINIONS
from harness.intercept.interception import Outcome, Ran
from harness.intercept.observe import Observer
from harness.machine.deadline import Deadline
from harness.machine.errors import MachineError
from harness.machine.mailbox import MAILBOX, PROBE_MAX, Command
from harness.machine.qemu import Machine
from harness.machine.ram import Bytes

PROBE_SECONDS = 20.0  # for one batch: far beyond what the slowest takes


def serve(box: npt.NDArray[Any], probes: npt.NDArray[Any], run: Callable[[Deadline], Ran]) -> npt.NDArray[Any]:
    """Has the guest whose mailbox is `box` (a live view) serve one batch of probes; `run` lets it run to its next stop.

    Raises ValueError for more than the mailbox holds, MachineError when the guest is lost in it.
    """
    count = len(probes)
    if count > PROBE_MAX:
        raise ValueError(f"{count} probes in one batch, at most {PROBE_MAX} fit the mailbox")
    box["probes"][:count] = probes
    box["count"] = count
    box["done"] = 0
    box["command"] = Command.PROBE
    ran = run(Deadline(PROBE_SECONDS))
    if ran.outcome is not Outcome.STOP or int(box["done"]) != count:
        raise MachineError(f"the guest was lost in a batch of {count} probes ({ran.outcome.value})")
    return np.array(box["probes"][:count])


class GuestTarget:
    """`harness.check.target.CheckTarget` for a guest on `machine`, stopped at its checkpoint symbol.

    mailbox: physical address of its mailbox, None for a guest without a probe server.
    """

    architectural = False
    opinions = OPINIONS

    def __init__(self, machine: Machine, observer: Observer, mailbox: int | None) -> None:
        self._machine = machine
        self._observer = observer
        self.mailbox = None if mailbox is None else machine.ram.view(mailbox, MAILBOX)
        self.probes_run = 0

    @property
    def ram(self) -> Bytes:
        return self._machine.ram.bytes

    @property
    def can_probe(self) -> bool:
        return self.mailbox is not None

    def run_probes(self, probes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One batch through the guest's probe server. Raises MachineError when the guest is lost in it."""
        if self.mailbox is None:
            raise MachineError("this guest has no probe server")
        stores = np.unique(probes["va"][(probes["op"] & 3) == 1] & np.uint64(0xFFFF_FFFF_FFFF_F000))
        observer = self._observer
        paused = observer.unwatch(stores.tolist())
        log = observer.log.total
        done = serve(self.mailbox, probes, observer.run)
        observer.rewatch(paused)
        if observer.log.total != log:
            raise MachineError("the guest's probe server changed translations while it served")
        self.probes_run += len(probes)
        return done

    def plant(self, writes: list[tuple[int, bytes]]) -> None:
        self._machine.gdb.write_physical(writes)

    def gva2gpa(self, addresses: list[int]) -> list[int | None]:
        return self._machine.monitor.gva2gpa(addresses)

    def read_virtual(self, addresses: list[int], count: int) -> list[bytes | None]:
        return self._machine.gdb.read_memory(addresses, count)

    def info_tlb(self) -> str:
        return self._machine.monitor.human("info tlb")
