"""What the cross-check needs of a machine stopped at a checkpoint. Implemented by the sessions.

In observe mode the guest stands at its checkpoint and probes by itself; the processor walks the guest's own tables. In
live mode probes run beside the guest, on the shadow, with the engine behind its faults.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy.typing as npt

from harness.engine import Bytes
from harness.x86.access import Access
from harness.x86.control import ControlState

ORACLES: Final = ("probe", "gva2gpa", "memory", "info_tlb", "ad_bits")
OPINIONS: Final = frozenset(("gva2gpa", "memory", "info_tlb"))
"""The weak oracles among them: they can be asked only while the processor itself runs on the guest's tables."""
NO_MEMORY: Final = 0x100
"""A probe's status beyond `harness.machine.mailbox.Status`: in live mode, the engine says that the guest's tables lead
to a guest frame without a machine frame."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A checkpoint: where the guest stands. state: the processor's registers, read from the processor.

    stale: the guest says that changes are pending which the TLB may not have seen. ambient: (page address,
    access) of what the probe server itself touches while it serves (its code, stack, mailbox, descriptor
    tables): their A and D bits are set by serving, whatever is probed. Nothing in live mode.
    """

    index: int
    name: str
    state: ControlState
    stale: bool
    final: bool
    ambient: tuple[tuple[int, Access], ...] = ()


class ProbeServer(Protocol):
    """What runs probes."""

    def run_probes(self, probes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Runs `probes` (dtype harness.machine.mailbox.PROBE, at most PROBE_MAX), in order, and gives the same records
        with value, status, code and cr2 filled in. Raises MachineError if the guest is lost.

        On the shadow a #PF goes to the engine: one that it resolves is tried again, one that it would inject is a FAULT
        with its code, #GP an EXCEPTION, and MMIO or AWAY end the probe with the status NO_MEMORY.
        """


class CheckTarget(ProbeServer, Protocol):
    """The machine as the oracles use it."""

    @property
    def ram(self) -> Bytes:
        """Guest-physical memory, live (uint8). Never write code here."""

    @property
    def can_probe(self) -> bool:
        """Whether probes can be run."""

    @property
    def architectural(self) -> bool:
        """Whether error codes and A and D bits come from the engine, by the book (live mode). False: the processor
        walks the guest's own tables, and both are QEMU's."""

    @property
    def opinions(self) -> frozenset[str]:
        """Which of OPINIONS can be asked about the guest. The methods of the others are not called."""

    def plant(self, writes: list[tuple[int, bytes]]) -> None:
        """Writes (guest-physical address, bytes) so that QEMU drops translated code of those bytes."""

    def gva2gpa(self, addresses: list[int]) -> list[int | None]:
        """QEMU's debug walk over QMP: the physical address of each, None when unmapped."""

    def read_virtual(self, addresses: list[int], count: int) -> list[bytes | None]:
        """`count` bytes behind each virtual address by the gdbstub's `m`; None where it answers an error."""

    def info_tlb(self) -> str:
        """The text of the monitor's `info tlb`."""


@dataclass(slots=True)
class Mismatch:
    """One disagreement. field names what differs: verdict, code, frame, cr2, accessed, dirty, mapping ...

    guest, shadow, hardware: each answer as a short text; guest_walk, shadow_walk: level by level, JSON-able.
    """

    oracle: str
    field: str
    checkpoint: str
    va: int
    access: str
    guest: str
    shadow: str
    hardware: str
    guest_walk: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    shadow_walk: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    spti: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(slots=True)
class CheckReport:
    """What one checkpoint's cross-check did.

    checks: oracle (those of ORACLES that the target has) -> how many answers were compared.
    exceptions: name of a known difference between QEMU and silicon, or of a weak oracle's known bug -> count.
    """

    checks: dict[str, int]
    mismatches: list[Mismatch]
    exceptions: dict[str, int]
    seconds: float = 0.0
