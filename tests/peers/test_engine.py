"""What all peers answer in the same way: that they are installed, what they refuse, what they count."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from harness.engine import GENERAL_PROTECTION, EngineConfig, PlainMemory
from harness.engines import check_policies, engine_class
from harness.peers.engine import PeerEngine
from harness.x86.access import Access
from tests.peers.domain import PEERS, PeerDomain

VA = 0x40000000
every_engine = pytest.mark.parametrize("engine", PEERS.values(), ids=PEERS)
THREAD = (
    "shadow_fault",
    "shadow_resync_all",
    "resync_spte",
    "gva_to_gpa",
    "spti_make_shadow",
    "xi_invld_mfn",
    "divide_large_page",
    "write_protect",
    "dirty_start",
    "sptes_visited",
    "entries_compared",
    "pages_on_fault",
    "pages_held",
)


@pytest.mark.parametrize("name", PEERS)
def test_it_is_installed_under_its_name(name: str) -> None:
    assert engine_class(name) is PEERS[name]
    assert PEERS[name].name == name
    with pytest.raises(ValueError, match="unknown policy"):
        check_policies(name, (("zeroing", "idle"),))


@every_engine
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": {"zeroing": "idle"}}, "unknown option"),
        ({"fill": "lazy"}, "one of eager, demand"),
        ({"frames": 0}, "domain of 0 frames"),
        ({"pool_base_mfn": 1 << 20}, "below 4 GiB"),
    ],
)
def test_what_cannot_work_is_refused(engine: type[PeerEngine], change: dict[str, object], said: str) -> None:
    config = replace(EngineConfig(512, 64, 0x1000), **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=said):
        engine(config, PlainMemory(np.zeros(512 << 12, np.uint8)))


@every_engine
def test_it_counts_by_the_names_of_the_thread(engine: type[PeerEngine]) -> None:
    domain = PeerDomain(engine, frames=2048)
    domain.start()
    domain.map(VA, 300)
    domain.map(VA + 0x800000, 1024, level=2)
    domain.flush()
    for va in (VA, VA + 0x800000):
        domain.check(va, Access.STORE)
    domain.engine.dirty_log_start()
    domain.check(VA + 0x800000, Access.STORE)
    domain.move(300)
    stats = domain.engine.stats()
    assert json.loads(json.dumps(stats)) == stats
    unused = {"eager": {"write_protect", "pages_on_fault"}, "kvm": {"resync_spte", "entries_compared"}}
    assert {name for name in THREAD if not stats[name]} <= unused.get(engine.name, set()), "a built tree has no faults"
    assert stats["divide_large_page"] == (2 if engine.name == "xen302" else 1), "xen302 has freed it in between"
    assert stats["xi_invld_mfn"] == 1


@every_engine
def test_an_address_that_is_not_canonical_and_an_access_that_is_none(engine: type[PeerEngine]) -> None:
    domain = PeerDomain(engine)
    domain.start()
    assert domain.engine.shadow_fault(1 << 50, Access.LOAD) == GENERAL_PROTECTION
    with pytest.raises(ValueError, match="no access"):
        domain.engine.shadow_fault(VA, 3)


@every_engine
def test_describe_tells_of_the_path(engine: type[PeerEngine]) -> None:
    domain = PeerDomain(engine)
    domain.map(VA, 300)
    domain.start()
    domain.check(VA, Access.STORE)
    walk = domain.engine.describe_walk(VA)
    assert [step["level"] for step in walk] == [4, 3, 2, 1]
    assert walk[-1]["gfn"] == 300
    frame = domain.engine.describe_gfn(300)
    assert (frame["mfn"], frame["addresses"]) == (300, [f"{VA:#x}"])
    root = domain.engine.describe_gfn(domain.root)
    assert [page["spti"] for page in root["sptis"]] == [walk[0]["spti"]]
    assert domain.engine.describe_gfn(1 << 30)["mfn"] is None
