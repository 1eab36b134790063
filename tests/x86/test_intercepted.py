"""What stands at the RIP of an exit: kind, length and operands, against the system's assembler."""

from __future__ import annotations

import itertools

import pytest

from harness.x86.intercepted import KINDS, Intercepted, decode_exit
from harness.x86.operands import GPR_NAMES
from tests.x86.assemble import assemble, needs_assembler

VALUES = [0x1111_0000_0000_0000 * (n % 8) + 0x0101_0101 * n + 0xFFFF_0000_0000 for n in range(16)]
BASES = {"es": 0x10_0000, "cs": 0x20_0000, "ss": 0x30_0000, "ds": 0x40_0000, "fs": 0x50_0000, "gs": 0x7FFF_0060_0000}
RIP = 0x7000


def decoded(code: bytes, bits: int) -> Intercepted:
    found = decode_exit(code + bytes(15 - len(code)), bits)
    assert found is not None, code.hex()
    return found


def linear(instruction: Intercepted) -> int:
    return instruction.linear(VALUES.__getitem__, BASES.__getitem__, RIP)


@needs_assembler
@pytest.mark.parametrize("bits", [32, 64])
def test_every_move_to_and_from_a_control_register(bits: int) -> None:
    names = [name if bits == 64 else f"e{name[1:]}" for name in GPR_NAMES[: 8 if bits == 32 else 16]]
    crs = (0, 2, 3, 4) if bits == 32 else (0, 2, 3, 4, 8)
    cases = list(itertools.product(crs, enumerate(names)))
    codes = assemble([f"mov %{name}, %cr{cr}\nmov %cr{cr}, %{name}" for cr, (_, name) in cases], bits)
    for (cr, (number, name)), pair in zip(cases, codes, strict=True):
        half = len(pair) // 2
        for code, kind in ((pair[:half], "mov_to_cr"), (pair[half:], "mov_from_cr")):
            found = decoded(code, bits)
            assert (found.kind, found.cr, found.register, found.length) == (kind, cr, number, len(code)), name
            assert found.size == bits // 8
            assert found.register_name == GPR_NAMES[number]
            assert found.value(VALUES.__getitem__) == VALUES[number] & (1 << bits) - 1


def test_sixteen_bit_code_moves_all_32_bits() -> None:
    assert decoded(bytes.fromhex("0f22c3"), 16).value(VALUES.__getitem__) == VALUES[3] & 0xFFFF_FFFF


@pytest.mark.parametrize("mod", range(4))
def test_any_modrm_names_a_register(mod: int) -> None:
    """SDM vol. 2B, MOV to control registers: the mod bits are ignored."""
    found = decoded(bytes((0x0F, 0x22, mod << 6 | 3 << 3 | 4)), 32)
    assert (found.cr, found.register, found.length) == (3, 4, 3)


@pytest.mark.parametrize(
    ("code", "bits", "cr", "register"),
    [
        ("f00f22c0", 32, 8, 0),  # LOCK MOV CR0 is CR8
        ("f00f22d8", 32, 3, 0),  # and nothing else is
        ("450f22c1", 64, 8, 9),
        ("66f20f22d9", 64, 3, 1),
        ("48 66 0f 22 d8", 64, 3, 0),
        ("49 66 0f 22 d8", 64, 3, 0),  # the REX prefix does not stand before the opcode
        ("48 41 0f 22 d8", 64, 3, 8),  # the last one counts
    ],
)
def test_prefixes_of_a_move_to_a_control_register(code: str, bits: int, cr: int, register: int) -> None:
    data = bytes.fromhex(code)
    found = decoded(data, bits)
    assert (found.kind, found.cr, found.register, found.length) == ("mov_to_cr", cr, register, len(data))


