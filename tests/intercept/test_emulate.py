"""Accesses to devices, carried out for the guest: every plain move, against the system's assembler."""

from __future__ import annotations

import pytest

from harness.intercept.emulate import CannotEmulate, emulate
from tests.x86.assemble import assemble, needs_assembler

GPA = 0xFEE0_0030
LOADED = 0xF1E2_D3C4_B5A6_9788  # every byte has its top bit set
POSITIVE = 0x0112_2334_4556_6778

BYTES = [
    *("al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil"),
    *(f"r{n}b" for n in range(8, 16)),
]
WORDS = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di", *(f"r{n}w" for n in range(8, 16))]
DWORDS = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", *(f"r{n}d" for n in range(8, 16))]
QWORDS = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))]
HIGH = ["ah", "ch", "dh", "bh"]
NAMES = {1: BYTES, 2: WORDS, 4: DWORDS, 8: QWORDS}
SUFFIX = {1: "b", 2: "w", 4: "l", 8: "q"}


class Guest:
    """Registers that are all different, and a device that gives `loaded` and keeps what is stored."""

    def __init__(self, loaded: int = LOADED) -> None:
        self.values = [0x0101_0101_0101_0101 * (n + 1) ^ 0xA5A5_5A5A_1234_8000 + (n << 4) for n in range(16)]
        self.loaded = loaded
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int, int]] = []

    def gpr(self, number: int) -> int:
        return self.values[number]

    def set_gpr(self, number: int, value: int) -> None:
        assert 0 <= value < 1 << 64
        self.values[number] = value

    def read(self, gpa: int, size: int) -> int:
        self.reads.append((gpa, size))
        return self.loaded & (1 << size * 8) - 1

    def write(self, gpa: int, size: int, value: int) -> None:
        self.writes.append((gpa, size, value))

    def run(self, code: bytes, bits: int, gpa: int = GPA) -> None:
        assert emulate(code + b"\x90" * (15 - len(code)), bits, self, gpa, self) == len(code)


def merged(old: int, value: int, size: int, shift: int = 0) -> int:
    """What a register holds after `value` of `size` bytes is written to a part of it."""
    if size == 8:
        return value
    if size == 4:
        return value & 0xFFFF_FFFF
    mask = ((1 << size * 8) - 1) << shift
    return old & ~mask | value << shift & mask


def check_load(code: bytes, bits: int, number: int, size: int, width: int, signed: bool, shift: int = 0) -> None:
    """size: of what is loaded, width: of the register."""
    for loaded in (LOADED, POSITIVE):
        guest = Guest(loaded)
        before = list(guest.values)
        guest.run(code, bits)
        value = loaded & (1 << size * 8) - 1
        if signed and value >> size * 8 - 1:
            value |= (1 << width * 8) - (1 << size * 8)
        before[number] = merged(before[number], value, width, shift)
        assert guest.values == before, code.hex()
        assert (guest.reads, guest.writes) == ([(GPA, size)], [])


def check_store(code: bytes, bits: int, value: int, size: int) -> None:
    guest = Guest()
    before = list(guest.values)
    guest.run(code, bits)
    assert (guest.reads, guest.writes) == ([], [(GPA, size, value)]), code.hex()
    assert guest.values == before


@needs_assembler
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_loads_and_stores_of_every_register_in_64_bit_code(size: int) -> None:
    names = NAMES[size]
    loads = assemble([f"mov (%r10), %{name}" for name in names], 64)
    stores = assemble([f"mov %{name}, 8(%r10,%rbx,2)" for name in names], 64)
    for number, (load, store) in enumerate(zip(loads, stores, strict=True)):
        check_load(load, 64, number, size, size, signed=False)
        check_store(store, 64, Guest().values[number] & (1 << size * 8) - 1, size)


@needs_assembler
@pytest.mark.parametrize(("bits", "address"), [(16, "(%bx,%si)"), (32, "(%esi,%ebx,4)"), (64, "(%rsi)")])
def test_the_high_bytes(bits: int, address: str) -> None:
    loads = assemble([f"mov {address}, %{name}" for name in HIGH], bits)
    stores = assemble([f"mov %{name}, {address}" for name in HIGH], bits)
    for number, (load, store) in enumerate(zip(loads, stores, strict=True)):
        check_load(load, bits, number, 1, 1, signed=False, shift=8)
        check_store(store, bits, Guest().values[number] >> 8 & 0xFF, 1)


@needs_assembler
@pytest.mark.parametrize(("bits", "address"), [(16, "4(%bp)"), (16, "(%eax)"), (32, "(%eax)"), (32, "%es:(%di)")])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_narrower_code(bits: int, address: str, size: int) -> None:
    names = NAMES[size][: 4 if size == 1 else 8]
    loads = assemble([f"mov {address}, %{name}" for name in names], bits)
    stores = assemble([f"mov %{name}, {address}" for name in names], bits)
    for number, (load, store) in enumerate(zip(loads, stores, strict=True)):
        check_load(load, bits, number, size, size, signed=False)
        check_store(store, bits, Guest().values[number] & (1 << size * 8) - 1, size)


EXTENSIONS = [
    *(("movz", size, width) for size, width in ((1, 2), (1, 4), (1, 8), (2, 4), (2, 8))),
    *(("movs", size, width) for size, width in ((1, 2), (1, 4), (1, 8), (2, 4), (2, 8), (4, 8))),
]


