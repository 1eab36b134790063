"""The face of the engine: what the hardware runs with, and what reports are made from."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from harness.engine import EngineConfig, PlainMemory, ShadowEngine
from harness.x86 import bits
from harness.x86.access import Access
from harness.x86.modes import LONG4, LONG5, PAE
from harness.xi.engine import XiEngine
from tests.xi.domain import CONTROL, Domain

VA = 0x40000000


@pytest.mark.parametrize(
    ("mode", "shadow"), [("unpaged", PAE), ("nopae", PAE), ("pae", PAE), ("long4", LONG4), ("long5", LONG5)]
)
def test_the_hardware_runs_in_the_format_of_the_shadow(mode: str, shadow: object) -> None:
    domain = Domain(mode, cr4=bits.CR4_SMEP | bits.CR4_SMAP | bits.CR4_PKE, wp=False)
    domain.start()
    root = domain.engine.root
    assert root.mode is shadow
    assert root.control.mode is shadow
    assert root.control.wp
    assert root.control.nxe
    assert root.root == root.control.cr3 < 1 << 32
    assert (root.root >> 12) >= domain.pool_base
    assert root.control.smap == root.control.smep == (mode != "unpaged")


def test_an_engine_that_was_told_nothing_maps_the_unpaged_guest() -> None:
    domain = Domain("unpaged")
    assert domain.hardware(0x5000, Access.FETCH).frame == 5
    domain.audit()


@pytest.mark.parametrize("scramble", [False, True])
def test_an_unpaged_guest_is_mapped_large_where_the_machine_allows(scramble: bool) -> None:
    domain = Domain("unpaged", scramble=scramble)
    domain.start()
    large = [spte for spti in domain.engine.sptis if spti.level == 2 for spte in spti.spt.tolist() if spte & 0x80]
    assert len(large) == (0 if scramble else 2)
    domain.audit()


def test_it_is_a_shadow_engine() -> None:
    engine: ShadowEngine = XiEngine(EngineConfig(64, 48, 64), PlainMemory(np.zeros(64 * 4096, np.uint8)))
    assert engine.name == "xi"


def test_the_pool_is_where_the_configuration_put_it() -> None:
    memory = np.zeros(48 * 4096, np.uint8)
    engine = XiEngine(EngineConfig(64, 48, 64, pool_memory=memory), PlainMemory(np.zeros(64 * 4096, np.uint8)))
    base, words = engine.pool
    assert base == 64
    assert words.shape == (48, 512)
    root = (engine.root.root >> 12) - base
    assert memory.view(np.uint64).reshape(-1, 512)[root].any()


def test_a_flush_without_a_change_does_nothing() -> None:
    domain = Domain("long4")
    domain.map(VA, 300)
    domain.start()
    before = domain.engine.stats()
    domain.flush()
    domain.engine.control(domain.state)
    domain.engine.invlpg(VA)
    after = domain.engine.stats()
    assert {name for name in after if after[name] != before[name]} == {"cr3_loads", "controls", "invlpgs", "found"} - (
        {"found"} if after["found"] == before["found"] else set()
    )


def test_modes_follow_each_other_and_keep_their_tables_apart() -> None:
    domain = Domain("pae")
    domain.map(VA, 300)
    domain.start()
    domain.check(VA, Access.STORE)
    pae = domain.state
    long4 = Domain("long4")
    cr0, cr4, efer = CONTROL["long4"]
    # The PAE guest's PD page read as a PML4: nonsense, but every answer must still be the walk's.
    domain.mode = long4.mode
    domain.state = replace(pae, cr0=cr0 | bits.CR0_WP, cr4=cr4, efer=efer)
    domain.start()
    for va in (0, VA, 1 << 39, (1 << 64) - 4096):
        domain.check(va, Access.LOAD)
    domain.audit()
    domain.mode = Domain("pae").mode
    domain.state = pae
    domain.start()
    assert domain.check(VA, Access.STORE).frame == 300
    domain.audit()


def test_descriptions_are_json_and_say_what_is_there() -> None:
    domain = Domain("nopae")
    table = domain.map(VA, 300) >> 12
    domain.map(VA + 0x1000, table)
    domain.start()
    walk = domain.engine.describe_walk(VA)
    assert [step["level"] for step in walk] == [3, 2, 1]
    assert walk[-1]["gfn"] == 300
    record = domain.engine.describe_gfn(table)
    assert record["write_protected"]
    assert record["sptis"][0]["state"] == "in sync"
    assert record["addresses"] == [hex(VA + 0x1000)]
    json.dumps([walk, record, domain.engine.describe_gfn(10**9), domain.engine.stats()])


def test_the_audit_stays_quiet_after_everything_is_recycled() -> None:
    domain = Domain("long4", "demand", sptis=12)
    for number in range(40):
        domain.map(number << 21, 300 + number)
    domain.start()
    for number in range(40):
        domain.check(number << 21, Access.STORE)
        domain.engine.idle_zero(1)
    assert domain.engine.stats()["recycled"] > 20
    assert domain.engine.stats()["zeroed_inline"] > 0
    domain.audit()
