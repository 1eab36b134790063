"""The cross-check's target in live mode: a second VMCB probes the shadow tables without the guest's help."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from harness.check.target import NO_MEMORY
from harness.engine import GENERAL_PROTECTION, RETRY
from harness.intercept.live import Live
from harness.machine.errors import MachineError
from harness.machine.mailbox import MAILBOX, Status
from harness.machine.ram import Bytes
from harness.x86.bits import VECTOR_GP

ROUNDS: Final = 8
"""How often one probe may fault and be served. The check has brought every mapping in before; another probe's fill
may have taken its table away again."""


class LiveTarget:
    """`harness.check.target.CheckTarget` for the guest that `live` drives.

    Each probe is one VMRUN on a copy of the shadow's root, in its own ring, with nothing of the guest's running. What
    faults is handed to the engine, as a fault of the guest would be: served and run again, or what the guest would get.
    """

    opinions: frozenset[str] = frozenset()  # QEMU's debug walkers would walk the monitor's tables
    architectural = True  # error codes come from the engine

    def __init__(self, live: Live, mailbox: int | None) -> None:
        self._live = live
        view = live.domain.view
        end = None if mailbox is None else mailbox + MAILBOX.itemsize
        self.mailbox = None if mailbox is None else view.bytes[mailbox:end].view(MAILBOX).reshape(())
        self.probes_run = 0
        self.served = 0

    @property
    def ram(self) -> Bytes:
        return self._live.domain.view.bytes

    @property
    def can_probe(self) -> bool:
        return True

    def run_probes(self, probes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Runs `probes` (dtype PROBE) on the hardware; the same records with the answers filled in."""
        live = self._live
        result = probes.copy()
        waiting = np.arange(len(probes))
        for turn in range(ROUNDS):
            if not len(waiting):
                break
            done = live.vcpu.probe(probes[waiting], live.engine.root, live.state.pkru)
            result[waiting] = done
            self.probes_run += len(waiting)
            faulted = waiting[done["status"] == Status.FAULT]
            again = []
            for at in faulted.tolist():
                if self._serve(result, at):
                    again.append(at)
            self.served += len(again)
            waiting = np.asarray(again, np.intp)
            if turn == ROUNDS - 2 and len(waiting):
                waiting = self._one_at_a_time(probes, result, waiting)
        if len(waiting):
            result["status"][waiting] = Status.NOT_RUN  # faults for ever: told as a mismatch
        return result

    def _one_at_a_time(
        self, probes: npt.NDArray[Any], result: npt.NDArray[Any], waiting: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.intp]:
        """Probes that disturb each other: each is served and run alone."""
        live = self._live
        left = []
        for at in waiting.tolist():
            for _ in range(ROUNDS):
                result[at : at + 1] = live.vcpu.probe(probes[at : at + 1], live.engine.root, live.state.pkru)
                if result["status"][at] != Status.FAULT or not self._serve(result, at):
                    break
            else:
                left.append(at)
        return np.asarray(left, np.intp)

    def _serve(self, result: npt.NDArray[Any], at: int) -> bool:
        """Hands the #PF of probe `at` to the engine. Whether the probe is to be run again."""
        live = self._live
        va, access = int(result["va"][at]), int(result["op"][at])
        answer = live.engine.shadow_fault(va, access)
        if answer == RETRY:
            return True
        if answer >= 0:
            result["code"][at] = answer
        elif answer == GENERAL_PROTECTION:
            result["status"][at], result["code"][at] = Status.EXCEPTION, VECTOR_GP
        else:
            result["status"][at] = NO_MEMORY  # a device, or nothing: the guest's access would be emulated
        return False

    def plant(self, writes: list[tuple[int, bytes]]) -> None:
        for address, data in writes:
            self._live.domain.write_code(address, data)

    def gva2gpa(self, addresses: list[int]) -> list[int | None]:
        raise MachineError("the debug walker sees the monitor's tables, not the guest's")

    def read_virtual(self, addresses: list[int], count: int) -> list[bytes | None]:
        raise MachineError("the debug walker sees the monitor's tables, not the guest's")

    def info_tlb(self) -> str:
        raise MachineError("the monitor's tables are not the guest's")