ADDRESSES_64 = [
    # text, effective address, segment
    ("(%rax)", VALUES[0], "ds"),
    ("(%r13)", VALUES[13], "ds"),
    ("-8(%rbp)", VALUES[5] - 8, "ss"),
    ("0x40(%rsp)", VALUES[4] + 0x40, "ss"),
    ("0x12345678(%r12,%r15,8)", VALUES[12] + VALUES[15] * 8 + 0x1234_5678, "ds"),
    ("(,%rdi,4)", VALUES[7] * 4, "ds"),
    ("0x1000", 0x1000, "ds"),
    ("-0x1000", -0x1000, "ds"),
    ("%gs:0x28", 0x28, "gs"),
    ("%fs:(%rdx)", VALUES[2], "fs"),
]


@needs_assembler
def test_addresses_in_64_bit_code() -> None:
    codes = assemble([f"invlpg {text}" for text, _, _ in ADDRESSES_64], 64)
    for code, (text, effective, segment) in zip(codes, ADDRESSES_64, strict=True):
        found = decoded(code, 64)
        base = BASES[segment] if segment in ("fs", "gs") else 0
        assert (found.kind, found.length) == ("invlpg", len(code)), text
        assert linear(found) == effective + base & (1 << 64) - 1, text


@needs_assembler
def test_every_base_and_index_in_64_bit_code() -> None:
    bases, indexes = (None, *range(16)), (None, *(n for n in range(16) if n != 4))
    cases = list(itertools.product(bases, indexes, (1, 2, 4, 8)))

    def text(base: int | None, index: int | None, scale: int) -> str:
        inside = "" if index is None else f",%{GPR_NAMES[index]},{scale}"
        return f"invlpg 0x123({'' if base is None else '%' + GPR_NAMES[base]}{inside})" if base or inside else "nop"

    lines = [text(*case) for case in cases]
    for case, line, code in zip(cases, lines, assemble(lines, 64), strict=True):
        base, index, scale = case
        if line == "nop":
            continue
        expected = 0x123 + (0 if base is None else VALUES[base]) + (0 if index is None else VALUES[index] * scale)
        assert linear(decoded(code, 64)) == expected & (1 << 64) - 1, line


@needs_assembler
def test_an_address_size_prefix_cuts_the_offset() -> None:
    (code,) = assemble(["invlpg -1(%ecx,%ebx,2)"], 64)
    assert linear(decoded(code, 64)) == VALUES[1] + VALUES[3] * 2 - 1 & 0xFFFF_FFFF
    (code,) = assemble(["invlpg %gs:(%eax)"], 64)
    assert linear(decoded(code, 64)) == BASES["gs"] + (VALUES[0] & 0xFFFF_FFFF)


@needs_assembler
def test_rip_counts_from_the_next_instruction() -> None:
    (code,) = assemble(["invlpg 0x100(%rip)"], 64)
    assert linear(decoded(code, 64)) == RIP + len(code) + 0x100


ADDRESSES_32 = [
    ("(%eax)", VALUES[0], "ds"),
    ("-4(%ebp)", VALUES[5] - 4, "ss"),
    ("(%esp)", VALUES[4], "ss"),
    ("%es:(%edi,%ecx,4)", VALUES[7] + VALUES[1] * 4, "es"),
    ("%cs:0x1234", 0x1234, "cs"),
    ("%ss:(%edx)", VALUES[2], "ss"),
    ("%ds:(%ebp)", VALUES[5], "ds"),
    ("%fs:(%esi)", VALUES[6], "fs"),
    ("%gs:8", 8, "gs"),
]


@needs_assembler
def test_addresses_in_32_bit_code_have_segment_bases() -> None:
    codes = assemble([f"invlpg {text}" for text, _, _ in ADDRESSES_32], 32)
    for code, (text, effective, segment) in zip(codes, ADDRESSES_32, strict=True):
        assert linear(decoded(code, 32)) == (effective & 0xFFFF_FFFF) + BASES[segment] & 0xFFFF_FFFF, text


