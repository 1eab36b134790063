"""The known differences between QEMU and silicon, and the known bugs of QEMU's weak oracles, as a table.

Nothing that differs passes unless a row here names it and its predicate holds. Each pass is counted under the
row's name and printed in every report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from harness.x86 import bits
from harness.x86.access import Access
from harness.x86.control import ControlState


@dataclass(frozen=True, slots=True)
class Known:
    """One named exception. qemu, silicon: what each does. since: the QEMU version in which it was seen."""

    name: str
    qemu: str
    silicon: str
    since: str


Adapt = Callable[[int, Access, ControlState], int]


@dataclass(frozen=True, slots=True)
class KnownCode:
    """A named difference in a #PF error code. adapt: silicon's code to QEMU's (the same where it does not apply)."""

    known: Known
    adapt: Adapt


RSVD_P0: Final = Known(
    "qemu-rsvd-p0",
    "a fault for a reserved bit reports P=0",
    "P=1 with RSVD=1 (SDM vol. 3A, 4.7)",
    "7.2 (target/i386/tcg/sysemu/excp_helper.c, do_fault_rsvd)",
)
NOPAE_ID_BIT: Final = Known(
    "qemu-nopae-id-bit",
    "a fetch fault sets I/D whenever EFER.NXE=1, PAE paging or not",
    "I/D only with CR4.SMEP, or CR4.PAE and EFER.NXE (SDM vol. 3A, 4.7)",
    "7.2 (excp_helper.c, do_fault_cont)",
)
PDPTE_ACCESSED: Final = Known(
    "pdpte-accessed",
    "the walk sets the A bit of PAE PDPTEs",
    "bit 5 of a PDPTE is reserved; nothing sets it (SDM table 4-8)",
    "7.2",
)
PDPTE_REREAD: Final = Known(
    "qemu-pdpte-reread",
    "PAE PDPTEs are read again on every walk",
    "four are loaded at the CR3 load and kept (SDM vol. 3A, 4.4.1)",
    "7.2",
)
UPPER_A_ON_FAULT: Final = Known(
    "upper-a-on-fault",
    "A is set in each upper entry as the walk goes down, though it faults further down",
    "may set them or not (SDM vol. 3A, 4.8)",
    "7.2",
)
STALE_ALLOWED: Final = Known(
    "stale-allowed",
    "gives the translation of before a change that was not flushed yet, or the new one",
    "the same freedom (SDM vol. 3A, 4.10.4.3)",
    "any",
)
UNTAGGED: Final = Known(
    "untagged",
    "no room for a tag in the frame: the load's value was compared with RAM, or the probe was not run",
    "not a difference: the frame is less well proven",
    "any",
)
TABLE_NOT_VISIBLE: Final = Known(
    "table-not-visible",
    "a table in the ROM window or in a device: the RAM map does not show what the walk reads; not probed",
    "not a difference: nothing is known",
    "any",
)
INFO_TLB_4M: Final = Known(
    "info-tlb-4m-mask",
    "frames of 4 MiB pages are printed without PSE-36's address bits 39:32",
    "not applicable: QEMU's monitor",
    "7.2 (target/i386/monitor.c, tlb_info_32)",
)
INFO_TLB_PAE_2M: Final = Known(
    "info-tlb-pae-2m-mask",
    "frames of PAE 2 MiB pages are printed masked to 1 MiB, with bits 63:52 left in",
    "not applicable: QEMU's monitor",
    "7.2 (target/i386/monitor.c, tlb_info_pae32)",
)
INFO_TLB_NX: Final = Known(
    "info-tlb-pae-nx-in-frame",
    "NX and the other bits above 51 of a PAE entry are printed as part of the frame",
    "not applicable: QEMU's monitor",
    "7.2 (target/i386/monitor.c, tlb_info_pae32)",
)


def _without_present(code: int, _access: Access, _control: ControlState) -> int:
    return code & ~bits.PF_P if code & bits.PF_RSVD else code


def _with_fetch(code: int, access: Access, control: ControlState) -> int:
    applies = access.is_fetch and control.nxe and not control.cr4 & bits.CR4_PAE
    return code | bits.PF_I if applies else code


CODE_EXCEPTIONS: Final = (KnownCode(RSVD_P0, _without_present), KnownCode(NOPAE_ID_BIT, _with_fetch))

ALL: Final = {
    known.name: known
    for known in (
        RSVD_P0,
        NOPAE_ID_BIT,
        PDPTE_ACCESSED,
        PDPTE_REREAD,
        UPPER_A_ON_FAULT,
        STALE_ALLOWED,
        UNTAGGED,
        TABLE_NOT_VISIBLE,
        INFO_TLB_4M,
        INFO_TLB_PAE_2M,
        INFO_TLB_NX,
    )
}


def explain_code(predicted: int, seen: int, access: Access, control: ControlState) -> tuple[str, ...] | None:
    """The names of the exceptions that turn the #PF code `predicted` into `seen`; None when none do.

    Each row is tried with and without the others: a later QEMU may have lost one quirk and kept another.
    """
    reached: dict[int, tuple[str, ...]] = {predicted: ()}
    for row in CODE_EXCEPTIONS:
        for code, names in list(reached.items()):
            reached.setdefault(row.adapt(code, access, control), (*names, row.known.name))
    return reached.get(seen) or None
