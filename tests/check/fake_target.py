"""A machine that is not there: RAM and the model processor behind the CheckTarget interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.check.target import OPINIONS
from harness.engine import Bytes
from harness.machine.mailbox import Status
from harness.x86.access import Access
from harness.x86.bits import VECTOR_GP, VECTOR_UD
from harness.x86.control import ControlState
from tests.check.model_mmu import Fault, ModelMmu

Twist = Callable[[npt.NDArray[Any]], None]


class ModelProber:
    """Serves probes one after the other; `_probe` says how. memory: what the processor accesses. `twist` may falsify
    the records that come back, as a broken oracle or a broken processor would."""

    def __init__(self, memory: Bytes) -> None:
        self._memory = memory
        self.can_probe = True
        self.twist: Twist | None = None

    def run_probes(self, probes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        result = probes.copy()
        for record in result:
            self._probe(record)
        if self.twist:
            self.twist(result)
        return result

    def _probe(self, record: Any) -> None:
        raise NotImplementedError

    @staticmethod
    def _fault(record: Any, va: int, code: int) -> None:
        """code: as `Fault` has it."""
        if code < 0:
            record["status"], record["code"] = Status.EXCEPTION, VECTOR_GP
        else:
            record["status"], record["code"], record["cr2"] = Status.FAULT, code, va

    def _access(self, record: Any, address: int, kind: int) -> None:
        """A load of what is no memory gives 0, as one of a device might."""
        memory = self._memory
        record["status"] = Status.DONE
        inside = address + 8 <= len(memory)
        if kind == Access.STORE:
            assert inside, f"a store outside RAM at {address:#x}"
            memory[address : address + 4].view(np.uint32)[0] = record["value"]
        elif kind == Access.LOAD:
            record["value"] = memory[address : address + 4].view(np.uint32)[0] if inside else 0
        else:
            assert inside, f"a fetch outside RAM at {address:#x}"
            code = memory[address : address + 8].tobytes()
            if code[0] == 0xB8 and code[5:] == b"\xcd\x80\x90":
                record["value"] = int.from_bytes(code[1:5], "little")
            else:
                record["status"], record["code"] = Status.EXCEPTION, VECTOR_UD


class FakeTarget(ModelProber):
    """The guest's own probe server: the model processor on the guest's tables, with its TLB."""

    architectural = False
    opinions = OPINIONS

    def __init__(self, ram: Bytes, control: ControlState) -> None:
        super().__init__(ram)
        self._ram = ram
        self.mmu = ModelMmu(ram, control)
        self.plants: list[tuple[int, bytes]] = []
        self.batches: list[int] = []
        self.gva2gpa_lies = 0
        self.probed: set[int] = set()

    @property
    def ram(self) -> Bytes:
        return self._ram

    def run_probes(self, probes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        self.batches.append(len(probes))
        self.probed.update((probes["va"] >> np.uint64(12)).tolist())
        return super().run_probes(probes)

    def _probe(self, record: Any) -> None:
        va, op = int(record["va"]), int(record["op"])
        try:
            gpa = self.mmu.translate(va, op)
        except Fault as fault:
            self._fault(record, va, fault.code)
        else:
            self._access(record, gpa, op & 3)

    def plant(self, writes: list[tuple[int, bytes]]) -> None:
        for address, data in writes:
            self.plants.append((address, data))
            self._ram[address : address + len(data)] = np.frombuffer(data, np.uint8)

    def gva2gpa(self, addresses: list[int]) -> list[int | None]:
        return [self._walk(va) for va in addresses]

    def _walk(self, va: int) -> int | None:
        """The debug walk: no rights and no A bits; a supervisor load on a machine that forgets."""
        spare = ModelMmu(self._ram, self.mmu.control)
        spare.sets_accessed = spare.sets_dirty = False
        for op in (0, 4):  # one of the rings may look, SMAP or not
            try:
                return spare.translate(va, op) + self.gva2gpa_lies
            except Fault:
                continue
        return None

    def read_virtual(self, addresses: list[int], count: int) -> list[bytes | None]:
        gpas = map(self._walk, addresses)
        return [None if gpa is None else self._ram[gpa : gpa + count].tobytes() for gpa in gpas]

    def info_tlb(self) -> str:
        """All pages that were ever probed and are mapped, as the monitor prints them."""
        lines = []
        for page in sorted(self.probed):
            gpa = self._walk(page << 12)
            if gpa is not None:
                lines.append(f"{page << 12:016x}: {gpa - self.gva2gpa_lies:016x} ----A--UW")
        return "\n".join(lines)