ADDRESSES_16 = [
    ("(%bx,%si)", VALUES[3] + VALUES[6], "ds"),
    ("(%bp,%di)", VALUES[5] + VALUES[7], "ss"),
    ("-2(%bp)", VALUES[5] - 2, "ss"),
    ("0x8000(%di)", VALUES[7] + 0x8000, "ds"),
    ("0x4321", 0x4321, "ds"),
    ("%es:(%bx)", VALUES[3], "es"),
]


@needs_assembler
def test_addresses_in_16_bit_code_wrap_at_64_kib() -> None:
    codes = assemble([f"invlpg {text}" for text, _, _ in ADDRESSES_16], 16)
    for code, (text, effective, segment) in zip(codes, ADDRESSES_16, strict=True):
        assert linear(decoded(code, 16)) == (effective & 0xFFFF) + BASES[segment], text


FIXED = {
    "clts": "clts",
    "rdmsr": "rdmsr",
    "wrmsr": "wrmsr",
    "cpuid": "cpuid",
    "hlt": "hlt",
    "vmmcall": "vmmcall",
    "vmrun": "vmrun",
    "vmload": "vmload",
    "vmsave": "vmsave",
    "stgi": "stgi",
    "clgi": "clgi",
    "skinit": "skinit",
    "invlpga": "invlpga",
    "int $0x80": "int",
    "int3": "int3",
    "in %dx, %eax": "in",
    "in $0x60, %al": "in",
    "out %al, $0xe4": "out",
    "outw %ax, %dx": "out",
    "rep insb": "ins",
    "outsl": "outs",
    "lmsw %ax": "lmsw",
    "lmsw (%eax)": "lmsw",
    "smsw %eax": "smsw",
    "smsw (%eax)": "smsw",
    "invpcid (%eax), %ecx": "invpcid",
    "into": "into",
}


@needs_assembler
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_every_kind_is_known_with_its_length(bits: int) -> None:
    skipped = {64: ("into", "invpcid (%eax), %ecx"), 16: ("invpcid (%eax), %ecx",)}.get(bits, ())
    lines = [line for line in FIXED if line not in skipped]
    for line, code in zip(lines, assemble(lines, bits), strict=True):
        found = decoded(code, bits)
        assert (found.kind, found.length) == (FIXED[line], len(code)), line
    assert set(FIXED.values()) | {"mov_to_cr", "mov_from_cr", "invlpg"} == KINDS


@needs_assembler
def test_operands_of_the_others() -> None:
    lines = ["lmsw %cx", "smsw %r9d", "smsw %r9", "smsw %dx", "smsw 4(%rbx)", "invpcid (%rdx), %r11", "int $0x81"]
    lmsw, wide, wider, narrow, stored, invpcid, soft = (decoded(code, 64) for code in assemble(lines, 64))
    assert (lmsw.cr, lmsw.register, lmsw.size) == (0, 1, 2)
    assert lmsw.value(VALUES.__getitem__) == VALUES[1] & 0xFFFF
    assert [(found.register, found.size) for found in (wide, wider, narrow)] == [(9, 4), (9, 8), (2, 2)]
    assert (stored.register, stored.size, linear(stored)) == (-1, 2, VALUES[3] + 4)
    assert (invpcid.register, invpcid.size, linear(invpcid)) == (11, 8, VALUES[2])
    assert soft.immediate == 0x81


@pytest.mark.parametrize(
    "code", ["90", "0f22", "0f22c8", "0f20f8", "0f23c0", "8b00", "0f01f8", "0f0119", "", "f0", "0f"]
)
def test_what_is_not_one_of_them(code: str) -> None:
    """MOV CR1 and CR7 do not exist; SWAPGS and LIDT share opcodes with those that do; the rest ends too early."""
    assert decode_exit(bytes.fromhex(code), 64) is None


def test_an_operand_that_is_not_there_is_not_read() -> None:
    cpuid = decoded(bytes.fromhex("0fa2"), 64)
    with pytest.raises(ValueError, match="no memory operand"):
        linear(cpuid)
    with pytest.raises(ValueError, match="no register operand"):
        cpuid.value(VALUES.__getitem__)
