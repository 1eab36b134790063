"""Why XI decides as it does: the row of a decision table that applies to an access, or to an entry of a guest table.

What a row depends on is asked of the very functions that the fault path and the resync ask, so that nothing else can
come out here than there; nothing is changed by asking. All records are JSON-able.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from harness.engine import AWAY, GENERAL_PROTECTION, MMIO, RETRY
from harness.x86.access import Access
from harness.x86.bits import PTE_A, PTE_ADDR, PTE_P, PTE_PS, PTE_RW, error_code_text
from harness.xi.asi import Asi
from harness.xi.decision import PLACE, RESYNC, RIGHTS, DecisionTable, Resync, Row, Step
from harness.xi.describe import spte_text, spti_state
from harness.xi.gpt import AD, SW_OVERRIDE, divided_flags
from harness.xi.guest_walk import RW, GuestWalks, Walk
from harness.xi.pool import FRAMES_PER_SPTI, Spti
from harness.xi.resync import Resynchronisation
from harness.xi.roles import DIRECT, GUEST

_NOW: Final = RESYNC.features[1].values
_KINDS: Final = RIGHTS.features[0].values


def yes_no(value: object) -> str:
    """A feature's value that is one of `decision.NO_YES`."""
    return "yes" if value else "no"


def rows_for(table: DecisionTable, features: Mapping[str, str]) -> list[tuple[int, Row]]:
    """The rows of `table` that decide for one combination of `features` (all of them given), with their numbers from
    0: one where the first that fits decides, else all that fit, possibly none."""
    fits = [
        (number, row)
        for number, row in enumerate(table.rows)
        if all(features[name] in wanted.split("|") for name, wanted in row.when.items())
    ]
    return fits[:1] if table.first_match else fits


def decision(table: DecisionTable, features: Mapping[str, str]) -> dict[str, Any]:
    """What `table` says to `features`: its name, how many rows it has, the features, and the rows that decide (number
    from 1, what it asks for, its action, why)."""
    rows = [
        {"number": number + 1, "when": dict(row.when), "action": row.action.name, "why": row.why}
        for number, row in rows_for(table, features)
    ]
    return {"table": table.name, "of": len(table.rows), "features": dict(features), "rows": rows}


# One entry.


def target_of(xi: Asi, spti: Spti, index: int) -> tuple[dict[str, Any], int, list[str]]:
    """Where an SPTE in use leads: ``gfn`` and how many ``frames`` of a page, or ``spti`` and its ``role``; the slot of
    that target; and what is wrong with it, when the rest cannot be relied upon."""
    spte = xi.q[spti.base + index]
    mfn = (spte & PTE_ADDR) >> 12
    if spti.level > 1 and not spte & PTE_PS:
        number, rest = divmod(mfn - xi.pool_memory.base_mfn, FRAMES_PER_SPTI)
        if rest or not 0 <= number < len(xi.sptis) or xi.sptis[number].role is None:
            return {}, -1, [f"leads to machine frame {mfn:#x}, where no SPT in use is"]
        role = xi.sptis[number].role
        assert role is not None
        return {"spti": number, "role": role.text}, xi.links.parents(number), []
    gfn = xi.p2m.to_gfn[mfn] if mfn < xi.p2m.machine_frames else -1
    if gfn < 0:
        return {}, -1, [f"maps machine frame {mfn:#x}, which is not the guest's"]
    frames = 1 << 9 * (spti.level - 1)
    wrong = []
    piece = spti.gfn + index * frames
    if spti.kind is DIRECT and gfn != piece:
        wrong.append(f"this piece of the page is gfn {piece:#x}")
    return {"gfn": gfn, "frames": frames}, xi.links.slot(spti.level, gfn), wrong


def wrong_target(xi: Asi, spti: Spti, index: int) -> list[str]:
    """What `target_of` finds wrong with an SPTE; nothing with an empty one."""
    return target_of(xi, spti, index)[2] if xi.q[spti.base + index] else []


@dataclass(frozen=True, slots=True)
class EntryCase:
    """What RESYNC is asked of one SPTE and the guest's entry behind it. features: by name; gfn: what the entry leads
    to, 0 when it leads nowhere."""

    features: dict[str, str]
    gfn: int

    @property
    def action(self) -> Resync:
        return Resync(RESYNC.lookup[RESYNC.pack(**self.features)])


