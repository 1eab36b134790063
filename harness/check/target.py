"""What the cross-check needs of a machine stopped at a checkpoint. Implemented by the session."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy.typing as npt

from harness.engine import Bytes
from harness.x86.access import Access
from harness.x86.control import ControlState

ORACLES: Final = ("probe", "gva2gpa", "memory", "info_tlb", "ad_bits")


@dataclass(frozen=True, slots=True)
class Stop:
    """A checkpoint: where the guest stands. state: the processor's registers, read from the processor.

    stale: the guest says that changes are pending which the TLB may not have seen. ambient: (page address,
    access) of what the probe server itself touches while it serves (its code, stack, mailbox, descriptor
    tables): their A and D bits are set by serving, whatever is probed.
    """

    index: int
    name: str
    state: ControlState
    stale: bool
    final: bool
    ambient: tuple[tuple[int, Access], ...] = ()


class CheckTarget(Protocol):
    """The machine as the oracles use it."""

    @property
    def ram(self) -> Bytes:
        """Guest RAM, live, through the shared map (uint8, gfn = mfn in observe mode). Never write code here."""

    @property
    def can_probe(self) -> bool:
        """Whether the guest has a probe server."""

    def run_probes(self, probes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Runs `probes` (dtype harness.machine.mailbox.PROBE, at most PROBE_MAX) in the guest, in order, and gives
        the same records with value, status, code and cr2 filled in. Raises MachineError if the guest is lost."""

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

    checks: oracle (probe, gva2gpa, memory, info_tlb, ad_bits) -> how many answers were compared.
    exceptions: name of a known difference between QEMU and silicon, or of a weak oracle's known bug -> count.
    """

    checks: dict[str, int]
    mismatches: list[Mismatch]
    exceptions: dict[str, int]
    seconds: float = 0.0
