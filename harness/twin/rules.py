"""Which differences between a guest's native and live run are allowed, each by name and only where its reason holds.

Natively QEMU's page walk tells the guest's faults and sets the A bits of its tables; in live mode the engine does both,
by the book. Where QEMU does otherwise the two runs differ, though nothing is wrong.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from harness.check.exceptions import PDPTE_ACCESSED, UPPER_A_ON_FAULT, Known, explain_code
from harness.check.guest_walks import ram_reader
from harness.engine import Words
from harness.machine.exception_log import Faults
from harness.machine.image import WRITABLE, Image
from harness.x86 import bits
from harness.x86.access import Access
from harness.x86.control import ControlState
from harness.x86.modes import PAE, reserved_bits
from harness.x86.walk import MAPPED, RESERVED, Path, tracer

LARGE_A_ON_REFUSAL: Final = Known(
    "large-a-on-refusal",
    "A is set in the leaf of a 1 GiB page before its rights, and the reserved low bits of its frame, are looked at",
    "may set it or not (SDM vol. 3A, 4.8)",
    "7.2",
)
COPIED_ENTRY: Final = Known(
    "copied-entry",
    "the guest has copied an entry whose A bit differs for an allowed reason",
    "not a difference of its own",
    "any",
)
COPIED_CODE: Final = Known(
    "copied-code",
    "the guest holds an error code that differs for an allowed reason, in its stack or data",
    "not a difference of its own",
    "any",
)

CONSOLE_OVERRUN: Final = Known(
    "console-overrun",
    "of what a guest sends to COM1 without waiting for the transmitter, bytes are lost while the console is not read",
    "an UART that is overrun loses bytes too",
    "7.2 (hw/char/serial.c, serial_xmit)",
)

FLOOD: Final = 8 << 10
"""Characters that a guest must have printed in one of the two to be believed to have overrun its console."""
_PROTOCOL: Final = re.compile(r"(?:not ok|ok|1\.\.|Bail out!|TAP version|# panic)\b.*")

_ENDED_IN_A_TRY: Final = 0x8000_0000  # what the guests' library adds to an error code that it returns


def overrun(native: str, live: str) -> bool:
    """Whether two consoles differ only in what a flooding guest has lost: the lines of its test protocol must agree."""
    protocols = [[line for line in text.split("\n") if _PROTOCOL.match(line)] for text in (native, live)]
    return max(len(native), len(live)) >= FLOOD and protocols[0] == protocols[1]


class Explainer:
    """Explains differences of one comparison, in the order in which the guest ran.

    memory: the native run's guest-physical memory (flat words), which the comparison brings up to date.
    """

    def __init__(self, image: Image, memory: Words) -> None:
        self._read = ram_reader(memory.view(np.uint8))
        self._written = {gfn for segment in image.segments if segment.flags & WRITABLE for gfn in segment.frames}
        self._entries: dict[int, Known] = {}  # address of an entry -> why its A bit may be set natively alone
        self._walks: dict[tuple[ControlState, int], None] = {}  # to be looked at when something is to be explained
        self._copies: dict[tuple[int, int], Known] = {}  # (native, live) words of 4 bytes

    # ---- what happened

    def stood(self, state: ControlState) -> None:
        """The guest had these control registers."""
        if state.mode is PAE:
            for index in range(4):
                self._entries[state.root_gpa + 8 * index] = PDPTE_ACCESSED

    def faulted(self, faults: Faults) -> None:
        """The guest saw these faults natively."""
        pages = faults["cr2"] & np.uint64(-bits.PAGE_SIZE & (1 << 64) - 1)
        rows = zip(*(faults[name].tolist() for name in ("cr0", "cr3", "cr4", "efer")), pages.tolist(), strict=True)
        for cr0, cr3, cr4, efer, page in rows:
            self._walks[ControlState(cr0, cr3, cr4, efer), page] = None

    def _look(self) -> None:
        """Walks what faulted, by the native tables as of now: which entries the walks went through."""
        for state, page in self._walks:
            self.stood(state)
            self._passed(state, tracer(state, self._read)(page))
        self._walks.clear()

    def _passed(self, state: ControlState, path: Path) -> None:
        for row, step in zip(state.mode.levels, path.steps[:-1], strict=False):
            if row.has_ad:
                self._entries[step.address] = UPPER_A_ON_FAULT
        if path.outcome in (MAPPED, RESERVED) and path.steps:
            leaf = path.steps[-1]
            early = reserved_bits(state.mode, leaf.level, False, state.nxe)  # those that are looked at before A is set
            if leaf.level == 3 and leaf.large and not leaf.entry & early:
                self._entries.setdefault(leaf.address, LARGE_A_ON_REFUSAL)

    # ---- what differs

    def code(self, native: int, live: int, access: Access, control: ControlState) -> tuple[str, ...] | None:
        """The names of what makes `native` of the #PF code `live`; None when nothing does."""
        names = explain_code(live, native, access, control)
        if names:
            for mark in (0, _ENDED_IN_A_TRY):
                self._copies[native | mark, live | mark] = COPIED_CODE
        return names

    def word(self, at: int, native: int, live: int, before: int) -> tuple[str, ...] | None:
        """The names of what explains all that differs in word `at` (guest-physical address / 8); None otherwise.

        before: what the native run had there when memory was last looked at.
        """
        names: list[str] = []
        for half in (0, 32):
            ours, theirs = native >> half & 0xFFFF_FFFF, live >> half & 0xFFFF_FFFF
            if ours != theirs:
                known = self._half(8 * at + half // 8, ours, theirs, before >> half & 0xFFFF_FFFF)
                if known is None:
                    return None
                names.append(known.name)
        return tuple(names)

    def _half(self, address: int, native: int, live: int, before: int) -> Known | None:
        if native == live | bits.PTE_A and live & bits.PTE_P:
            known = self._entry(address)
            if known is not None:
                self._copies[native, live] = COPIED_ENTRY
                return known
        known = self._copies.get((native, live))
        if known is COPIED_CODE:
            return known if address >> bits.PAGE_SHIFT in self._written else None
        there = not (native ^ before) & ~(bits.PTE_A | bits.PTE_D)  # the entry was there before: nothing was copied
        return None if there else known

    def _entry(self, address: int) -> Known | None:
        if address not in self._entries:
            self._look()
        return self._entries.get(address)
