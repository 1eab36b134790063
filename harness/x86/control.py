"""The control state that decides how addresses are translated: CR0, CR3, CR4, EFER and PKRU."""

from __future__ import annotations

from dataclasses import dataclass

from harness.x86 import bits, modes
from harness.x86.modes import PagingMode


@dataclass(frozen=True, slots=True)
class ControlState:
    """What the guest believes is in its control registers. Values as the registers hold them.

    `pkru` is known only where the guest reports it (the harness reads it at a checkpoint): WRPKRU is not a
    privileged instruction and nothing intercepts it.
    """

    cr0: int = bits.CR0_PE
    cr3: int = 0
    cr4: int = 0
    efer: int = 0
    pkru: int = 0

    @property
    def mode(self) -> PagingMode:
        """The paging mode these registers select (SDM vol. 3A, 4.1.1)."""
        if not self.cr0 & bits.CR0_PG:
            return modes.UNPAGED
        if not self.cr4 & bits.CR4_PAE:
            return modes.NOPAE
        if not self.efer & bits.EFER_LME:
            return modes.PAE
        return modes.LONG5 if self.cr4 & bits.CR4_LA57 else modes.LONG4

    @property
    def root_gpa(self) -> int:
        """Guest-physical address of the root table (0 when unpaged)."""
        return self.cr3 & self.mode.root_mask

    @property
    def wp(self) -> bool:
        return bool(self.cr0 & bits.CR0_WP)

    @property
    def pse(self) -> bool:
        """Whether PS is honoured in 32-bit paging; PAE and long modes always honour it."""
        return bool(self.cr4 & (bits.CR4_PSE | bits.CR4_PAE))

    @property
    def nxe(self) -> bool:
        return bool(self.efer & bits.EFER_NXE)

    @property
    def smep(self) -> bool:
        return bool(self.cr4 & bits.CR4_SMEP)

    @property
    def smap(self) -> bool:
        return bool(self.cr4 & bits.CR4_SMAP)

    @property
    def pke(self) -> bool:
        """Protection keys are checked: CR4.PKE in a long mode (SDM vol. 3A, 4.6.2)."""
        return bool(self.cr4 & bits.CR4_PKE) and self.mode.canonical

    @property
    def reports_fetch(self) -> bool:
        """Whether a #PF error code tells an instruction fetch (SDM vol. 3A, 4.7)."""
        return self.smep or (bool(self.cr4 & bits.CR4_PAE) and self.nxe)
