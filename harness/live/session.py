"""A guest in live mode: the session that gives it a monitor, a p2m of its own and the engine's tables to run on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from harness.catalogue import Guest
from harness.check.guest_walks import ram_reader
from harness.check.live_memory import GuestMemory, LoggedMemory
from harness.check.target import Stop
from harness.engine import EngineConfig
from harness.intercept.devices import Devices
from harness.intercept.domain import Domain
from harness.intercept.hardware import enter_guest, prepare_maps
from harness.intercept.instructions import Instructions
from harness.intercept.interception import Outcome
from harness.intercept.live import Live
from harness.live.layout import LiveLayout
from harness.live.stress import Stress
from harness.live.target import LiveTarget
from harness.machine.guest_view import GuestView
from harness.machine.pinning import pin
from harness.machine.qemu import Machine, MachineSpec
from harness.machine.ram import RamMap
from harness.machine.vcpu import start_vcpus
from harness.options import RunOptions
from harness.placement import place_live
from harness.report.record import RunRecord
from harness.session import KEPT_FAILURES, Session, launch, machine_spec
from harness.xi.pool import FRAMES_PER_SPTI, pool_frames_for

READY_SECONDS: Final = 10.0


def live_layout(guest: Guest, paging: str, options: RunOptions) -> tuple[MachineSpec, LiveLayout]:
    """The machine of a live run, with room for guest, monitor, pool and spare frames; and what lies where in it."""
    spec = machine_spec(guest, paging, options)
    pool = options.pool_spti * FRAMES_PER_SPTI if options.pool_spti else pool_frames_for(spec.ram_mib << 8)
    layout = LiveLayout.plan(spec.ram_mib, pool, options.seed)
    return replace(spec, ram_mib=layout.machine_mib), layout


class LiveSession(Session):
    """See `Session`; live mode's own parts are `live`, `domain`, `vcpu`, `layout`, and `stress` if it is wanted."""

    stress: Stress | None = None

    def start(self) -> None:
        """Launches QEMU, waits for the monitor, and puts the guest at its entry."""
        self._stand_ready()
        self._pin()
        self.live.attach()
        if self.options.stress:
            self.stress = Stress(self.live, self.options.seed)
            self.stress.install()
        self.record.timings["boot"] = time.monotonic() - self._began
        self._booted = True

    def _stand_ready(self) -> None:
        """Everything but the guest's first step: the machine, its monitor, an engine, a vCPU that could be entered."""
        self._power_on()
        self.record.mode = "live"
        ram = self.machine.ram
        view = GuestView(ram, self.layout.p2m)
        self._stack.callback(view.close)
        (self.vcpu,) = start_vcpus(self.machine, self.layout.monitor_area, 1, self._deadline.sooner(READY_SECONDS))
        prepare_maps(ram, self.vcpu)

        self.machine_memory = LoggedMemory(ram.bytes)
        frames, pool_frames = self.layout.guest_frames, self.layout.pool_frames
        first = self.layout.pool_base_mfn << 12
        config = EngineConfig(
            frames=frames,
            pool_frames=pool_frames,
            pool_base_mfn=self.layout.pool_base_mfn,
            p2m=self.layout.p2m.copy(),
            pool_memory=ram.bytes[first : first + (pool_frames << 12)],
            fill="demand",
            options=dict(self.options.policies),
        )
        self.engine = self._new_engine(config, self.machine_memory)
        self.domain = Domain(ram, self.vcpu, self.engine, view, self.layout.spare)
        self.memory = GuestMemory(self.machine_memory, view)
        self._read = ram_reader(view.bytes)
        state = enter_guest(self.vcpu, self.image.entry)
        self.live = Live(
            self.vcpu,
            self.engine,
            self.domain,
            state,
            Instructions(self.vcpu, ram.bytes, self.translate),
            Devices(self.vcpu, frames),
            self.machine,
        )
        self._intercept(self.live)
        self.target = self.prober = LiveTarget(self.live, self._mailbox_address())
        self.mailbox = self.prober.mailbox
        self._ambient = ()
        self.check_engine = self._make_check()

    def _launch(self) -> Machine:
        spec, self.layout = live_layout(self.guest, self.paging, self.options)
        return launch(spec, self._placing())

    def _placing(self) -> Callable[[RamMap], None]:
        """What fills the machine's memory before its first instruction."""
        return place_live(self.image, self.layout, self.options.seed)

    def _pin(self) -> None:
        self.pinned = self._stack.enter_context(pin(self.machine))

    # ---- running

    def _arrive(self, registers: dict[str, int]) -> Stop:
        self._calm(f"checkpoint {self.record.checkpoints + 1}")  # its name is in the guest's memory
        self.live.take_pkru()
        self._compare_keys()
        return super()._arrive(registers)

    def _compare_keys(self) -> None:
        """The guest tells its PKRU at each checkpoint. With it the check would not notice that nobody read the register
        before."""
        state, box = self.live.state, self.mailbox
        if box is not None and state.pke and int(box["pkru"]) != state.pkru:
            said = f"the guest's PKRU is {int(box['pkru']):#x}, and {state.pkru:#x} is what was read of it"
            self.live.misses.append(said)
            self.record.interception_misses += 1

    def _look(self, where: str, registers: dict[str, int]) -> None:
        self._calm(where)
        super()._look(where, registers)

    def _calm(self, where: str) -> None:
        """Audits what stress has made of the guest while it lasts, and ends it: the check reads the guest's memory as a
        whole."""
        if self.stress is not None and self.stress.unsettled:
            self._audit(f"{where}, under stress")
            self.stress.settle()
        for gfn in list(self.domain.away):
            self.domain.give(gfn)

    def _audit(self, where: str) -> None:
        super()._audit(where)
        if self.stress is not None:
            lost = self.stress.take_failures()
            self.record.audit_failures += len(lost)
            self.record.audit += [f"before {where}: dirty log: {text}" for text in lost[:KEPT_FAILURES]]

    def _judge_exit(self, status: int | None) -> None:
        self.domain.restore()
        super()._judge_exit(status)

    def _judge_standing(self, outcome: Outcome, registers: dict[str, int]) -> None:
        record = self.record
        if outcome is Outcome.SHUTDOWN:
            record.verdict, record.reason = "crash", "the processor shut down (triple fault)"
        elif outcome is Outcome.STUCK:
            record.verdict, record.reason = "fail", self.live.stuck
        elif outcome is Outcome.HALTED:
            record.verdict = "timeout"
            record.reason = f"halted with interrupts off, at {registers.get('rip', 0):#x}: nothing can wake it"
        else:
            super()._judge_standing(outcome, registers)
        record.tap = self.machine.console.tap()[1]

    def conclude(self) -> RunRecord:
        record = super().conclude()
        if not self._booted:
            return record
        stats = record.stats
        record.events["table_write"] = int(stats.get("table_writes", 0))
        record.events["page_fault"] = self.live.log.counts["page_fault"]
        seconds = self.live.run_seconds
        exits = sum(self.live.exits.values())
        record.live = {
            "exits": self.live.exits_by_name(),
            "exits_per_second": round(exits / seconds) if seconds else 0,
            "faults_injected": self.live.injected,
            "moved": self.domain.moved,
            "taken": self.domain.taken,
            "given": self.domain.given,
            "probe_faults_served": self.prober.served,
            "pool_sptis": stats.get("sptis", 0),
            "pool_share": round(self.layout.pool_frames / self.layout.guest_frames, 4),
            "zeroed_idle": stats.get("zeroed_idle", 0),
            "zeroed_inline": stats.get("zeroed_inline", 0),
            "recycled": stats.get("recycled", 0),
            "pinned": self.pinned,
        }
        if self.stress is not None:
            record.live |= {"dirty_rounds": self.stress.counts["log_rounds"], "stress": dict(self.stress.counts)}
        return record