@needs_assembler
@pytest.mark.parametrize(("mnemonic", "size", "width"), EXTENSIONS)
def test_extensions(mnemonic: str, size: int, width: int) -> None:
    bits = [64] if width == 8 else [16, 32, 64]
    for code_bits in bits:
        names = NAMES[width][: 16 if code_bits == 64 else 8]
        address = {16: "(%di)", 32: "(%edi)", 64: "0x10(%rdi)"}[code_bits]
        lines = [f"{mnemonic}{SUFFIX[size]}{SUFFIX[width]} {address}, %{name}" for name in names]
        for number, code in enumerate(assemble(lines, code_bits)):
            check_load(code, code_bits, number, size, width, signed=mnemonic == "movs")


@needs_assembler
def test_immediates() -> None:
    cases = [
        ("movb $0x9a, (%rax)", 64, 0x9A, 1),
        ("movw $0xbeef, (%rax)", 64, 0xBEEF, 2),
        ("movl $0xdeadbeef, (%rax)", 64, 0xDEAD_BEEF, 4),
        ("movq $-2, (%rax)", 64, (1 << 64) - 2, 8),  # the sign of 32 bits is extended
        ("movl $-1, %fs:(%eax)", 32, 0xFFFF_FFFF, 4),
        ("movw $-1, (%bx)", 16, 0xFFFF, 2),
        ("movl $0x12345678, 0xb0", 16, 0x1234_5678, 4),
    ]
    for line, bits, value, size in cases:
        (code,) = assemble([line], bits)
        check_store(code, bits, value, size)


@needs_assembler
def test_absolute_addresses_and_non_temporal_stores() -> None:
    load, store, narrow, streamed = assemble(
        ["movabs 0xfee00030, %rax", "movabs %eax, 0xfee00030", "movabs %al, 0xfee00030", "movnti %r9, (%rax)"], 64
    )
    check_load(load, 64, 0, 8, 8, signed=False)
    check_store(store, 64, Guest().values[0] & 0xFFFF_FFFF, 4)
    check_store(narrow, 64, Guest().values[0] & 0xFF, 1)
    check_store(streamed, 64, Guest().values[9], 8)
    (load,) = assemble(["mov 0x1234, %ax"], 16)
    check_load(load, 16, 0, 2, 2, signed=False)


REFUSED = [
    *("addl %eax, (%rbx)", "orb $1, (%rbx)", "cmpl $0, (%rbx)", "testl %eax, (%rbx)", "xchgl %eax, (%rbx)"),
    *("lock incl (%rbx)", "movsb", "rep stosl", "lodsl", "pushq (%rbx)", "popq (%rbx)", "jmp *(%rbx)", "call *(%rbx)"),
    *("movups (%rbx), %xmm0", "movq %xmm0, (%rbx)", "movbe (%rbx), %eax", "fldl (%rbx)", "cmpxchgl %ecx, (%rbx)"),
    *("mov %ds, (%rbx)", "mov (%rbx), %fs", "mov %rax, %rbx", "nop", "ret", "invlpg (%rbx)", "movdir64b (%rax), %rbx"),
]


@needs_assembler
def test_anything_else_is_refused_by_name() -> None:
    for line, code in zip(REFUSED, assemble(REFUSED, 64), strict=True):
        guest = Guest()
        before = list(guest.values)
        with pytest.raises(CannotEmulate, match="`"):
            emulate(code, 64, guest, GPA, guest)
        assert (guest.values, guest.reads, guest.writes) == (before, [], []), line


def test_what_is_no_instruction_is_refused() -> None:
    guest = Guest()
    for code in (b"\x06", b"\x8b", b"", b"\xf0\x8b\x00"):
        with pytest.raises(CannotEmulate, match="no instruction of 64-bit code"):
            emulate(code, 64, guest, GPA, guest)


@needs_assembler
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_last_bytes_of_a_page(size: int) -> None:
    (code,) = assemble([f"mov %{NAMES[size][3]}, (%rax)"], 64)
    for offset in range(0xFF0, 0x1000):
        guest = Guest()
        guest.values[0] = 0x7000 + offset
        gpa = 0xFEE0_0000 + offset
        if offset + size <= 0x1000:
            guest.run(code, 64, gpa)
            assert guest.writes == [(gpa, size, guest.values[3] & (1 << size * 8) - 1)]
        else:
            for where in (gpa, 0xFEE0_1000):  # the first page faults, or the second
                with pytest.raises(CannotEmulate, match="crosses a page"):
                    emulate(code, 64, guest, where, guest)
            assert guest.writes == []


@needs_assembler
def test_a_rip_relative_operand_crosses_pages_too() -> None:
    (code,) = assemble(["mov 0xffd(%rip), %eax"], 64)
    guest = Guest()
    with pytest.raises(CannotEmulate, match="crosses a page"):
        emulate(code, 64, guest, 0xFEE0_0000, guest, rip=0x1000 - len(code))
    assert emulate(code, 64, guest, 0xFEE0_0000, guest, rip=0x1003 - len(code)) == len(code)
    assert emulate(code, 64, guest, 0xFEE0_0000, guest) == len(code)


def test_ram_is_no_device() -> None:
    class Nothing(Guest):
        def read(self, gpa: int, size: int) -> int:
            raise ValueError(f"guest-physical {gpa:#x} is RAM")

    with pytest.raises(CannotEmulate, match="is RAM"):
        emulate(bytes.fromhex("8b00"), 32, Nothing(), 0x1230, Nothing())
