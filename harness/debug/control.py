"""A debugger writes a control register: what the guest's own instruction would make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from harness.debug.debuggee import Refused
from harness.x86 import control_writes as rules
from harness.x86.control import ControlState
from harness.x86.control_writes import GP, Here, Rule, Write

TEXT: Final = "written by the debugger"

_Put = Callable[[ControlState, int, bool], ControlState | GP]

_REGISTERS: Final[dict[str, tuple[tuple[Rule, ...], _Put]]] = {
    "cr0": (rules.CR0_RULES, rules.write_cr0),
    "cr3": (rules.CR3_RULES, lambda state, value, code64: rules.write_cr3(state, value)),
    "cr4": (rules.CR4_RULES, rules.write_cr4),
    "efer": (rules.EFER_RULES, lambda state, value, code64: rules.write_efer(state, value)),
}
CONTROL: Final = frozenset(_REGISTERS)
"""The registers that decide how addresses are translated, by the names of the gdbstub."""


def written(state: ControlState, register: str, value: int, code64: bool) -> ControlState:
    """What the guest's control registers are once `value` is in `register`, one of CONTROL. code64: the guest is in
    64-bit code. Raises Refused, with the rule, for what the guest's processor would not take."""
    table, put = _REGISTERS[register]
    write = Write(state, value, code64, rules.MAX)
    for rule in table:
        if rule.here is not Here.ACCEPT and rule.broken_by(write):
            what = "raises #GP(0) in the guest" if rule.here is Here.FAULT else "leaves the register as it is"
            raise Refused(f"writing {value:#x} to {register} {what}: {rule.name} ({rule.source})")
    after = put(state, value, code64)
    assert not isinstance(after, GP)  # by the same rules
    return after