def entry_case(xi: Resynchronisation, spti: Spti, index: int, entry: int, fill: bool) -> EntryCase:
    """What `resync_spte` would ask the table for SPTE `index` of the GUEST table `spti`, the guest's being `entry`.

    `target_of` must find nothing wrong with the SPTE.
    """
    now, gfn = 0, 0
    if entry & PTE_P:
        now, gfn = xi._classify(spti, index, entry)
    spte = xi.q[spti.base + index]
    features = RESYNC.unpack(xi._what_it_was(spti, spte, now, gfn, entry) if spte else 0)
    features |= {"now": _NOW[now], "fill": yes_no(fill)}
    features["whole"] = yes_no(_NOW[now] == "large" and xi.whole(gfn, spti.level))
    return EntryCase(features, gfn)


def resync_decision(xi: Resynchronisation, spti: Spti, index: int, entry: int, fill: bool) -> dict[str, Any] | None:
    """The `decision` on an `entry_case`; None for an SPTE that leads nowhere sensible."""
    if wrong_target(xi, spti, index):
        return None
    return decision(RESYNC, entry_case(xi, spti, index, entry, fill).features)


def wanted_flags(xi: Resynchronisation, spti: Spti, index: int, entry: int, case: EntryCase) -> int:
    """The flags that the SPTE `index`, in use, would have after a REFLAG with the guest's `entry`."""
    spte = xi.q[spti.base + index]
    flags = xi.spte_flags(spti, entry, case.features["now"] == "table")
    if spti.level == 1 or spte & PTE_PS:
        return flags | xi.leaf_rw(spti, case.gfn, flags)
    return divided_flags(flags) if case.features["now"] == "large" else flags


def contradiction(xi: Resynchronisation, spti: Spti, index: int) -> str:
    """Why SPTE `index` of the GUEST table `spti`, which is in use and leads somewhere, cannot have come from the entry
    in the snapshot; "" if it can. A right that is still withheld is none: RW comes back when it is asked for."""
    spte = xi.q[spti.base + index]
    if spte & SW_OVERRIDE:
        return ""  # open to the supervisor for a store that CR0.WP=0 allows, against its entry
    entry = spti.snapshot_entry(index)
    case = entry_case(xi, spti, index, entry, True)
    if case.action is not Resync.REFLAG:
        row = rows_for(RESYNC, case.features)[0][1]
        return f"not from the snapshot's entry: {case.action.name}, {row.why}"
    differs = (spte & ~PTE_ADDR ^ wanted_flags(xi, spti, index, entry, case)) & ~PTE_A
    withheld = PTE_RW & ~spte if spti.level == 1 or spte & PTE_PS else 0
    if differs & ~withheld:
        return "not the rights of the snapshot's entry"
    return ""


def guest_entry(xi: Resynchronisation, spti: Spti, index: int) -> int:
    """The guest's entry behind SPTE `index` of a GUEST table, as it is in memory now."""
    assert spti.rules is not None
    page = xi.guest_page(spti)
    return int((page.view("<u4") if spti.rules.entry_bytes == 4 else page)[spti.guest_index(index)])


def explain_entry(xi: Resynchronisation, gfn: int, index: int) -> list[dict[str, Any]]:
    """What becomes of the SPTEs of entry `index` of the guest table `gfn`, one record for each SPTE (a 32-bit guest's
    PDE has two) of each SPTI that shadows it; none when nothing does.

    spti, role, state; spte_index, spte and text; then: the snapshot's entry, now: the guest's. flush: the
    `resync_decision` at the next synchronisation; fault: that when a fault needs the entry, None where that is the
    same. latched: the entry counts once CR3 is loaded. wrong: why the SPTE leads nowhere sensible, and nothing can be
    decided then.
    """
    out = []
    for number in xi.gpts.get(gfn, ()):
        spti = xi.sptis[number]
        assert spti.role is not None and spti.rules is not None
        at = index - spti.first
        if not 0 <= at < spti.count:
            continue
        for spte_index in range(at << spti.halved, (at + 1) << spti.halved):
            now = guest_entry(xi, spti, spte_index)
            out.append(
                {
                    "spti": number,
                    "role": spti.role.text,
                    "state": spti_state(spti),
                    "spte_index": spte_index,
                    "spte": xi.q[spti.base + spte_index],
                    "text": spte_text(xi.q[spti.base + spte_index]),
                    "then": spti.snapshot_entry(spte_index),
                    "now": now,
                    "flush": resync_decision(xi, spti, spte_index, now, xi.eager),
                    "fault": None if xi.eager else resync_decision(xi, spti, spte_index, now, True),
                    "latched": spti.rules.latched,
                    "wrong": wrong_target(xi, spti, spte_index),
                }
            )
    return out


# One access.


