"""The mailbox has one definition, `xi_abi.h`; the numpy dtypes must agree with what a C compiler makes of it."""

from __future__ import annotations

from pathlib import Path

from harness.catalogue import GUESTS
from harness.machine import mailbox
from tests.machine.c_layout import compiled, constants, offsets, size

CONSTANTS = {
    "XI_MAGIC": mailbox.MAGIC,
    "XI_PROBE_MAX": mailbox.PROBE_MAX,
    "XI_CP_STALE": mailbox.Checkpoint.STALE,
    "XI_CP_FINAL": mailbox.Checkpoint.FINAL,
    "XI_RESUME": mailbox.Command.RESUME,
    "XI_PROBE": mailbox.Command.PROBE,
    "XI_DONE": mailbox.Status.DONE,
    "XI_FAULT": mailbox.Status.FAULT,
    "XI_EXCEPTION": mailbox.Status.EXCEPTION,
    "XI_BOOT_INFO": mailbox.BOOT_INFO,
    "XI_BOOT_MAGIC": mailbox.BOOT_MAGIC,
    "XI_EXIT_PORT": mailbox.EXIT_PORT,
    "XI_EXIT_PASS": mailbox.EXIT_PASS,
    "XI_EXIT_FAIL": mailbox.EXIT_FAIL,
    "XI_TAG_OFFSET": mailbox.TAG_OFFSET,
}


def test_the_c_header_and_the_dtypes_agree(tmp_path: Path) -> None:
    lines = constants(CONSTANTS) + size("xi_probe", mailbox.PROBE) + offsets("xi_probe", mailbox.PROBE)
    lines += offsets("xi_mailbox", mailbox.MAILBOX)  # in C it is padded to whole pages
    done = compiled(tmp_path, GUESTS / "lib", ["xi_abi.h"], 32, lines)
    assert done.returncode == 0, done.stderr


def test_tags_are_unique_even_and_leave_page_table_slots_not_present() -> None:
    frames = range(0, 1 << 18, 37)
    assert len({mailbox.load_tag(gfn) for gfn in frames}) == len(frames)
    assert len({mailbox.code_tag(gfn) for gfn in frames}) == len(frames)
    for gfn in (0, 1, 0x1234, (1 << 22) + 5):
        slot = mailbox.tag_slot(gfn)
        assert len(slot) == mailbox.TAG_BYTES
        assert all(slot[at] & 1 == 0 for at in range(0, 16, 4)), "an entry in this slot would be present"
