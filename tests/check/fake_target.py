"""A machine that is not there: RAM and the model processor behind the CheckTarget interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.check.target import OPINIONS
from harness.engine import Bytes
from harness.machine.mailbox import Status
from harness.x86.control import ControlState
from tests.check.model_mmu import Fault, ModelMmu

Twist = Callable[[npt.NDArray[Any]], None]


class FakeTarget:
    """`twist` may falsify the records that come back, as a broken oracle or a broken processor would."""

    architectural = False
    opinions = OPINIONS

    def __init__(self, ram: Bytes, control: ControlState) -> None:
        self._ram = ram
        self.mmu = ModelMmu(ram, control)
        self.can_probe = True
        self.twist: Twist | None = None
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
        result = probes.copy()
        for record in result:
            self._probe(record)
        if self.twist:
            self.twist(result)
        return result

    def _probe(self, record: Any) -> None:
        va, op = int(record["va"]), int(record["op"])
        try:
            gpa = self.mmu.translate(va, op)
        except Fault as fault:
            if fault.code < 0:
                record["status"], record["code"] = Status.EXCEPTION, 13
            else:
                record["status"], record["code"], record["cr2"] = Status.FAULT, fault.code, va
            return
        record["status"] = Status.DONE
        kind = op & 3
        inside = gpa + 8 <= len(self._ram)
        if kind == 1:
            assert inside, f"a store outside RAM at {gpa:#x}"
            self._ram[gpa : gpa + 4].view(np.uint32)[0] = record["value"]
        elif kind == 0:
            record["value"] = self._ram[gpa : gpa + 4].view(np.uint32)[0] if inside else 0
        else:
            assert inside, f"a fetch outside RAM at {gpa:#x}"
            code = self._ram[gpa : gpa + 8].tobytes()
            if code[0] == 0xB8 and code[5:] == b"\xcd\x80\x90":
                record["value"] = int.from_bytes(code[1:5], "little")
            else:
                record["status"], record["code"] = Status.EXCEPTION, 6

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
