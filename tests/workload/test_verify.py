"""The check at the end: it trusts neither the model of the hardware nor the guest's bookkeeping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.workload.knobs import Knobs
from harness.workload.refill import Refill
from harness.workload.verify import check_guest
from harness.workload.workload import WorkloadError
from tests.workload.engines import ENGINES

KNOBS = Knobs(spaces=2, tables=1, fill=8, rounds=1, writes=1)


def settled() -> Refill:
    program = Refill(KNOBS)
    program.run(ENGINES["kvm"], lambda part: None)
    return program


def test_what_is_right_passes() -> None:
    program = settled()
    check_guest(program.guest, program.spaces, 1)


def test_a_shadow_that_leads_elsewhere_is_found() -> None:
    """The processes' pages are changed in the shadow, behind the engine's back and with no fault to come."""
    program = settled()
    engine: Any = program.guest.engine
    tables = {table for space in program.spaces for table in space.leaves.values()}
    for page in engine.pool_pages.in_use.values():
        if page.gfn in tables:
            page.spt[page.spt != 0] ^= np.uint64(1 << 12)
    with pytest.raises(WorkloadError, match="where the tables say"):
        check_guest(program.guest, program.spaces, 1)


def test_an_unsound_engine_is_found_by_its_own_audit() -> None:
    program = settled()
    engine: Any = program.guest.engine
    engine.protected[:] = 0
    with pytest.raises(WorkloadError, match="audit finds"):
        check_guest(program.guest, program.spaces, 1)
