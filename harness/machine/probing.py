"""Probes on any shadow, without the guest's help: the tables that map the stubs, and the VMCB that runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from harness.machine import monitor_abi as abi
from harness.machine.mailbox import PROBE
from harness.machine.ram import RamMap
from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.modes import PagingMode

Runner = Callable[[int, int, int], None]  # machine address of the records, how many, PKRU

BATCH: Final = abi.VCPU_BUFFER_BYTES // PROBE.itemsize - 1
"""Probes in one hand-over: one less than a root has entries in a long mode, so that at least one entry is free."""

_ROOT, _LEVEL1, _LEVEL2, _LEVEL3, _LEVEL4, _CODE = range(abi.VCPU_PROBE_TABLES, abi.VCPU_BUFFER, 4096)
_TABLE: Final = bits.PTE_P | bits.PTE_RW | bits.PTE_US | bits.PTE_A
_STUBS: Final = {
    abi.STUB_LOAD: b"\x8b\x03\x0f\x01\xd9",  # mov (%rbx), %eax; vmmcall
    abi.STUB_STORE: b"\x89\x03\x0f\x01\xd9",  # mov %eax, (%rbx); vmmcall
    abi.STUB_FETCH: b"\xff\xe3",  # jmp *%rbx
}  # the same bytes do the same with EBX in 32-bit code

_PAE_ROOT_BYTES: Final = 32

# Everything that can leave, but what the host's devices may cause at any time.
_EVERYTHING: Final = (1 << 64) - 1 & ~sum(
    abi.intercept_bit(code) for code in (abi.ExitCode.INTR, abi.ExitCode.SMI, abi.ExitCode.INIT, abi.ExitCode.VINTR)
)


class WalkRoot(Protocol):
    """What the hardware is to walk (`harness.engine.ShadowRoot` is one)."""

    @property
    def mode(self) -> PagingMode: ...
    @property
    def root(self) -> int: ...
    @property
    def control(self) -> ControlState: ...


class ProbeTables:
    """The probe area of one vCPU: at `block` + PROBE_TABLES a copy of the root, four tables, and the stubs' code."""

    def __init__(self, ram: RamMap, area: int, index: int) -> None:
        self._ram = ram
        self._area = area
        self._block = block = abi.vcpu_block(area, index)
        self._root = ram.bytes[block + _ROOT : block + _ROOT + 4096].view(np.uint64)
        self._vmcb = ram.view(block + abi.VCPU_PROBE_VMCB, abi.VMCB)
        self._box = ram.view(block, abi.VCPU)
        self._laid = False

    def _lay(self) -> None:
        """Writes what never changes. The code has not run yet, so no translated block of QEMU's is stale."""
        block, ram = self._block, self._ram
        for table, below in ((_LEVEL2, _LEVEL1), (_LEVEL3, _LEVEL2), (_LEVEL4, _LEVEL3)):
            ram.write(block + table, (block + below | _TABLE).to_bytes(8, "little"))
        code = block + _CODE
        for page, rights in enumerate((0, bits.PTE_US)):  # ring 0 must not execute a user page: SMEP
            ram.write(block + _LEVEL1 + 8 * page, (code | bits.PTE_P | bits.PTE_A | rights).to_bytes(8, "little"))
        for at, stub in _STUBS.items():
            ram.write(code + at, stub)
        self._laid = True

    def run(self, runner: Runner, records: npt.NDArray[Any], root: WalkRoot, pkru: int) -> npt.NDArray[Any]:
        """See `Vcpu.probe`. `runner` has the monitor run what is in the buffer."""
        if not self._laid:
            self._lay()
        result = np.array(records, dtype=PROBE)
        self._set_vmcb(root)
        for start in range(0, len(result), BATCH):
            self._run_batch(runner, result[start : start + BATCH], root, pkru)
        return result

    def _run_batch(self, runner: Runner, batch: npt.NDArray[Any], root: WalkRoot, pkru: int) -> None:
        buffer = self._block + abi.VCPU_BUFFER
        operations = batch["op"].copy()
        second = self._set_roots(batch["va"], root)
        batch["op"] |= second
        end = buffer + batch.nbytes
        self._ram.bytes[buffer:end] = batch.view(np.uint8)
        runner(buffer, len(batch), pkru)
        batch[:] = self._ram.bytes[buffer:end].view(PROBE)
        batch["op"] = operations

    def _set_roots(self, addresses: npt.NDArray[np.uint64], root: WalkRoot) -> npt.NDArray[np.uint32]:
        """Copies the root with the stubs in an entry that no address of the batch is behind. Gives what goes into `op`.

        In PAE's four entries there may be none: then a second copy has them in another entry, for the addresses
        behind the first.
        """
        top = root.mode.levels[0]
        entries = (addresses >> np.uint64(top.shift)).astype(np.int64) & (top.entries - 1)
        use = np.bincount(entries, minlength=top.entries)
        first, other = np.argsort(use, kind="stable")[:2].tolist()
        source = self._ram.bytes[root.root : root.root + 8 * top.entries].view(np.uint64)
        copies = 1 if len(use) > BATCH else 2
        below = (_LEVEL2, _LEVEL3, _LEVEL4)[top.number - 3]
        # PDPTEs of PAE have no rights: what is one in the other formats is reserved (SDM vol. 3A, table 4-8).
        entry = self._block + below | (_TABLE if top.has_rights else bits.PTE_P)
        for copy, slot in zip(range(copies), (first, other), strict=False):
            at = copy * _PAE_ROOT_BYTES // 8
            self._root[at : at + len(source)] = source
            self._root[at + slot] = entry
            self._box["probe_root"][copy] = self._block + _ROOT + 8 * at
            self._box["probe_stub"][copy] = root.mode.sign_extend(slot << top.shift)
        second = np.zeros(len(entries), np.uint32)
        if copies == 2:
            second[entries == first] = abi.SECOND_ROOT
        return second

    def _set_vmcb(self, root: WalkRoot) -> None:
        control, vmcb = root.control, self._vmcb
        vmcb["intercept_cr"] = vmcb["intercept_dr"] = vmcb["intercept_exceptions"] = 0xFFFF_FFFF
        vmcb["intercept"] = _EVERYTHING
        vmcb["iopm_base"], vmcb["msrpm_base"] = self._area + abi.AREA_IOPM, self._area + abi.AREA_MSRPM
        self._box["host_cr4"] = control.cr4 & abi.HOST_CR4
        for name in abi.FLAT_DATA_SEGMENTS:
            vmcb[name] = abi.FLAT_DATA
        vmcb["cs"] = abi.FLAT_CODE64 if root.mode.canonical else abi.FLAT_CODE32
        vmcb["dr6"], vmcb["dr7"], vmcb["g_pat"] = abi.DR6_RESET, abi.DR7_RESET, abi.PAT_RESET
        vmcb["cr0"], vmcb["cr4"] = control.cr0, control.cr4
        vmcb["efer"] = control.efer | bits.EFER_SVME
