"""What gdb is told about the guest's registers.

With a 64-bit image gdb gets QEMU's own documents. With a 32-bit one it would refuse those (the file says i386, they
say i386:x86-64), so it gets a description of an i386, and `Narrow` translates: QEMU's `g` has the 64-bit layout
whatever the guest executes. Format: the GDB manual, appendix "Target Descriptions"; the features of an i386 are those
of its section "i386 Features".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from harness.debug.debuggee import Debuggee, Refused

TARGET: Final = "target.xml"


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one register of a description lies in the reply to ``g``: offset and size in bytes."""

    name: str
    number: int
    offset: int
    size: int


def slots(documents: dict[str, bytes]) -> list[Slot]:
    """The registers of a description, in the order of ``g``.

    documents: annex -> XML; what ``target.xml`` includes is among them. Raises KeyError if it is not.
    """
    top = documents[TARGET]
    annexes = re.findall(r'<xi:include href="([^"]+)"', top.decode()) or [TARGET]
    found: list[Slot] = []
    number = offset = 0
    for annex in annexes:
        for element in ElementTree.fromstring(documents[annex]).iter("reg"):
            number = int(element.get("regnum", number))
            size = int(element.attrib["bitsize"]) // 8
            found.append(Slot(element.attrib["name"], number, offset, size))
            number += 1
            offset += size
    return found


def is_narrow(image: Path) -> bool:
    """Whether gdb takes the file for 32-bit code: its ELF class. Raises OSError if it cannot be read."""
    with image.open("rb") as file:
        return file.read(5) == b"\x7fELF\x01"


# ---- the i386 that a 32-bit image gets

# Name of a type -> its bytes, and its fields: name=bit, or name=first-last.
_FLAGS: Final = {
    "i386_eflags": (
        4,
        "CF=0 =1 PF=2 AF=4 ZF=6 SF=7 TF=8 IF=9 DF=10 OF=11 IOPL=12-13 NT=14 RF=16 VM=17 AC=18 VIF=19 VIP=20 ID=21",
    ),
    "i386_mxcsr": (4, "IE=0 DE=1 ZE=2 OE=3 UE=4 PE=5 DAZ=6 IM=7 DM=8 ZM=9 OM=10 UM=11 PM=12 RC=13-14 FZ=15"),
    "i386_cr0": (4, "PE=0 MP=1 EM=2 TS=3 ET=4 NE=5 WP=16 AM=18 NW=29 CD=30 PG=31"),
    "i386_cr4": (
        4,
        "VME=0 PVI=1 TSD=2 DE=3 PSE=4 PAE=5 MCE=6 PGE=7 PCE=8 OSFXSR=9 OSXMMEXCPT=10 UMIP=11 LA57=12 VMXE=13 SMXE=14 "
        "FSGSBASE=16 PCIDE=17 OSXSAVE=18 SMEP=20 SMAP=21 PKE=22",
    ),
    "i386_efer": (8, "SCE=0 LME=8 LMA=10 NXE=11 SVME=12 LMSLE=13 FFXSR=14 TCE=15"),
}

_VECTOR: Final = """\
<vector id="v4f" type="ieee_single" count="4"/>
<vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/>
<vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/>
<vector id="v2i64" type="int64" count="2"/>
<union id="vec128">
<field name="v4_float" type="v4f"/>
<field name="v2_double" type="v2d"/>
<field name="v16_int8" type="v16i8"/>
<field name="v8_int16" type="v8i16"/>
<field name="v4_int32" type="v4i32"/>
<field name="v2_int64" type="v2i64"/>
<field name="uint128" type="uint128"/>
</union>
"""


@dataclass(frozen=True, slots=True)
class _Narrowed:
    """A register of the i386: the low `bits` bits of QEMU's register `wide`."""

    name: str
    wide: str
    bits: int
    type: str
    group: str = ""


def _same(names: str, bits: int, kind: str, group: str = "") -> tuple[_Narrowed, ...]:
    return tuple(_Narrowed(name, name, bits, kind, group) for name in names.split())


