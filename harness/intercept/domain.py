"""The guest's memory in live mode: which machine frame each guest frame is, and how that changes while it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from harness.engine import ShadowEngine
from harness.machine.guest_view import GuestView
from harness.machine.ram import POISON, RamMap
from harness.machine.vcpu import Vcpu
from harness.x86.bits import PAGE_SHIFT, PAGE_SIZE


class Domain:
    """The p2m of a guest, the frames that are free, and the operations on both.

    Every operation is made while the guest stands at an exit. The engine drops what it has on the frame, the view shows
    the new one, and the old frame is poisoned: a translation that was forgotten is read at once. Contents are copied by
    the processor, since QEMU (7.2) keeps translated code of a frame that is written through the RAM map.
    """

    def __init__(self, ram: RamMap, vcpu: Vcpu, engine: ShadowEngine, view: GuestView, spare: Iterable[int]) -> None:
        self._vcpu = vcpu
        self._engine = engine
        self._machine = ram.bytes.reshape(-1, PAGE_SIZE)
        self.view = view
        self.spare = deque(int(mfn) for mfn in spare)
        self.away: dict[int, bytes] = {}  # gfn -> its content, for the frames that were taken away
        self.moved = self.taken = self.given = 0

    @property
    def frames(self) -> int:
        return len(self.view.p2m)

    def backed(self, gfn: int) -> bool:
        return 0 <= gfn < self.frames and int(self.view.p2m[gfn]) >= 0

    def move(self, gfn: int) -> int:
        """Gives `gfn` another machine frame, with its content. Returns the new mfn. Raises ValueError without a spare
        frame, or for a gfn without a frame."""
        old = self._frame(gfn)
        new = self._free()
        self._vcpu.copy(new << PAGE_SHIFT, old << PAGE_SHIFT, PAGE_SIZE)
        try:
            self._assign(gfn, new)
        except ValueError:
            self._release(new)
            raise
        self._release(old)
        self.moved += 1
        return new

    def take(self, gfn: int) -> None:
        """Takes the frame of `gfn` away; `give` brings it back. Raises ValueError where that cannot be."""
        old = self._frame(gfn)
        content = self._machine[old].tobytes()
        self._assign(gfn, -1)
        self.away[gfn] = content
        self._release(old)
        self.taken += 1

    def give(self, gfn: int) -> None:
        """Brings back a frame that was taken away, on some other machine frame. Raises KeyError if it was not."""
        content = self.away[gfn]
        new = self._free()
        try:
            self._vcpu.write_code(new << PAGE_SHIFT, content)
            self._assign(gfn, new)
        except ValueError:
            self._release(new)
            raise
        del self.away[gfn]
        self.given += 1

    def restore(self) -> None:
        """Brings every frame back into the view once QEMU has ended: the guest's memory as it left it."""
        for gfn, content in self.away.items():
            new = self._free()
            self._machine[new] = np.frombuffer(content, np.uint8)
            self.view.remap(gfn, new)
        self.away.clear()

    def address(self, gpa: int) -> int:
        """Machine address behind the guest-physical `gpa`. Raises ValueError where there is no frame."""
        return self._frame(gpa >> PAGE_SHIFT) << PAGE_SHIFT | gpa & (PAGE_SIZE - 1)

    def write_code(self, gpa: int, data: bytes) -> None:
        """Writes bytes that the guest may execute, within a page or across pages."""
        while data:
            room = PAGE_SIZE - (gpa & (PAGE_SIZE - 1))
            self._vcpu.write_code(self.address(gpa), data[:room])
            gpa, data = gpa + room, data[room:]

    def _frame(self, gfn: int) -> int:
        if not self.backed(gfn):
            raise ValueError(f"gfn {gfn:#x} has no machine frame")
        return int(self.view.p2m[gfn])

    def _free(self) -> int:
        if not self.spare:
            raise ValueError("no machine frame is free")
        return self.spare.popleft()

    def _assign(self, gfn: int, mfn: int) -> None:
        self._engine.xi_invld_mfn(gfn, mfn)
        self.view.remap(gfn, mfn)

    def _release(self, mfn: int) -> None:
        self._machine[mfn] = POISON
        self.spare.append(mfn)