def rights_features(xi: GuestWalks, walk: Walk, access: int) -> dict[str, str]:
    """What RIGHTS is asked of `access` after `walk`, by name."""
    packed = walk.rights | xi._control_rights | xi._key_rights(walk)
    return RIGHTS.unpack(packed) | {"kind": _KINDS[access & 3], "user": yes_no(access & 4)}


def place_features(xi: GuestWalks, walk: Walk, access: int) -> dict[str, str]:
    """What PLACE is asked of an `access` that the guest allows, by name, as things stand now."""
    gfn = walk.gfn
    backed = xi.p2m.backed(gfn)
    store = access & 3 == 1
    return {
        "store": yes_no(store),
        "frame": "backed" if backed else ("away" if gfn in xi.p2m.away else "none"),
        "gpt": yes_no(backed and xi.guarded[gfn]),
        "unlogged": yes_no(backed and xi.logging and not xi.logged[gfn]),
        "override": yes_no(store and not access & 4 and xi.needs_override(walk)),
    }


def explain_access(xi: GuestWalks, va: int, access: int) -> dict[str, Any]:
    """What `shadow_fault` would make of `access` at `va` now.

    code: what it would return; result: the same in words. walk: (level, entry) of the guest's entries. rights: the
    `decision` of RIGHTS, None without paging and for an address that is not canonical. place: that of PLACE, and path:
    what RESYNC says of the SPTE at each level as far as there are SPTs, both only when the guest allows the access
    (path: only when the frame is there). behind: a table on the path has fallen behind the guest's, so everything is
    synchronised first, and then it is decided.
    """
    record: dict[str, Any] = {"va": va, "access": Access(access).text, "walk": [], "rights": None, "place": None}
    record |= {"path": [], "behind": False}
    if va >> xi._top_shift not in xi._tops:
        return record | {"code": GENERAL_PROTECTION, "result": "#GP: the address is not canonical"}
    if xi._rows:
        walk = xi.gva_to_gpa(va)
        record["walk"] = [(xi._root_level - depth, entry) for depth, entry in enumerate(walk.entries)]
        record["rights"] = decision(RIGHTS, rights_features(xi, walk, access))
        code = xi.results(walk, [access])[0]
        if code != RETRY:
            text = f"AWAY: gfn {walk.gfn:#x} is awaited" if code == AWAY else f"#PF {error_code_text(code)}"
            return record | {"code": code, "result": text}
    else:
        walk = Walk([], [], RW, True, va >> 12, 0)
    features = place_features(xi, walk, access)
    steps = Step(PLACE.lookup[PLACE.pack(**features)])
    record["place"] = decision(PLACE, features)
    if steps & (Step.MMIO | Step.AWAY):
        if steps & Step.AWAY:
            return record | {"code": AWAY, "result": f"AWAY: gfn {walk.gfn:#x} is awaited"}
        return record | {"code": MMIO, "result": f"MMIO: gfn {walk.gfn:#x} has no frame"}
    record["path"] = shadow_path(xi, va, walk)
    record["behind"] = any(step["behind"] for step in record["path"])
    return record | {"code": RETRY, "result": "RETRY: the shadow has it then"}


def shadow_path(xi: GuestWalks, va: int, walk: Walk) -> list[dict[str, Any]]:
    """The SPTEs for `va` from the root down, to the first that is empty or behind the guest's entry, with what RESYNC
    says of the entries of `walk`.

    level, spti, role, state, index, spte, text; resync: the `resync_decision` when a fault needs the entry, None for
    tables that no guest table stands behind. behind: the snapshot differs from the entry by more than A and D, so that
    the fault synchronises first whatever the path leads through. wrong: as in `explain_entry`.
    """
    out: list[dict[str, Any]] = []
    spti = xi.root_spti
    while spti is not None and spti.role is not None:
        index = va >> spti.shift & 511
        spte = xi.q[spti.base + index]
        resync, behind = None, False
        wrong = wrong_target(xi, spti, index)
        if spti.kind is GUEST:
            entry = walk.entries[xi._root_level - spti.level]
            behind = not spti.fresh and bool((spti.snapshot_entry(index) ^ entry) & ~AD)
            resync = resync_decision(xi, spti, index, entry, True)
        out.append(
            {
                "level": spti.level,
                "spti": spti.index,
                "role": spti.role.text,
                "state": spti_state(spti),
                "index": index,
                "spte": spte,
                "text": spte_text(spte),
                "resync": resync,
                "behind": behind,
                "wrong": wrong,
            }
        )
        if behind or not spte or spti.level == 1 or spte & PTE_PS or wrong:
            break
        spti = xi.pool_memory.child(spte)
    return out
