"""The other machine: it stands ready, gets a guest's memory while that runs elsewhere, and at last its registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from harness.live.session import LiveSession
from harness.machine.ram import POISON, RamMap
from harness.migration.state import VcpuState
from harness.placement import place_live
from harness.report.record import RunRecord
from harness.x86.bits import PAGE_SIZE

SEED_STEP: Final = 0x9E37_79B1  # odd: another layout than the source's, whatever its seed


class Destination(LiveSession):
    """A machine of the same size as `source`'s, with a p2m, a monitor and an engine of its own, and no guest.

    Its guest frames hold poison until somebody fills them. Its processor is stopped until `adopt`: it would only spin.
    """

    def __init__(self, source: LiveSession) -> None:
        options = replace(source.options, seed=source.options.seed + SEED_STEP & 0xFFFF_FFFF)
        super().__init__(source.guest, source.paging, options, source._watcher, source._make_engine, source.image)
        self._before: dict[str, int] = {}

    def start(self) -> None:
        """Launches QEMU and waits for its monitor."""
        self._stand_ready()
        self.machine.monitor.command("stop")

    def _placing(self) -> Callable[[RamMap], None]:
        fill = place_live(self.image, self.layout, self.options.seed)

        def without_guest(ram: RamMap) -> None:
            fill(ram)
            frames = ram.bytes.reshape(-1, PAGE_SIZE)
            frames[self.layout.p2m[self.layout.p2m >= 0]] = POISON

        return without_guest

    def wake(self, source: LiveSession) -> None:
        """Gets the processor to run again, once `source`'s does not any more, and its console behind the source's."""
        self.machine.console.follow(source.machine.console)
        self._pin()
        self.machine.monitor.command("cont")

    def adopt(self, source: LiveSession, state: VcpuState) -> None:
        """The guest is this machine's from now on: its memory is here. The engine starts with nothing in its tables."""
        state.put(self.vcpu)
        self.live.take_over(source.live)
        self.check_engine.take_over(source.check_engine)
        self.live.attach()
        self.engine.restore_pdptes(source.engine.pdptes)
        self.stop = source.stop
        self.record = source.record
        self._before = {name: int(source.engine.stats().get(name, 0)) for name in ("table_writes",)}
        self._deadline, self._began = source._deadline, source._began
        self._booted = True

    def conclude(self) -> RunRecord:
        record = super().conclude()
        if self._booted:
            record.events["table_write"] += self._before["table_writes"]
        return record
