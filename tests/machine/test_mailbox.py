"""The mailbox has one definition, `xi_abi.h`; the numpy dtypes must agree with what a C compiler makes of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness.catalogue import GUESTS
from harness.machine import mailbox

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
    lines = [f"_Static_assert({name} == {int(value)}u, {name!r});" for name, value in CONSTANTS.items()]
    lines.append(f"_Static_assert(sizeof(struct xi_probe) == {mailbox.PROBE.itemsize}, 'probe');")
    for struct, dtype in (("xi_probe", mailbox.PROBE), ("xi_mailbox", mailbox.MAILBOX)):
        for name, field in (dtype.fields or {}).items():
            lines.append(f"_Static_assert(__builtin_offsetof(struct {struct}, {name}) == {field[1]}, {name!r});")
    source = tmp_path / "layout.c"
    source.write_text('#include "xi_abi.h"\n' + "\n".join(lines).replace("'", '"') + "\n")
    done = subprocess.run(
        ["gcc", "-m32", "-ffreestanding", "-fsyntax-only", "-I", str(GUESTS / "lib"), str(source)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_tags_are_unique_even_and_leave_page_table_slots_not_present() -> None:
    frames = range(0, 1 << 18, 37)
    assert len({mailbox.load_tag(gfn) for gfn in frames}) == len(frames)
    assert len({mailbox.code_tag(gfn) for gfn in frames}) == len(frames)
    for gfn in (0, 1, 0x1234, (1 << 22) + 5):
        slot = mailbox.tag_slot(gfn)
        assert len(slot) == mailbox.TAG_BYTES
        assert all(slot[at] & 1 == 0 for at in range(0, 16, 4)), "an entry in this slot would be present"
