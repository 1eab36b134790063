"""Monitor and controller on each other's processors."""

from __future__ import annotations

import os

from harness.bench.sides import Sides
from harness.catalogue import FIRMWARE
from harness.machine.pinning import pin, vcpu_threads
from harness.machine.qemu import Machine, MachineSpec

OWN = os.sched_getaffinity(0)


def test_each_side_goes_where_the_other_is() -> None:
    with Machine(MachineSpec(bios=FIRMWARE, ram_mib=16)) as machine:
        (vcpu,) = vcpu_threads(machine)

        def places() -> tuple[set[int], set[int]]:
            return os.sched_getaffinity(vcpu), os.sched_getaffinity(0)

        with pin(machine):
            sides, (monitor, controller) = Sides(machine), places()
            for turn in range(1, 4):
                sides.exchange()
                assert sides.turn == turn
                assert places() == ((controller, monitor) if turn & 1 else (monitor, controller))
        assert os.sched_getaffinity(0) == OWN