# Feature -> (the types of its own, its registers), in gdb's own order.
_FEATURES: Final[dict[str, tuple[tuple[str, ...], tuple[_Narrowed, ...]]]] = {
    "org.gnu.gdb.i386.core": (
        ("i386_eflags",),
        (
            *(_Narrowed(f"e{name}", f"r{name}", 32, "int32") for name in ("ax", "cx", "dx", "bx")),
            *(_Narrowed(f"e{name}", f"r{name}", 32, "data_ptr") for name in ("sp", "bp")),
            *(_Narrowed(f"e{name}", f"r{name}", 32, "int32") for name in ("si", "di")),
            _Narrowed("eip", "rip", 32, "code_ptr"),
            *_same("eflags", 32, "i386_eflags"),
            *_same("cs ss ds es fs gs", 32, "int32"),
            *_same("st0 st1 st2 st3 st4 st5 st6 st7", 80, "i387_ext"),
            *_same("fctrl fstat ftag fiseg fioff foseg fooff fop", 32, "int", "float"),
        ),
    ),
    "org.gnu.gdb.i386.sse": (
        ("vec128", "i386_mxcsr"),
        (
            *_same("xmm0 xmm1 xmm2 xmm3 xmm4 xmm5 xmm6 xmm7", 128, "vec128"),
            *_same("mxcsr", 32, "i386_mxcsr", "vector"),
        ),
    ),
    "org.xi-harness.i386.control": (
        ("i386_cr0", "i386_cr4", "i386_efer"),
        (
            *_same("cr0", 32, "i386_cr0"),
            *_same("cr2 cr3", 32, "int32"),
            *_same("cr4", 32, "i386_cr4"),
            *_same("efer", 64, "i386_efer"),
        ),
    ),
}


def _type_xml(name: str) -> str:
    if name == "vec128":
        return _VECTOR
    size, fields = _FLAGS[name]
    lines = [f'<flags id="{name}" size="{size}">']
    for field in fields.split():
        label, _, place = field.partition("=")
        start, _, end = place.partition("-")
        lines.append(f'<field name="{label}" start="{start}" end="{end or start}"/>')
    return "\n".join([*lines, "</flags>", ""])


def _register_xml(register: _Narrowed) -> str:
    group = f' group="{register.group}"' if register.group else ""
    return f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}"{group}/>\n'


def _document() -> bytes:
    # Without an <architecture> it is the file's, and `set architecture i8086` shows 16-bit code: gdb 13 would take the
    # one named here instead.
    text = '<?xml version="1.0"?>\n<!DOCTYPE target SYSTEM "gdb-target.dtd">\n<target version="1.0">\n'
    for feature, (types, registers) in _FEATURES.items():
        text += f'<feature name="{feature}">\n'
        text += "".join(map(_type_xml, types)) + "".join(map(_register_xml, registers)) + "</feature>\n"
    return (text + "</target>\n").encode()


NARROW: Final = {TARGET: _document()}
"""The description of an i386: annex -> XML."""


class Narrow:
    """A `Debuggee` for a gdb that debugs a 32-bit image: `wide`, with the registers of an i386.

    The upper halves are not shown; a write makes them 0, as a write in 32-bit code does.
    """

    def __init__(self, wide: Debuggee) -> None:
        """Raises KeyError if the description of `wide` lacks a register."""
        self.documents = NARROW
        self._wide = wide
        theirs = {slot.name: slot for slot in slots(wide.documents)}
        registers = [register for _, members in _FEATURES.values() for register in members]
        # Number of the i386's register -> its size and the slot that it is the beginning of.
        self._pairs = [(register.bits // 8, theirs[register.wide]) for register in registers]

    def read_registers(self) -> bytes:
        raw = self._wide.read_registers()
        return b"".join(raw[slot.offset : slot.offset + size] for size, slot in self._pairs)

    def write_register(self, number: int, value: bytes) -> None:
        if not 0 <= number < len(self._pairs):
            raise Refused(f"there is no register number {number}")
        _, slot = self._pairs[number]
        self._wide.write_register(slot.number, value.ljust(slot.size, b"\0"))

    def read_memory(self, va: int, count: int) -> bytes:
        return self._wide.read_memory(va, count)

    def write_memory(self, va: int, data: bytes) -> None:
        self._wide.write_memory(va, data)
