"""Whether an engine is right at the end of a workload: its own audit, and addresses of all spaces by the book.

The model of the hardware has compared every access with the guest's tables already; here neither its walk of the shadow
takes part nor the guest's bookkeeping, but those of the checker (`harness.check.shadow_answers`) and of the manual
(`harness.x86.walk`).
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Final

import numpy as np

from harness.check.shadow_answers import shadow_answers
from harness.check.verdict import FRAME, GP, Frames
from harness.engine import ShadowEngine
from harness.workload.guest import Guest, Space
from harness.workload.workload import WorkloadError
from harness.x86.access import ALL_ACCESSES
from harness.x86.bits import PAGE_SHIFT
from harness.x86.modes import PHYS_BITS_DEFAULT
from harness.x86.walk import judge, tracer

SPACES: Final = 8  # that are looked at, of those there are
ADDRESSES: Final = 64  # of each
TOLD: Final = 3  # failures of an audit in the message


def check_audit(engine: ShadowEngine) -> None:
    """Raises WorkloadError if an invariant of the engine is broken."""
    failures = engine.audit()
    if failures:
        told = "; ".join(f"{failure.invariant}: {failure.detail}" for failure in failures[:TOLD])
        raise WorkloadError(f"{engine.name}: the audit finds {len(failures)} broken invariants: {told}")


def check_guest(guest: Guest, spaces: Iterable[Space], seed: int) -> None:
    """Raises WorkloadError where some address of `spaces` does not translate as the guest's tables say, for any access,
    and if the audit finds anything."""
    random = Random(seed)
    all_spaces = list(spaces)
    for space in random.sample(all_spaces, min(SPACES, len(all_spaces))):
        guest.switch(space)
        _check_space(guest, _addresses(guest, space, random))
    check_audit(guest.engine)


def _addresses(guest: Guest, space: Space, random: Random) -> list[int]:
    """Some of the kernel map, and of what the L1 tables of `space` cover: every third at random, the others mapped."""
    found = [guest.direct + (random.randrange(guest.frames) << PAGE_SHIFT) for _ in range(ADDRESSES // 4)]
    keys = sorted(space.leaves)
    while keys and len(found) < ADDRESSES:
        key = random.choice(keys)
        mapped = [index for index in range(guest.per_page) if guest.entry(space.leaves[key], index)]
        slots = mapped if mapped and len(found) % 3 else range(guest.per_page)
        found.append(key << guest.span_shift | random.choice(slots) << PAGE_SHIFT)
    return found


def _check_space(guest: Guest, addresses: list[int]) -> None:
    machine = guest.memory.bytes
    to_gfn = np.full(guest.memory.frames, -1, np.int64)
    to_gfn[guest.p2m] = np.arange(guest.frames)

    def read(address: int, size: int) -> int | None:
        gfn = address >> PAGE_SHIFT
        if gfn >= guest.frames:
            return None
        at = guest.p2m[gfn] << PAGE_SHIFT | address & 0xFFF
        return int.from_bytes(machine[at : at + size].tobytes(), "little")

    def to_guest(mfns: Frames) -> Frames:
        gfns: Frames = to_gfn[mfns]
        return gfns

    va = np.repeat(np.array(addresses, np.uint64), len(ALL_ACCESSES))
    access = np.tile(np.array(ALL_ACCESSES, np.uint8), len(addresses))
    answers = shadow_answers(guest.engine, 0, va, access, PHYS_BITS_DEFAULT, to_guest)
    walk = tracer(guest.state, read)
    rows = zip(answers.codes.tolist(), answers.frames.tolist(), strict=True)
    for address in addresses:
        path = walk(address)
        for kind in ALL_ACCESSES:
            wanted = judge(path, kind, guest.state)
            code, frame = next(rows)
            right = (FRAME, path.gfn) if wanted.gpa is not None else (GP if wanted.code is None else wanted.code, frame)
            if (code, frame) != right:
                got = f"frame {frame:#x}" if code == FRAME else f"code {code}"
                raise WorkloadError(
                    f"{guest.engine.name}: {kind.text} at {address:#x} gets {got}, where the tables say {wanted.text}"
                )
