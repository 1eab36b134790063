"""Writes to CR0, CR3, CR4 and EFER: every rule, and what the guest reads afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.x86 import bits
from harness.x86.control import ControlState
from harness.x86.control_writes import (
    CR0_RULES,
    CR3_RULES,
    CR4_ALWAYS,
    CR4_OFFERED_BY,
    CR4_RULES,
    EFER_OFFERED_BY,
    EFER_RULES,
    GP,
    MAX,
    Here,
    Native,
    Processor,
    Rule,
    Write,
    clts,
    lmsw,
    smsw,
    write_cr0,
    write_cr3,
    write_cr4,
    write_efer,
)

PE, PG, TS = bits.CR0_PE, bits.CR0_PG, bits.CR0_TS
FLAT = ControlState(cr0=0x11)
PAE_PAGED = ControlState(cr0=PG | 0x11, cr3=0x1000, cr4=bits.CR4_PAE)
LONG = replace(PAE_PAGED, efer=bits.EFER_LME | bits.EFER_LMA)
READY = replace(FLAT, cr4=bits.CR4_PAE, efer=bits.EFER_LME)  # for long mode

RULES = {"cr0": CR0_RULES, "cr3": CR3_RULES, "cr4": CR4_RULES, "efer": EFER_RULES}

# (register, rule) -> writes (state, value, 64-bit code) that break it and nothing else that is on.
BREAKING: dict[tuple[str, str], tuple[ControlState, int, bool]] = {
    ("cr0", "bits 63:32"): (LONG, 1 << 40 | PG | 0x11, True),
    ("cr0", "PG without PE"): (FLAT, PG, False),
    ("cr0", "NW without CD"): (FLAT, bits.CR0_NW | 0x11, False),
    ("cr0", "PG set with LME and without PAE"): (replace(FLAT, efer=bits.EFER_LME), PG | 0x11, False),
    ("cr0", "PG cleared in 64-bit code"): (LONG, 0x11, True),
    ("cr0", "PG cleared with PCIDE"): (replace(PAE_PAGED, cr4=bits.CR4_PAE | bits.CR4_PCIDE), 0x11, False),
    ("cr3", "bits above MAXPHYADDR in long mode"): (LONG, 1 << 40, True),
    ("cr3", "reserved bits in a PDPTE of a PAE guest"): (PAE_PAGED, 0x1000, False),
    ("cr4", "bits that the processor does not have"): (FLAT, 1 << 31, False),
    ("cr4", "PCIDE that CPUID does not offer"): (LONG, bits.CR4_PAE | bits.CR4_PCIDE, True),
    ("cr4", "PCIDE set outside long mode, or with CR3[11:0] not 0"): (FLAT, bits.CR4_PCIDE, False),
    ("cr4", "PAE cleared in long mode"): (LONG, 0, True),
    ("cr4", "LA57 changed in 64-bit code"): (LONG, bits.CR4_PAE | bits.CR4_LA57, True),
    ("cr4", "LA57 changed in compatibility mode"): (LONG, bits.CR4_PAE | bits.CR4_LA57, False),
    ("efer", "bits that the processor does not have"): (FLAT, 1 << 1, False),
    ("efer", "LMA changed"): (FLAT, bits.EFER_LMA, False),
    ("efer", "LME changed with paging on"): (PAE_PAGED, bits.EFER_LME, False),
}
BAD_PDPTES = (bits.PTE_P | 1 << 5, 0, 0, 0)


def write(
    register: str, state: ControlState, value: int, code64: bool, processor: Processor = MAX
) -> ControlState | GP:
    if register == "cr3":
        return write_cr3(state, value, processor, BAD_PDPTES)
    if register == "efer":
        return write_efer(state, value, processor)
    return (write_cr0 if register == "cr0" else write_cr4)(state, value, code64, processor)


def all_rules() -> list[tuple[str, Rule]]:
    return [(register, rule) for register, rules in RULES.items() for rule in rules]


@pytest.mark.parametrize(("register", "rule"), all_rules(), ids=lambda x: x if isinstance(x, str) else x.name)
def test_every_rule_alone(register: str, rule: Rule) -> None:
    state, value, code64 = BREAKING[register, rule.name]
    seen = Write(state, value, code64, MAX, BAD_PDPTES)
    assert rule.broken_by(seen)
    assert {r.name for r in RULES[register] if r.here is not Here.ACCEPT and r.broken_by(seen)} <= {rule.name}
    after = write(register, state, value, code64)
    if rule.here is Here.FAULT:
        assert after == GP()
    elif rule.here is Here.DROP:
        assert after == state
    else:
        assert isinstance(after, ControlState)
        # What the processor keeps of the value is its affair (bits that do not exist are lost); it is not refused.


@pytest.mark.parametrize(("register", "rule"), all_rules(), ids=lambda x: x if isinstance(x, str) else x.name)
def test_a_guest_sees_what_qemu_does_or_there_is_a_reason(register: str, rule: Rule) -> None:
    same = {Native.FAULTS: Here.FAULT, Native.ACCEPTS: Here.ACCEPT, Native.DROPS: Here.DROP}
    assert (same.get(rule.native) is rule.here) != bool(rule.why), register
    assert rule.source


@pytest.mark.parametrize("register", RULES)
def test_a_harmless_write_breaks_no_rule(register: str) -> None:
    values = {"cr0": LONG.cr0 | bits.CR0_WP, "cr3": 0xFF_FFFF_F018, "cr4": LONG.cr4 | bits.CR4_PGE, "efer": LONG.efer}
    for rule in RULES[register]:
        assert not rule.broken_by(Write(LONG, values[register], True, MAX)), rule.name


# ---- what becomes of the state


def test_lma_follows_pg_and_lme() -> None:
    on = write_cr0(READY, PG | 0x11, False)
    assert isinstance(on, ControlState)
    assert on.efer == bits.EFER_LME | bits.EFER_LMA
    assert on.mode.name == "long4"
    off = write_cr0(on, 0x11, False)
    assert isinstance(off, ControlState)
    assert (off.efer, off.cr0, off.mode.name) == (bits.EFER_LME, 0x11, "unpaged")
    assert write_cr0(PAE_PAGED, PG | 0x11 | TS, False) == replace(PAE_PAGED, cr0=PG | 0x11 | TS), "no LME, no LMA"


def test_et_is_one_in_every_processor() -> None:
    assert write_cr0(FLAT, PE, False) == FLAT


def test_reserved_bits_of_cr0_are_kept_below_bit_32() -> None:
    after = write_cr0(LONG, 0xFFFF_FFFF_FFFF_FFFF, True)
    assert isinstance(after, ControlState)
    assert after.cr0 == 0xFFFF_FFFF


def test_clts_and_lmsw_and_smsw() -> None:
    state = replace(LONG, cr0=LONG.cr0 | TS | bits.CR0_WP)
    assert clts(state) == replace(state, cr0=state.cr0 & ~TS)
    assert lmsw(state, 0) == clts(state), "PE stays"
    assert lmsw(clts(state), 0xFFF8) == state, "and only four bits are looked at"
    after = lmsw(ControlState(cr0=0x10), 1)
    assert isinstance(after, ControlState)
    assert after.cr0 == 0x11
    assert [smsw(state, size) for size in (2, 4, 8)] == [0x19, 0x8001_0019, 0x8001_0019]


def test_cr3_has_32_bits_outside_long_mode() -> None:
    assert write_cr3(PAE_PAGED, 0x12_3456_7FFF) == replace(PAE_PAGED, cr3=0x3456_7FFF)
    assert write_cr3(LONG, 0x12_3456_7FFF) == replace(LONG, cr3=0x12_3456_7FFF)
    assert write_cr3(LONG, 1 << 63) == GP(), "no PCIDs are offered: bit 63 is reserved"
    assert isinstance(write_cr3(LONG, 1 << 45, replace(MAX, phys_bits=46)), ControlState)


def test_every_bit_of_cr4() -> None:
    for bit in (1 << n for n in range(64)):
        after = write_cr4(FLAT, bit, False)
        expected = bit in CR4_ALWAYS or (bit in CR4_OFFERED_BY and bit != bits.CR4_PKS)
        assert after == (replace(FLAT, cr4=bit) if expected else GP()), hex(bit)
        if bit in CR4_OFFERED_BY:
            assert write_cr4(FLAT, bit, False, replace(MAX, cr4=MAX.cr4 & ~bit)) == GP()


def test_every_bit_of_efer() -> None:
    for bit in (1 << n for n in range(64)):
        kept = bit in (bits.EFER_SCE, bits.EFER_LME, bits.EFER_NXE)
        assert write_efer(FLAT, bit) == replace(FLAT, efer=bit if kept else 0), hex(bit)
        old = replace(LONG, efer=LONG.efer | bits.EFER_NXE)
        after = write_efer(old, bits.EFER_LME | bit)
        wanted = bits.EFER_LMA | bits.EFER_LME | (bit if kept else 0)
        assert after == replace(old, efer=wanted), "LMA is not the guest's to change"


def leaves() -> dict[int, list[int]]:
    found = {0: [0xD, 0, 0, 0], 1: [0] * 4, 7: [0] * 4, 0x8000_0000: [0x8000_0008, 0, 0, 0]}
    return found | {0x8000_0001: [0] * 4, 0x8000_0008: [0x3928, 0, 0, 0]}


@pytest.mark.parametrize("bit", [*CR4_OFFERED_BY, *EFER_OFFERED_BY])
def test_a_processor_is_what_cpuid_says(bit: int) -> None:
    table = leaves()

    def cpuid(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        assert subleaf == 0
        a, b, c, d = table[leaf]
        return a, b, c, d

    bare = Processor.described_by(cpuid)
    assert bare == Processor(sum(CR4_ALWAYS), 0, 40)
    for offered_by, field in ((CR4_OFFERED_BY, "cr4"), (EFER_OFFERED_BY, "efer")):
        if bit in offered_by:
            table = leaves()
            leaf, register, position = offered_by[bit]
            table[leaf][register] = 1 << position
            assert getattr(Processor.described_by(cpuid), field) == getattr(bare, field) | bit


def test_a_small_processor_is_not_asked_for_leaves_that_it_has_not() -> None:
    table = {0: (1, 0, 0, 0), 1: (0, 0, 1 << 26 | 1 << 17, 0), 0x8000_0000: (0x8000_0000, 0, 0, 0)}
    small = Processor.described_by(lambda leaf, _: table[leaf])
    assert small == Processor(sum(CR4_ALWAYS) | bits.CR4_OSXSAVE, 0, 36, pcid=True)
    assert not MAX.efer & bits.EFER_SVME
