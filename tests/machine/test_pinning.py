"""Controller and vCPUs on processors of their own, as far as there are any."""

from __future__ import annotations

import os

import pytest

from harness.catalogue import FIRMWARE
from harness.machine.pinning import pin, spread, vcpu_threads
from harness.machine.qemu import Machine, MachineSpec

OWN = os.sched_getaffinity(0)


@pytest.mark.parametrize(
    ("processors", "threads", "expected"),
    [([0, 1], 1, [0]), ([0, 1], 2, [0, 0]), ([2, 3, 5, 7], 2, [2, 3]), ([4], 1, [4]), ([0, 1, 2], 3, [0, 1, 0])],
)
def test_vcpu_threads_are_spread(processors: list[int], threads: int, expected: list[int]) -> None:
    assert spread(processors, threads) == expected


def others(machine: Machine) -> list[set[int]]:
    threads = {int(name) for name in os.listdir(f"/proc/{machine.process.pid}/task")}
    return [os.sched_getaffinity(thread) for thread in threads - set(vcpu_threads(machine))]


@pytest.mark.skipif(len(OWN) < 2, reason="needs two processors")
def test_the_controller_and_the_vcpu_get_different_processors() -> None:
    with Machine(MachineSpec(bios=FIRMWARE, ram_mib=16)) as machine:
        (vcpu,) = vcpu_threads(machine)
        with pin(machine) as complaint:
            assert complaint == ""
            mine = os.sched_getaffinity(0)
            assert len(mine) == 1
            assert len(os.sched_getaffinity(vcpu)) == 1
            assert not mine & os.sched_getaffinity(vcpu)
            # A machine that a pinned thread launches is not confined to that thread's processor.
            with Machine(MachineSpec(bios=FIRMWARE, ram_mib=16)) as second, pin(second) as again:
                assert again == ""
                assert not os.sched_getaffinity(0) & os.sched_getaffinity(vcpu_threads(second)[0])
                assert all(where == OWN for where in others(second))
            assert os.sched_getaffinity(0) == mine
        assert os.sched_getaffinity(0) == OWN


def test_one_processor_is_said_to_be_slow() -> None:
    os.sched_setaffinity(0, {min(OWN)})
    try:
        with Machine(MachineSpec(bios=FIRMWARE, ram_mib=16)) as machine, pin(machine) as complaint:
            assert "2 threads that spin share 1 processor(s)" in complaint
    finally:
        os.sched_setaffinity(0, OWN)


def test_a_container_that_forbids_pinning_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: int, processors: object) -> None:
        if processors != OWN or thread:
            raise PermissionError(1, "Operation not permitted")

    with Machine(MachineSpec(bios=FIRMWARE, ram_mib=16)) as machine:
        monkeypatch.setattr(os, "sched_setaffinity", refuse)
        with pin(machine) as complaint:
            assert "Operation not permitted" in complaint


def test_two_vcpus_have_one_thread_or_two() -> None:
    for threads, count in (("single", 1), ("multi", 2)):
        with Machine(MachineSpec(bios=FIRMWARE, ram_mib=16, smp=2, threads=threads)) as machine:
            assert len(vcpu_threads(machine)) == count
