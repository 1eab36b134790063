"""Breakpoints are set wherever a translating instruction can be executed."""

from __future__ import annotations

import numpy as np

from harness.intercept.breakpoints import CodeScanner
from harness.machine.gdbstub import breakpoint_packet

MOV_CR3_RAX = b"\x0f\x22\xd8"


def ram_with(code: dict[int, bytes], frames: int = 8) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    ram = np.zeros(frames * 4096, dtype=np.uint8)
    for address, data in code.items():
        ram[address : address + len(data)] = np.frombuffer(data, dtype=np.uint8)
    return ram


def gfns(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, dtype=np.int64)


def test_every_virtual_address_of_a_found_instruction_gets_one_breakpoint() -> None:
    scanner = CodeScanner(ram_with({0x2010: MOV_CR3_RAX}))
    packets = scanner.executable(gfns(1, 2, 3), lambda gfn: (0x400000, 0x500000) if gfn == 2 else (gfn << 12,))
    assert sorted(packets) == sorted((breakpoint_packet(0x400010), breakpoint_packet(0x500010)))
    assert scanner.executable(gfns(2), lambda gfn: (0x400000, 0x500000)) == []


def test_a_later_alias_of_a_known_frame_gets_its_breakpoint() -> None:
    scanner = CodeScanner(ram_with({0x2010: MOV_CR3_RAX}))
    scanner.executable(gfns(2), lambda gfn: (0x400000,))
    assert scanner.executable(gfns(2), lambda gfn: (0x400000, 0x600000)) == [breakpoint_packet(0x600010)]


def test_an_instruction_across_a_page_boundary_is_found() -> None:
    scanner = CodeScanner(ram_with({0x2FFF: MOV_CR3_RAX}))
    assert breakpoint_packet(0x2FFF) in scanner.executable(gfns(2), lambda gfn: (gfn << 12,))


def test_code_that_appears_later_is_found_by_scanning_again() -> None:
    ram = ram_with({})
    scanner = CodeScanner(ram)
    assert scanner.executable(gfns(2), lambda gfn: (gfn << 12,)) == []
    ram[0x2010:0x2013] = np.frombuffer(MOV_CR3_RAX, dtype=np.uint8)
    assert scanner.forget([1, 3]).tolist() == []
    again = scanner.forget()
    assert again.tolist() == [2]
    assert scanner.executable(again, lambda gfn: (gfn << 12,)) == [breakpoint_packet(0x2010)]


def test_one_frame_is_scanned_again_when_only_its_code_changed() -> None:
    scanner = CodeScanner(ram_with({}))
    scanner.executable(gfns(1, 2, 3), lambda gfn: (gfn << 12,))
    assert scanner.forget([3, 2, 7]).tolist() == [2, 3]
    assert scanner.forget().tolist() == [1]
