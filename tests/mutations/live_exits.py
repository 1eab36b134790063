"""Mutations of live mode's controller: exits that are handled wrongly, and what the guest is shown of its processor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy.typing as npt

from harness.intercept.devices import Devices
from harness.intercept.instructions import RBX, RCX, RDX, Instructions
from harness.intercept.interception import Outcome
from harness.intercept.live import Live
from harness.live.session import LiveSession
from harness.machine import monitor_abi as abi
from harness.machine.probing import WalkRoot
from harness.x86 import bits, events
from harness.x86.control import ControlState
from harness.x86.control_writes import GP
from harness.x86.intercepted import Intercepted
from tests.mutations.live_engine import FEW
from tests.mutations.mutation import LiveTamper, Mutation, Way, caught
from tests.mutations.small_guests import NO_GATE, REGISTERS, SINGLE_STEPS, SVM_OFFERED


class CodeWrong(Live):
    """Every #PF says that ring 0 did it."""

    def _raise(self, vector: int, error: int | None, cr2: int | None = None) -> Outcome | None:
        if vector == bits.VECTOR_PF and error is not None:
            error &= ~bits.PF_U
        return super()._raise(vector, error, cr2)


class NoCr2(Live):
    """A #PF comes without its address."""

    def _raise(self, vector: int, error: int | None, cr2: int | None = None) -> Outcome | None:
        del cr2
        return super()._raise(vector, error)


class NotAgain(Live):
    """An event whose delivery met a page that was not in the shadow is lost."""

    def _deliver(self, event: int) -> None:
        if not self._pending or event != events.again(self._pending):
            super()._deliver(event)


class NeverDouble(Live):
    """A fault in the middle of a delivery is delivered as if it came by itself."""

    def _raise(self, vector: int, error: int | None, cr2: int | None = None) -> Outcome | None:
        self._pending = 0
        return super()._raise(vector, error, cr2)


class RootKept(Live):
    """The processor keeps the root that it has."""

    _applied = False

    def apply(self) -> None:
        if not self._applied:
            super().apply()
        self._applied = True


class KeysUnread(Live):
    """Nobody looks at the guest's PKRU."""

    def take_pkru(self) -> None:
        """Leaves the engine with the old one."""


class HoleForAway(Live):
    """A frame that was taken away is taken for a device."""

    def _missing(self, result: int, va: int) -> int:
        del result, va
        return -1


class InvlpgNextPage(Instructions):
    """The operand of INVLPG is read one page off."""

    def _invlpg(self, instruction: Intercepted, width: int) -> Outcome | None:
        memory: Any = instruction.memory
        operand = replace(memory, displacement=memory.displacement + bits.PAGE_SIZE)
        return super()._invlpg(replace(instruction, memory=operand), width)


class Cr3Unheard(Instructions):
    """The guest believes its new CR3; the engine is not told."""

    def _changed(self, state: ControlState | GP, instruction: Intercepted, width: int, value: int) -> None:
        if instruction.cr != 3 or isinstance(state, GP):
            super()._changed(state, instruction, width, value)
            return
        self._live.state = state
        self._done(instruction, width)


class HardwareCr0(Instructions):
    """Reads of CR0 give the processor's."""

    register, offset = 0, abi.CR0

    def _mov_from_cr(self, instruction: Intercepted, width: int) -> Outcome | None:
        super()._mov_from_cr(instruction, width)
        if instruction.cr == self.register:
            self._vcpu.set_gpr(instruction.register, self._vcpu.vmcb[self.offset >> 3] & (1 << width) - 1)
        return None


class HardwareCr3(HardwareCr0):
    """Reads of CR3 give the processor's."""

    register, offset = 3, abi.CR3


class HardwareCr4(HardwareCr0):
    """Reads of CR4 give the processor's."""

    register, offset = 4, abi.CR4


class HardwareEfer(Instructions):
    """RDMSR of EFER gives the processor's."""

    def _rdmsr(self, instruction: Intercepted, width: int) -> Outcome | None:
        wanted = self._vcpu.gpr(RCX) & 0xFFFF_FFFF
        super()._rdmsr(instruction, width)
        if wanted == bits.MSR_EFER:
            self._vcpu.set_gpr(0, self._vcpu.vmcb[abi.EFER >> 3] & 0xFFFF_FFFF)
        return None


