"""The reference walk: what the guest's own tables say of an address, by the book and by nothing else.

It is the third answer beside the shadow and the processor, so it shares no code with any engine. It is scalar
and reads memory through a function, so it serves guest RAM, a copy of it, or a test's dictionary alike.

Sources: Intel SDM vol. 3A, sections 4.3-4.5 (structures), 4.6 (access rights, protection keys), 4.7 (#PF error
code); 4.4.1 for the PAE PDPTEs. What the processor in QEMU does differently is in `harness.check.exceptions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

from harness.x86 import bits, modes
from harness.x86.access import ALL_ACCESSES, Access
from harness.x86.control import ControlState
from harness.x86.modes import PHYS_BITS_DEFAULT, PagingMode

Read = Callable[[int, int], int | None]
"""``read(physical address, bytes)``: the little-endian value there, None where no memory answers."""

MAPPED: Final = "mapped"
ABSENT: Final = "not present"
RESERVED: Final = "reserved bit set"
NON_CANONICAL: Final = "non-canonical"

# The rights that a whole path leaves, as one small integer (so that a verdict can be looked up by it).
WRITABLE: Final = 1
USER: Final = 2
EXECUTABLE: Final = 4
KEY_SHIFT: Final = 4

ALLOWED: Final = -1  # in `fault_codes`: no fault

_ENTRY_FLAGS: Final = (
    (bits.PTE_P, "P"),
    (bits.PTE_RW, "W"),
    (bits.PTE_US, "U"),
    (bits.PTE_PWT, "PWT"),
    (bits.PTE_PCD, "PCD"),
    (bits.PTE_A, "A"),
    (bits.PTE_D, "D"),
    (bits.PTE_PS, "PS"),
    (bits.PTE_G, "G"),
    (bits.PTE_NX, "NX"),
)


class Step(NamedTuple):
    """One level of a walk.

    table: gfn of the table. number: of the entry in it. address: of the entry, in bytes. backed: memory answered.
    """

    level: int
    table: int
    number: int
    address: int
    entry: int
    large: bool
    backed: bool


@dataclass(slots=True)
class Path:
    """Where the tables lead for one address, before any access is judged.

    outcome: MAPPED, ABSENT, RESERVED or NON_CANONICAL. gpa: of `va` itself, and page_size in bytes, when mapped.
    rights: WRITABLE | USER | EXECUTABLE | protection key << KEY_SHIFT, over all levels.
    """

    va: int
    steps: tuple[Step, ...]
    outcome: str
    gpa: int = -1
    page_size: int = 0
    rights: int = 0

    @property
    def gfn(self) -> int:
        """The 4 KiB frame of `va`, -1 when it is not mapped."""
        return self.gpa >> bits.PAGE_SHIFT


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one access gets: a guest-physical address, a #PF error code, or #GP (neither)."""

    gpa: int | None = None
    code: int | None = None

    @property
    def text(self) -> str:
        if self.gpa is not None:
            return f"frame {self.gpa >> bits.PAGE_SHIFT:#x} + {self.gpa & 0xFFF:#x}"
        return "#GP" if self.code is None else f"#PF {bits.error_code_text(self.code)}"


class _Row(NamedTuple):
    """One level as `trace` needs it: everything that does not depend on the address, worked out once."""

    number: int
    shift: int
    index_mask: int
    may_map_large: bool
    has_rights: bool
    reserved_table: int
    reserved_large: int


@lru_cache(maxsize=64)
def _rows(mode: PagingMode, nxe: bool, pse: bool, phys_bits: int) -> tuple[_Row, ...]:
    rows = []
    for level in mode.levels:
        rows.append(
            _Row(
                level.number,
                level.shift,
                level.entries - 1,
                level.may_map_large and pse,
                level.has_rights,
                modes.reserved_bits(mode, level.number, False, nxe, phys_bits),
                modes.reserved_bits(mode, level.number, True, nxe, phys_bits),
            )
        )
    return tuple(rows)


