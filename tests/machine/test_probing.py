"""Probes by a second VMCB: what the hardware says about tables, against what the manual says."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from harness.machine import monitor_abi as abi
from harness.machine import vcpu as vcpu_module
from harness.machine.mailbox import PROBE, TAG_OFFSET, Status, code_tag, load_tag, tag_slot
from harness.machine.monitor_abi import ExitCode
from harness.machine.probing import BATCH
from harness.x86 import bits
from harness.x86.access import Access
from harness.x86.modes import MODES, PAE
from tests.machine.tiny_live import CODE, PD, ROOTS, VMMCALL, Live, enter, live_machine, run, shadow_root

pytestmark = pytest.mark.two_cores

ROOM = 0x700000  # tables of the tests
FRAME = 0x900000
GFN = 0x123
PLACE = {0: TAG_OFFSET + 8, 1: TAG_OFFSET + 12, 2: TAG_OFFSET}
RIGHTS = (bits.PTE_P, bits.PTE_RW, bits.PTE_US, bits.PTE_NX)
MODE_NAMES = ("long4", "long5", "pae")


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with live_machine(VMMCALL) as running:
        running.machine.ram.write(FRAME + TAG_OFFSET, tag_slot(GFN))
        yield running


def table(live: Live, mode: str) -> tuple[int, npt.NDArray[np.uint64]]:
    """A PD of 512 entries of its own in the identity map: the first virtual address behind it, and its page table."""
    words = live.machine.ram.bytes.view(np.uint64)
    base = 0x3000_0000  # no RAM there: nothing else uses these addresses
    words[(PD >> 3) + (base >> 21)] = ROOM | bits.PTE_P | bits.PTE_RW | bits.PTE_US
    return base, words[ROOM >> 3 : (ROOM >> 3) + 512]


def probes(*rows: tuple[int, int, int]) -> npt.NDArray[np.void]:
    """(va, op, value) each."""
    records = np.zeros(len(rows), PROBE)
    for at, (va, op, value) in enumerate(rows):
        records[at]["va"], records[at]["op"], records[at]["value"] = va, op, value
    return records


def expected(entry: int, access: Access, cr4: int, pkru: int) -> int | None:
    """The error code by the SDM (vol. 3A, 4.6 and 4.7), None for an access that completes. The upper levels allow all,
    CR0.WP and EFER.NXE are set."""
    code = (2 if access.is_store else 0) | (4 if access.is_user else 0) | (16 if access.is_fetch else 0)
    if not entry & bits.PTE_P:
        return code
    user_page = bool(entry & bits.PTE_US)
    refused = access.is_user and not user_page
    refused |= access.is_store and not entry & bits.PTE_RW
    refused |= access.is_fetch and bool(entry & bits.PTE_NX)
    refused |= access.is_fetch and not access.is_user and user_page and bool(cr4 & bits.CR4_SMEP)
    refused |= not access.is_fetch and not access.is_user and user_page and bool(cr4 & bits.CR4_SMAP)
    if cr4 & bits.CR4_PKE and user_page and not access.is_fetch:
        rights = pkru >> 2 * (entry >> bits.PTE_PK_SHIFT & 15)
        if rights & 1 or (rights & 2 and access.is_store):
            return code | 1 | 32
    return code | 1 if refused else None


@pytest.mark.parametrize("cr4", [0, bits.CR4_SMEP, bits.CR4_SMAP | bits.CR4_PSE, bits.CR4_PKE], ids=hex)
@pytest.mark.parametrize("mode", MODE_NAMES)
def test_every_right_and_access_as_the_manual_says(live: Live, mode: str, cr4: int) -> None:
    if mode == PAE.name:
        cr4 &= ~bits.CR4_PKE  # keys are for long modes
    keys = range(3) if cr4 & bits.CR4_PKE else range(1)
    pkru = 0b10_01_00  # key 1: no access, key 2: no stores
    base, entries = table(live, mode)
    rows, codes = [], []
    for number, (key, chosen) in enumerate(product(keys, product((False, True), repeat=len(RIGHTS)))):
        entry = FRAME | key << bits.PTE_PK_SHIFT | sum(bit for bit, on in zip(RIGHTS, chosen, strict=True) if on)
        for kind, access in enumerate(Access):
            at = number * len(Access) + kind
            entries[at] = entry
            rows.append((base + (at << 12) + PLACE[access & 3], int(access), 0x7000_0000 + at))
            codes.append(expected(entry, access, cr4, pkru))
    asked = probes(*rows)
    got = live.vcpu.probe(asked, shadow_root(mode, cr4), pkru)
    for at, (record, code) in enumerate(zip(got, codes, strict=True)):
        va, op, value = rows[at]
        what = f"{Access(op).name} through {int(entries[at]):#x}"
        assert (int(record["va"]), int(record["op"])) == (va, op), what
        marks = bits.PTE_A | bits.PTE_D if op & 3 == 1 else bits.PTE_A
        if code is None:
            assert int(record["status"]) == Status.DONE, what
            answer = {0: load_tag(GFN), 1: value, 2: code_tag(GFN)}[op & 3]
            assert int(record["value"]) == answer, what
        else:
            assert (int(record["status"]), int(record["code"]), int(record["cr2"])) == (Status.FAULT, code, va), what
            marks = 0
        assert int(entries[at]) & (bits.PTE_A | bits.PTE_D) == marks, what
    stores = [value for (_, op, value), code in zip(rows, codes, strict=True) if op & 3 == 1 and code is None]
    assert int(live.machine.ram.bytes[FRAME + TAG_OFFSET + 12 :][:4].view(np.uint32)[0]) == stores[-1], "in order"
    assert (asked["status"] == Status.NOT_RUN).all(), "the caller's records are left alone"


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_the_guest_sees_nothing_of_it(live: Live, mode: str) -> None:
    vcpu, ram = live.vcpu, live.machine.ram
    base, entries = table(live, mode)
    entries[0] = FRAME | bits.PTE_P | bits.PTE_US
    enter(vcpu, mode)
    assert run(vcpu) == ExitCode.VMMCALL
    vcpu.pkru = 0x50
    for number in (1, 2, 3, 5, 6, 7):
        vcpu.set_gpr(number, number)
    before = bytes(ram.bytes[vcpu.vmcb_address :][:4096]), vcpu.registers(), bytes(ram.bytes[ROOTS[mode] :][:4096])
    got = vcpu.probe(probes((base + PLACE[0], 4, 0)), shadow_root(mode), 0)
    assert int(got[0]["value"]) == load_tag(GFN)
    after = bytes(ram.bytes[vcpu.vmcb_address :][:4096]), vcpu.registers(), bytes(ram.bytes[ROOTS[mode] :][:4096])
    assert before == after
    assert vcpu.pkru == 0x50
    vcpu.vmcb[abi.RIP >> 3] = CODE
    assert run(vcpu) == ExitCode.VMMCALL
    assert (vcpu.pkru, vcpu.gpr(7)) == (0x50, 7)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 0, 2, 1, 1, 0, 3, 2)])
def test_pae_probes_behind_all_four_entries_in_their_order(live: Live, order: tuple[int, ...]) -> None:
    words = live.machine.ram.bytes.view(np.uint64)
    root = ROOM + 0x1000
    for quarter in range(4):  # the four entries of this root lead to one PD with one PT
        words[(root >> 3) + quarter] = ROOM + 0x2000 | bits.PTE_P
    words[ROOM + 0x2000 >> 3] = ROOM + 0x3000 | bits.PTE_P | bits.PTE_RW | bits.PTE_US
    words[ROOM + 0x3000 >> 3] = FRAME | bits.PTE_P | bits.PTE_RW | bits.PTE_US
    rows = []
    for number, quarter in enumerate(order):
        rows.append((quarter << 30 | PLACE[1], 1 | 4 * (number & 1), 1000 + number))
        rows.append(((quarter ^ 1) << 30 | PLACE[1], 0, 0))
    got = live.vcpu.probe(probes(*rows), shadow_root("pae", root=root))
    assert (got["status"] == Status.DONE).all()
    assert got["op"].tolist() == [op for _, op, _ in rows]
    assert got["value"][1::2].tolist() == [1000 + number for number in range(len(order))], "a load sees the last store"


def test_a_root_in_which_every_entry_is_probed_and_taken(live: Live) -> None:
    words = live.machine.ram.bytes.view(np.uint64)
    root = ROOM + 0x1000
    words[root >> 3 : (root >> 3) + 512] = words[ROOTS["long4"] >> 3]
    shadow = shadow_root("long4", root=root)
    rows = [(shadow.mode.sign_extend(entry << 39) | FRAME | PLACE[0], 4, 0) for entry in range(512)]
    got = live.vcpu.probe(probes(*rows, *rows), shadow)
    assert len(got) > 2 * BATCH
    assert (got["status"] == Status.DONE).all()
    assert (got["value"] == load_tag(GFN)).all()


@pytest.mark.parametrize("mode", MODE_NAMES[:2])
@pytest.mark.parametrize("op", list(Access))
def test_an_address_that_is_not_canonical(live: Live, mode: str, op: Access) -> None:
    va = 1 << MODES[mode].va_bits - 1
    got = live.vcpu.probe(probes((va, op, 0), (va - 0x1000 | TAG_OFFSET, op, 0)), shadow_root(mode))
    assert (int(got[0]["status"]), int(got[0]["code"])) == (Status.EXCEPTION, bits.VECTOR_GP)
    assert int(got[1]["status"]) == Status.FAULT


def test_a_fetch_that_does_something_else_is_not_taken_for_an_answer(live: Live) -> None:
    at = FRAME + 0x100
    base, entries = table(live, "long4")
    entries[0] = FRAME | bits.PTE_P | bits.PTE_US
    for code, status, told in (
        (b"\x0f\x0b", Status.EXCEPTION, bits.VECTOR_UD),
        (b"\xf4", Status.NOT_RUN, ExitCode.HLT),
        (b"\x0f\x20\xd8", Status.NOT_RUN, ExitCode.READ_CR3),
        (VMMCALL, Status.NOT_RUN, ExitCode.VMMCALL),
    ):
        live.vcpu.write_code(at, code)
        got = live.vcpu.probe(probes((base + 0x100, Access.FETCH, 0)), shadow_root("long4"))
        assert (int(got[0]["status"]), int(got[0]["code"])) == (status, told)


def test_a_fetch_that_does_not_come_back_is_ended_and_the_others_are_run(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vcpu_module, "RUNAWAY_SECONDS", 0.1)
    base, entries = table(live, "long4")
    entries[0] = FRAME | bits.PTE_P | bits.PTE_US
    live.vcpu.write_code(FRAME + 0x100, b"\x90\xeb\xfd")
    load, runaway = (base + PLACE[0], Access.LOAD, 0), (base + 0x100, Access.USER_FETCH, 0)
    got = live.vcpu.probe(probes(load, runaway, load, runaway, load), shadow_root("long4"))
    assert got["status"].tolist() == [Status.DONE, Status.NOT_RUN, Status.DONE, Status.NOT_RUN, Status.DONE]
    assert int(got[1]["code"]) == ExitCode.NMI


def test_an_nmi_between_probes_spoils_none(live: Live) -> None:
    base, entries = table(live, "long4")
    entries[0] = FRAME | bits.PTE_P | bits.PTE_US
    rows = [(base + PLACE[op & 3], op, 0) for op in (0, 2, 4, 6)]
    assert live.vcpu.kick is not None
    live.vcpu.kick()  # pending until the next VMRUN
    got = live.vcpu.probe(probes(*rows), shadow_root("long4"))
    assert (got["status"] == Status.DONE).all()


def test_no_probes_are_no_work(live: Live) -> None:
    seen = live.vcpu.exits
    assert len(live.vcpu.probe(np.zeros(0, PROBE), shadow_root("long4"))) == 0
    assert live.vcpu.exits == seen


def test_the_root_is_read_anew_for_every_call(live: Live) -> None:
    words = live.machine.ram.bytes.view(np.uint64)
    root = ROOM + 0x1000
    words[root >> 3 : (root >> 3) + 512] = 0
    asked = probes((FRAME | PLACE[0], 0, 0))
    assert int(live.vcpu.probe(asked, shadow_root("long4", root=root))[0]["status"]) == Status.FAULT
    words[root >> 3] = words[ROOTS["long4"] >> 3]
    assert int(live.vcpu.probe(asked, shadow_root("long4", root=root))[0]["status"]) == Status.DONE
