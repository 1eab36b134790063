"""What the processor is given to walk a shadow."""

from __future__ import annotations

from harness.engine import ShadowRoot
from harness.x86.bits import (
    CR0_CD,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_PAE,
    CR4_PKE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
)
from harness.x86.control import ControlState
from harness.x86.modes import MODES
from harness.xi.roles import FORMAT


def hardware_root(guest: ControlState, mfn: int) -> ShadowRoot:
    """The shadow root in machine frame `mfn`, with the registers that go with it for a guest in the state `guest`."""
    shadow = MODES[FORMAT[guest.mode.name]]
    cr4 = CR4_PAE | CR4_PSE
    if guest.mode.levels:  # without paging the guest has neither SMEP, SMAP nor keys
        cr4 |= guest.cr4 & (CR4_SMEP | CR4_SMAP | CR4_PKE)
    if shadow.name == "long5":
        cr4 |= CR4_LA57
    efer = EFER_NXE | (EFER_LME | EFER_LMA if shadow.canonical else 0)
    cr0 = (guest.cr0 & ~(CR0_CD | CR0_NW)) | CR0_PE | CR0_PG | CR0_WP
    return ShadowRoot(shadow, mfn << 12, ControlState(cr0, mfn << 12, cr4, efer, guest.pkru))
