"""The two sides of a live run, monitor and controller, on each other's processors from time to time.

Processors of one machine can differ in speed by nearly a factor of two, and change it (a virtual machine's do, as the
host's other guests come and go). Of an exit the monitor's side has most of what the hardware takes, the controller's
has all the rest: a ratio of the two says as much of the processors as of the code. With the sides exchanged every few
milliseconds, either is on the faster one for as long.
"""

from __future__ import annotations

import os

from harness.machine.pinning import usable, vcpu_threads
from harness.machine.qemu import Machine


class Sides:
    """Monitor and controller (this thread) of `machine`, as `harness.machine.pinning.pin` has put them; within it.

    turn: how often they have been exchanged.
    """

    def __init__(self, machine: Machine) -> None:
        self.turn = 0
        self._monitors = vcpu_threads(machine)
        processors = sorted(usable())
        self._monitor, self._controller = processors[0], processors[-1]

    def exchange(self) -> None:
        """Each side goes where the other is. The guest must stand. With one processor nothing changes.

        Raises OSError where pinning is not permitted: then a ratio means nothing either.
        """
        self.turn += 1
        self._monitor, self._controller = self._controller, self._monitor
        for thread in self._monitors:
            os.sched_setaffinity(thread, {self._monitor})
        os.sched_setaffinity(0, {self._controller})
