"""What monitor and harness share has one definition, `xi_monitor.h`; the dtypes must agree with a C compiler's view."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from harness.catalogue import FIRMWARE, ROOT
from harness.machine import mailbox
from harness.machine import monitor_abi as abi
from harness.machine.monitor_abi import Command, ExitCode
from harness.x86 import bits
from tests.machine.c_layout import compiled, constants, offsets, size

CONSTANTS = {
    "XI_MONITOR_MAGIC": abi.MONITOR_MAGIC,
    "XI_MONITOR_VERSION": abi.MONITOR_VERSION,
    "XI_AREA_MSRPM": abi.AREA_MSRPM,
    "XI_AREA_IOPM": abi.AREA_IOPM,
    "XI_VCPU_BYTES": abi.VCPU_BYTES,
    "XI_VCPU_MAILBOX": abi.VCPU_MAILBOX,
    "XI_VCPU_VMCB": abi.VCPU_VMCB,
    "XI_VCPU_HSAVE": abi.VCPU_HSAVE,
    "XI_VCPU_PROBE_VMCB": abi.VCPU_PROBE_VMCB,
    "XI_VCPU_STACK": abi.VCPU_STACK,
    "XI_VCPU_PROBE_TABLES": abi.VCPU_PROBE_TABLES,
    "XI_VCPU_PROBE_BYTES": abi.VCPU_PROBE_BYTES,
    "XI_VCPU_BUFFER": abi.VCPU_BUFFER,
    "XI_VCPU_BUFFER_BYTES": abi.VCPU_BUFFER_BYTES,
    "XI_VCPU_MAGIC": abi.VCPU_MAGIC,
    "XI_FEATURE_PKU": abi.FEATURE_PKU,
    "XI_RUN": Command.RUN,
    "XI_CPUID": Command.CPUID,
    "XI_COPY": Command.COPY,
    "XI_RUN_PROBES": Command.RUN_PROBES,
    "XI_READ": Command.READ,
    "XI_WRITE": Command.WRITE,
    "XI_SECOND_ROOT": abi.SECOND_ROOT,
    "XI_PROBE_ASID": abi.PROBE_ASID,
    "XI_STUB_LOAD": abi.STUB_LOAD,
    "XI_STUB_STORE": abi.STUB_STORE,
    "XI_STUB_FETCH": abi.STUB_FETCH,
    "XI_HOST_CR4": abi.HOST_CR4,
    "EFER_SVME": bits.EFER_SVME,
    "VMEXIT_EXCEPTION": ExitCode.EXCEPTION_BASE,
    "VMEXIT_SWINT": ExitCode.SWINT,
    "VMEXIT_VMMCALL": ExitCode.VMMCALL,
    "TLB_FLUSH_ALL": abi.TLB_FLUSH_ALL,
}
# Of the VMCB the monitor names only what it touches.
VMCB_FIELDS = (
    *("asid", "tlb_control", "interrupt_shadow", "exitcode", "exitinfo1", "exitinfo2", "exitintinfo", "eventinj"),
    *("cpl", "cr3", "rflags", "rip", "rax", *abi.SEGMENTS),
)


def test_the_c_headers_and_the_dtypes_agree(tmp_path: Path) -> None:
    lines = constants(CONSTANTS)
    for struct, dtype, names in (
        ("xi_vcpu", abi.VCPU, None),
        ("vmcb_segment", abi.SEGMENT, None),
        ("vmcb", abi.VMCB, VMCB_FIELDS),
    ):
        lines += size(struct, dtype) + offsets(struct, dtype, names)
    done = compiled(tmp_path, ROOT / "firmware", ["svm.h", "xi_monitor.h"], 64, lines)
    assert done.returncode == 0, done.stderr


def test_the_offsets_of_hot_fields_are_those_of_the_dtype() -> None:
    names = (
        "TLB_CONTROL ASID EXITCODE EXITINFO1 EXITINFO2 EXITINTINFO EVENTINJ CPL EFER CR4 CR3 CR0 RFLAGS RIP RSP RAX CR2"
    )
    fields = dict(abi.VMCB.fields or {})
    for name in names.split():
        assert getattr(abi, name) == fields[name.lower()][1], name
    assert fields["kernel_gs_base"][1] == abi.KERNEL_GS_BASE
    assert fields["virtual_interrupt"][1] == abi.V_TPR
    assert [abi.segment_offset(name) for name in abi.SEGMENTS] == [fields[name][1] for name in abi.SEGMENTS]


def test_no_two_parts_of_a_vcpu_block_overlap() -> None:
    parts = [
        (abi.VCPU_MAILBOX, abi.VCPU.itemsize),
        (abi.VCPU_VMCB, 4096),
        (abi.VCPU_HSAVE, 4096),
        (abi.VCPU_PROBE_VMCB, 4096),
        (abi.VCPU_STACK, 0x2000),
        (abi.VCPU_PROBE_TABLES, abi.VCPU_PROBE_BYTES),
        (abi.VCPU_BUFFER, abi.VCPU_BUFFER_BYTES),
        (abi.VCPU_BYTES, 0),
    ]
    assert all(start + size <= following for (start, size), (following, _) in pairwise(parts))
    assert abi.AREA_MSRPM + abi.MSRPM_BYTES <= abi.AREA_IOPM
    assert abi.vcpu_block(0, 0) >= abi.AREA_IOPM + abi.IOPM_BYTES


# APM vol. 2, appendix B, vectors 3 and 4: the bit of an intercept, by hand.
@pytest.mark.parametrize(
    ("code", "word", "bit"),
    [
        (ExitCode.INTR, 0, 0),
        (ExitCode.NMI, 0, 1),
        (ExitCode.CPUID, 0, 18),
        (ExitCode.SWINT, 0, 21),
        (ExitCode.HLT, 0, 24),
        (ExitCode.INVLPG, 0, 25),
        (ExitCode.IOIO, 0, 27),
        (ExitCode.MSR, 0, 28),
        (ExitCode.SHUTDOWN, 0, 31),
        (ExitCode.VMRUN, 1, 0),
        (ExitCode.VMMCALL, 1, 1),
        (ExitCode.XSETBV, 1, 13),
    ],
)
def test_intercept_bits_follow_from_exit_codes(code: ExitCode, word: int, bit: int) -> None:
    vmcb = np.zeros((), abi.VMCB)
    vmcb["intercept"] = abi.intercept_bit(code)
    words = np.frombuffer(vmcb.tobytes(), "<u4")[3:5]
    assert words[word] == 1 << bit
    assert words[1 - word] == 0


def test_a_batch_of_probes_fits_the_buffer() -> None:
    assert 512 * mailbox.PROBE.itemsize == abi.VCPU_BUFFER_BYTES


def test_the_rom_ends_at_4_gib_and_shows_no_writable_data() -> None:
    assert FIRMWARE.stat().st_size == 1 << 16
