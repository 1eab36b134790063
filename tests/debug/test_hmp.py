"""The commands of QEMU's monitor that are not passed on: they exist, and their reasons say what to do."""

from __future__ import annotations

import pytest

from harness.catalogue import FIRMWARE
from harness.debug.hmp import REFUSED, refused_because
from harness.machine.qemu import Machine, MachineSpec


@pytest.mark.parametrize("word", ["info", "x", "xp", "print", "gva2gpa", "help", "dump-guest-memory", ""])
def test_looking_is_allowed(word: str) -> None:
    assert refused_because(word) is None


@pytest.mark.parametrize("word", ["migrate", "migrate_cancel", "snapshot_blkdev", "x_colo_lost_heartbeat"])
def test_families_are_refused(word: str) -> None:
    assert refused_because(word)


def test_every_command_that_is_refused_is_one_of_qemus() -> None:
    with Machine(MachineSpec(bios=FIRMWARE, ram_mib=16)) as machine:
        lines = machine.monitor.human("help").split("\n")
    commands = [line.split()[0].split("|") for line in lines if line.strip()]
    words = {name for names in commands for name in names}
    assert words >= {"migrate", "snapshot_blkdev", "x_colo_lost_heartbeat"}
    assert set(REFUSED) - words == set()
    # Under its other name a command is refused too.
    for names in commands:
        assert len({bool(refused_because(name)) for name in names}) == 1, names
