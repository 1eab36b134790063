"""The optional view of an engine's insides: XI offers all of it, as records that can be written to a file."""

from __future__ import annotations

import json

import pytest

from harness.engine_views import Explains
from harness.x86.access import ALL_ACCESSES
from tests.debug.commands.broken import Silent
from tests.xi.domain import USED, Domain

VA = 0x400000


@pytest.mark.parametrize("fill", ["eager", "demand"])
@pytest.mark.parametrize("mode", ["nopae", "pae", "long4", "long5"])
def test_xi_explains_itself_in_json(mode: str, fill: str) -> None:
    made = Domain(mode, fill)
    made.map(VA, 0x100, USED)
    made.map(0x8000_0000, 0, USED, 2)
    made.start()
    for access in ALL_ACCESSES:
        made.run(VA, access)
    made.engine.dirty_log_start()
    made.map(VA + 0x1000, 0x101, USED)
    engine: object = made.engine
    assert isinstance(engine, Explains)
    records: list[object] = [engine.describe_pool(), engine.describe_log()]
    records += [engine.describe_spti(number) for number in range(65)]
    for gfn in (*made.engine.gpts, 0x100, 0x3FF, 1 << 40):
        records += [engine.describe_backlinks(gfn), engine.describe_snapshot(gfn), engine.describe_mappings(gfn)]
        records += [engine.explain_entry(gfn, index) for index in (0, 1, 2, 511)]
    records += [
        engine.explain_access(va, access) for va in (VA, VA + 0x1000, 0x8000_0000, 5) for access in ALL_ACCESSES
    ]
    assert len(json.dumps(records)) > 1000


def test_an_engine_need_not() -> None:
    assert not isinstance(Silent(Domain().engine), Explains)
