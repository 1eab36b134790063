"""The exception log: records as QEMU writes them, whole or in pieces, and those of a guest that runs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from harness.catalogue import image_path, load_catalogue
from harness.machine.deadline import Deadline
from harness.machine.errors import StubClosed
from harness.machine.exception_log import ExceptionLog, parse
from harness.machine.image import load_image
from harness.machine.qemu import Machine
from harness.options import RunOptions
from harness.placement import place
from harness.session import machine_spec

LONG = b"""check_exception old: 0xffffffff new 0xe
     3: v=0e e=0015 i=0 cpl=3 IP=0043:0000000000103000 pc=0000000000103000 SP=0023:0000000000000000 CR2=0000100000000e48
RAX=0000000000000000 RBX=0000000000103000 RCX=0000000000000004 RDX=0000100000000e48
CR0=80010011 CR2=0000100000000e48 CR3=000000000016b000 CR4=000000b0
DR6=00000000ffff0ff0 DR7=0000000000000400
CCS=0000000000000000 CCD=0000000000000000 CCO=EFLAGS
EFER=0000000000000d00
"""
SHORT = b"""     4: v=0e e=0002 i=0 cpl=0 IP=0008:00101234 pc=00101234 SP=0010:0010a000 CR2=80000000
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00000000
CR0=80010011 CR2=80000000 CR3=00158000 CR4=00000090
EFER=0000000000000000
"""
SOFTWARE = LONG.replace(b"v=0e e=0015 i=0", b"v=80 e=0000 i=1").replace(b" CR2=0000100000000e48\nRAX", b" x=0\nRAX")
BREAKPOINT = SHORT.replace(b"v=0e e=0002 i=0", b"v=0e e=0000 i=1")  # INT 14: no page fault


def test_a_record_of_either_width_is_read() -> None:
    faults = parse(LONG + SHORT)
    assert faults[["rip", "cr2", "code"]].tolist() == [(0x103000, 0x1000_0000_0E48, 0x15), (0x101234, 0x8000_0000, 2)]
    assert faults[["cr0", "cr3", "cr4", "efer"]].tolist() == [
        (0x8001_0011, 0x16B000, 0xB0, 0xD00),
        (0x8001_0011, 0x158000, 0x90, 0),
    ]


@pytest.mark.parametrize("other", [SOFTWARE, BREAKPOINT])
def test_other_interrupts_are_no_page_faults(other: bytes) -> None:
    assert parse(other + SHORT)["rip"].tolist() == [0x101234]


def test_a_record_is_given_once_and_whole() -> None:
    with ExceptionLog() as log:
        path = Path(log.arguments[-1])
        with path.open("wb", buffering=0) as file:
            file.write(LONG + SHORT[:100])
            assert log.take()["code"].tolist() == [0x15]
            file.write(SHORT[100:-1])
            assert len(log.take()) == 0
            file.write(SHORT[-1:])
            assert log.take()["code"].tolist() == [2]
            assert len(log.take()) == 0
            assert os.fstat(file.fileno()).st_blocks * 512 < 4096 + len(LONG + SHORT)


def test_what_was_read_takes_no_room() -> None:
    with ExceptionLog() as log, Path(log.arguments[-1]).open("wb", buffering=0) as file:
        file.write(SHORT * 20_000)
        assert len(log.take()) == 20_000
        assert os.fstat(file.fileno()).st_blocks * 512 <= 8192


def test_the_faults_of_a_guest_are_all_there_when_it_has_ended() -> None:
    guest = load_catalogue()["hostile_triple"]
    image = load_image(image_path(guest, "nopae"))
    with ExceptionLog() as log:
        spec = replace(machine_spec(guest, "nopae", RunOptions()), extra=log.arguments)
        with Machine(spec, place(image, 1)) as machine:
            log.opened()
            assert not Path(log.arguments[-1]).exists()
            machine.gdb.resume()
            with pytest.raises(StubClosed):
                while not machine.gdb.wait_stop(Deadline(10.0)).exited:
                    pass
                raise StubClosed("QEMU said that the machine ended")
            # The one that the guest expects, and the one that it cannot take: both are stores from ring 0 to no page.
            assert log.take()[["cr2", "code"]].tolist() == [(0x8000_0000, 2), (0x8000_0000, 2)]