class HardwareCpuid(Instructions):
    """CPUID gives the processor's answer."""

    def _do_cpuid(self, instruction: Intercepted, width: int) -> Outcome | None:
        vcpu = self._vcpu
        leaf, subleaf = vcpu.gpr(0) & 0xFFFF_FFFF, vcpu.gpr(RCX) & 0xFFFF_FFFF
        for number, value in zip((0, RBX, RCX, RDX), vcpu.cpuid(leaf, subleaf), strict=True):
            vcpu.set_gpr(number, value)
        self._done(instruction, width)
        return None


class Unreached(Devices):
    """Nothing answers where the guest has no RAM."""

    def read(self, gpa: int, size: int) -> int:
        del gpa, size
        return 0


def probes_on_the_first_root(session: LiveSession) -> None:
    """Every probe runs on the root of the first one."""
    right = session.vcpu.probe
    first: list[WalkRoot] = []

    def probe(records: npt.NDArray[Any], root: WalkRoot, pkru: int = 0) -> npt.NDArray[Any]:
        first.append(root)
        return right(records, first[0], pkru)

    session.vcpu.probe = probe  # type: ignore[method-assign]


def probes_without_keys(session: LiveSession) -> None:
    """Every probe runs with PKRU 0."""
    right = session.vcpu.probe

    def probe(records: npt.NDArray[Any], root: WalkRoot, pkru: int = 0) -> npt.NDArray[Any]:
        del pkru
        return right(records, root)

    session.vcpu.probe = probe  # type: ignore[method-assign]


def _part(name: str, breaks: str, by: str, guest: str, paging: str, part: type, **more: Any) -> Mutation:
    """`part` in the place of the class that it is derived from."""
    base = part.__mro__[-2].__name__
    return Mutation(name, breaks, caught(by), guest, paging, parts={base: part}, **{"way": Way.LIVE, **more})


def _tampered(name: str, breaks: str, guest: str, paging: str, tamper: LiveTamper, **more: Any) -> Mutation:
    return Mutation(name, breaks, caught("probe"), guest, paging, way=Way.LIVE, live_tamper=tamper, **more)


LIVE_EXITS: Final = (
    _part("live-pf-code-wrong", "an injected #PF has the wrong error code", "tap", "basic", "long4", CodeWrong),
    _part(
        "live-cr2-not-written",
        "an injected #PF comes without CR2",
        "twin:probe",
        "basic",
        "long4",
        NoCr2,
        way=Way.TWIN,
        probes=FEW,
    ),
    _part(
        "live-event-lost",
        "an event whose delivery was interrupted is not injected again",
        "tap",
        "single steps",
        "nopae",
        NotAgain,
        source=SINGLE_STEPS,
    ),
    _part(
        "live-no-double-fault",
        "a fault in a delivery makes no double fault",
        "tap",
        "no gate",
        "nopae",
        NeverDouble,
        source=NO_GATE,
    ),
    _part("live-root-kept", "the processor does not get a new root", "stuck", "basic", "long4", RootKept),
    _part("live-keys-unread", "the guest's PKRU is not read", "self-check", "perm", "long4", KeysUnread, probes=FEW),
    _part("live-invlpg-operand-wrong", "INVLPG's address is one page off", "probe", "basic", "long4", InvlpgNextPage),
    _part("live-cr3-not-told", "a CR3 load does not reach the engine", "probe", "basic", "long4", Cr3Unheard),
    _part(
        "live-cr0-shown",
        "the guest reads the processor's CR0",
        "tap",
        "registers",
        "nopae",
        HardwareCr0,
        source=REGISTERS,
    ),
    _part("live-cr3-shown", "the guest reads the processor's CR3", "crash", "basic", "long4", HardwareCr3),
    _part("live-cr4-shown", "the guest reads the processor's CR4", "crash", "perm", "nopae", HardwareCr4),
    _part(
        "live-efer-shown",
        "the guest reads the processor's EFER",
        "tap",
        "registers",
        "nopae",
        HardwareEfer,
        source=REGISTERS,
    ),
    _part(
        "live-svm-offered",
        "CPUID offers SVM",
        "tap",
        "SVM offered",
        "nopae",
        HardwareCpuid,
        source=SVM_OFFERED,
    ),
    _part("live-devices-unreached", "a load from a device gives 0", "tap", "hostile_mmio", "long4", Unreached),
    _tampered("live-probe-wrong-root", "probes run on another root", "basic", "long4", probes_on_the_first_root),
    _tampered(
        "live-probe-without-keys",
        "probes run without the guest's PKRU",
        "perm",
        "long4",
        probes_without_keys,
        probes=FEW,
    ),
)