def tracer(control: ControlState, read: Read, phys_bits: int = PHYS_BITS_DEFAULT) -> Callable[[int], Path]:
    """A function that walks one address after the other: what depends on the registers alone is worked out once.

    It follows the tables for an address (0 .. 2**64-1) until a leaf, an absent entry or a reserved bit. Where no
    memory answers the entry counts as 0 (not present): QEMU's unassigned memory reads so (7.2,
    `unassigned_mem_read`); on silicon it is the chipset's choice.
    """
    mode = control.mode
    canonical = mode.is_canonical
    if not mode.levels:
        everything = WRITABLE | USER | EXECUTABLE
        size = 1 << mode.va_bits
        return lambda va: Path(va, (), MAPPED, va, size, everything) if canonical(va) else Path(va, (), NON_CANONICAL)
    entry_bytes = mode.entry_bytes
    nx = bits.PTE_NX if mode.has_nx and control.nxe else 0
    address_mask, pse36, root = mode.address_mask, mode.pse36, control.root_gpa
    rows = _rows(mode, control.nxe, control.pse, phys_bits)

    def walk_one(va: int) -> Path:
        if not canonical(va):
            return Path(va, (), NON_CANONICAL)
        base, all_set, any_set = root, -1, 0
        steps: list[Step] = []
        for number, shift, index_mask, may_map_large, has_rights, reserved_table, reserved_large in rows:
            index = (va >> shift) & index_mask
            address = base + index * entry_bytes
            word = read(address, entry_bytes)
            entry = word or 0
            large = may_map_large and entry & bits.PTE_PS != 0
            steps.append(Step(number, base >> bits.PAGE_SHIFT, index, address, entry, large, word is not None))
            if not entry & bits.PTE_P:
                return Path(va, tuple(steps), ABSENT)
            if entry & (reserved_large if large else reserved_table):
                return Path(va, tuple(steps), RESERVED)
            if has_rights:
                all_set &= entry
                any_set |= entry
            if large or number == 1:
                span = 1 << shift
                frame = entry & address_mask & ~(span - 1)
                if large and pse36:
                    frame |= (entry & 0x1F_E000) << 19  # bits 20:13 are address bits 39:32 (SDM table 4-4)
                rights = (all_set >> 1) & (WRITABLE | USER)  # RW and US are bits 1 and 2
                if not any_set & nx:
                    rights |= EXECUTABLE
                rights |= (entry >> bits.PTE_PK_SHIFT & 15) << KEY_SHIFT
                return Path(va, tuple(steps), MAPPED, frame | (va & (span - 1)), span, rights)
            base = entry & address_mask
        raise AssertionError(f"paging mode {mode.name} has no last level")

    return walk_one


def trace(control: ControlState, va: int, read: Read, phys_bits: int = PHYS_BITS_DEFAULT) -> Path:
    """Follows the tables for the one address `va`; see `tracer`."""
    return tracer(control, read, phys_bits)(va)


def protection_fault(rights: int, access: Access, control: ControlState) -> int | None:
    """The #PF code of `access` to a mapped page with `rights`, None when it is allowed (SDM 4.6.1, 4.6.2, 4.7).

    EFLAGS.AC counts as 0 in both rings: SMAP is not suspended.
    """
    if not control.mode.levels:
        return None
    user_page = bool(rights & USER)
    code = bits.PF_P | access.error_bits(control.reports_fetch)
    denied = False
    if access.is_user:
        denied = not user_page
    elif user_page:
        denied = control.smep if access.is_fetch else control.smap
    if access.is_fetch:
        denied = denied or not rights & EXECUTABLE
    elif access.is_store and not rights & WRITABLE:
        denied = denied or access.is_user or control.wp
    if control.pke and user_page and not access.is_fetch:
        key = control.pkru >> (2 * (rights >> KEY_SHIFT)) & 3
        write_matters = access.is_store and (access.is_user or control.wp)
        if key & 1 or (key & 2 and write_matters):
            denied = True
            code |= bits.PF_PK
    return code if denied else None


@lru_cache(maxsize=4096)
def fault_codes(outcome: str, rights: int, control: ControlState) -> tuple[int | None, ...]:
    """For every access in the order of `ALL_ACCESSES`: ALLOWED, the #PF code, or None for #GP."""
    return tuple(_code(outcome, rights, access, control) for access in ALL_ACCESSES)


def _code(outcome: str, rights: int, access: Access, control: ControlState) -> int | None:
    if outcome == NON_CANONICAL:
        return None
    if outcome == MAPPED:
        code = protection_fault(rights, access, control)
        return ALLOWED if code is None else code
    code = access.error_bits(control.reports_fetch)
    return code | bits.PF_P | bits.PF_RSVD if outcome == RESERVED else code


def judge(path: Path, access: Access, control: ControlState) -> Verdict:
    """What `access` gets at the end of `path`."""
    code = _code(path.outcome, path.rights, access, control)
    if code == ALLOWED:
        return Verdict(gpa=path.gpa)
    return Verdict(code=code)


def walk(
    control: ControlState, va: int, access: Access, read: Read, phys_bits: int = PHYS_BITS_DEFAULT
) -> tuple[Path, Verdict]:
    """`trace` and `judge` in one: the path, and what `access` gets."""
    path = trace(control, va, read, phys_bits)
    return path, judge(path, access, control)


def entry_text(entry: int) -> str:
    """The flags of an entry of any level, e.g. ``P W U A``; ``-`` when none is set."""
    names = [name for bit, name in _ENTRY_FLAGS if entry & bit]
    key = (entry & bits.PTE_PK) >> bits.PTE_PK_SHIFT
    if key:
        names.append(f"key={key}")
    return " ".join(names) or "-"


def describe(path: Path) -> list[dict[str, Any]]:
    """The steps of `path` as JSON-able rows: level, table, index, entry, flags, and a note where it stopped. The last
    one of an address that is mapped has its gfn too."""
    rows: list[dict[str, Any]] = [
        {
            "level": step.level,
            "table": step.table,
            "index": step.number,
            "entry": step.entry,
            "flags": entry_text(step.entry),
            "note": "" if step.backed else "no memory there",
        }
        for step in path.steps
    ]
    if rows and path.outcome == MAPPED:
        rows[-1]["gfn"] = path.gfn
    elif rows and not rows[-1]["note"]:
        rows[-1]["note"] = path.outcome
    return rows
