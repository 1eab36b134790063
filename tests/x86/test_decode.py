"""Finding and decoding the instructions that change translations."""

from __future__ import annotations

import pytest

from harness.x86.decode import candidates, decode

REGISTERS = {f"r{name}": 0 for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")} | {
    "r8": 0x1_2345_6000,
    "rax": 0xFFFF_8000_0000_1000,
    "rbx": 0x10,
    "rip": 0x7000,
    "gs_base": 0x100000,
    "fs_base": 0,
}


@pytest.mark.parametrize(
    ("code", "bits", "kind", "value"),
    [
        ("0f22d8", 64, "cr3", 0xFFFF_8000_0000_1000),
        ("0f22d8", 32, "cr3", 0x1000),
        ("410f22d8", 64, "cr3", 0x1_2345_6000),
        ("0f22c0", 32, "cr0", 0x1000),
        ("0f22e0", 64, "cr4", 0xFFFF_8000_0000_1000),
        ("0f30", 64, "wrmsr", 0),
        ("0f0138", 64, "invlpg", 0xFFFF_8000_0000_1000),
        ("0f013c9d10000000", 32, "invlpg", 0x50),
        ("650f017810", 64, "invlpg", 0xFFFF_8000_0010_1010),
        ("0f013d01000000", 64, "invlpg", 0x7008),
    ],
)
def test_what_is_decoded(code: str, bits: int, kind: str, value: int) -> None:
    data = bytes.fromhex(code)
    instruction = decode(data, bits)
    assert instruction is not None
    assert (instruction.kind, instruction.length) == (kind, len(data))
    assert instruction.value(REGISTERS, bits) == value
    assert 0 in candidates(data), "the scan must offer the instruction's start"


@pytest.mark.parametrize("code", ["0f20d8", "0f22d0", "0f01f8", "90", "0f0119", "0f32"])
def test_what_is_not_one_of_them(code: str) -> None:
    assert decode(bytes.fromhex(code), 64) is None


def test_candidates_are_found_anywhere_and_with_prefixes() -> None:
    code = b"\x90" * 5 + bytes.fromhex("410f22d8") + b"\x90" * 3 + bytes.fromhex("0f30")
    assert candidates(code) == [5, 6, 12]
