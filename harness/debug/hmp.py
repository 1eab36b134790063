"""The commands of QEMU's monitor that a debugging session does not pass on.

They would pull the machine from under the harness: it would wait for a guest that nobody runs, or run one that has
become another. Names: QEMU 7.2, hmp-commands.hx.
"""

from __future__ import annotations

from typing import Final

_RESUME = "gdb runs the guest: use `continue` or `stepi`"
_END = "use `kill` in gdb, or `detach` to let the run go on to its verdict"
_RESET = "the harness would not see the reset: end the run with `kill` and start it again"
_STATE = "XI's tables would be those of another guest: start the run again with --stop-at and the same --seed"
_DEVICE = "the harness has laid out this machine: give what it is to have as options of the run"
_PLUMBING = "the harness itself is at the other end"

REFUSED: Final = {
    "c": _RESUME,
    "cont": _RESUME,
    "s": "the guest stands already; use Ctrl-C in gdb to stop it once it runs",
    "stop": "the guest stands already; use Ctrl-C in gdb to stop it once it runs",
    "q": _END,
    "quit": _END,
    "system_reset": _RESET,
    "system_powerdown": _END,
    "system_wakeup": _RESET,
    "gdbserver": "this gdb and the harness share the only gdbstub",
    "nmi": "the harness stops a guest with NMIs, and would take it for one of its own",
    "loadvm": _STATE,
    "savevm": _STATE,
    "delvm": _STATE,
    "replay_seek": _STATE,
    "device_add": _DEVICE,
    "device_del": _DEVICE,
    "object_add": _DEVICE,
    "object_del": _DEVICE,
    "drive_add": _DEVICE,
    "drive_del": _DEVICE,
    "netdev_add": _DEVICE,
    "netdev_del": _DEVICE,
    "balloon": _DEVICE,
    "chardev-add": _PLUMBING,
    "chardev-change": _PLUMBING,
    "chardev-remove": _PLUMBING,
    "chardev-send-break": _PLUMBING,
}
"""Command -> why not, and what to do instead."""

_FAMILIES: Final = {
    "migrate": "the guest would leave for another QEMU: see `xi-harness migrate`",
    "snapshot_": _STATE,
    "x_colo": _STATE,
}


def refused_because(word: str) -> str | None:
    """Why the command `word` is not passed on, and what to do instead; None if it is."""
    family = next((reason for prefix, reason in _FAMILIES.items() if word.startswith(prefix)), None)
    return REFUSED.get(word, family)
