"""The live leg against the native one, for real: the guest cannot tell, unless the engine is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import pytest

from harness.catalogue import load_catalogue
from harness.check.exceptions import PDPTE_ACCESSED
from harness.live.session import LiveSession
from harness.options import RunOptions
from harness.report.record import RunRecord
from harness.twin.compare import MakeLeg, run_twin
from harness.twin.live_leg import LiveLeg
from harness.x86.bits import PF_W, PTE_A

pytestmark = pytest.mark.two_cores

Break = Callable[[LiveSession], None]


def both(name: str, paging: str, make: MakeLeg | None = None, stress: bool = False) -> RunRecord:
    options = RunOptions(mode="both", probe_budget=120, stress=stress, time_limit=20.0)
    return run_twin(load_catalogue()[name], paging, options, make_live=make)


@pytest.mark.parametrize(
    ("name", "paging", "allowed"),
    [("basic", "long4", set()), ("alias", "nopae", set()), ("large", "pae", {PDPTE_ACCESSED.name})],
)
def test_a_guest_cannot_tell(name: str, paging: str, allowed: set[str]) -> None:
    record = both(name, paging)
    assert (record.verdict, record.reason) == ("pass", "")
    assert record.twin["counts"] == {}
    assert record.twin["allowed"].keys() == allowed
    assert min(record.twin["compared"][what] for what in ("checkpoints", "faults", "probes", "words", "lines")) > 8


def test_not_even_while_its_frames_move_and_go() -> None:
    record = both("basic", "pae", stress=True)
    assert (record.verdict, record.reason) == ("pass", "")
    assert min(record.live["stress"][what] for what in ("moved", "taken")) > 5


def test_nor_how_it_ends() -> None:
    record = both("hostile_triple", "long5")
    assert (record.verdict, record.twin["counts"]) == ("crash", {})


def no_write_in_codes(session: LiveSession) -> None:
    """Every injected #PF says that it was a read."""
    serve = session.engine.shadow_fault

    def fault(va: int, access: int) -> int:
        result = serve(va, access)
        return result & ~PF_W if result >= 0 else result

    session.engine.shadow_fault = fault  # type: ignore[method-assign]


def no_dirty_bits(session: LiveSession) -> None:
    """A is set in the guest's tables, D is not."""
    memory = session.machine_memory
    or64 = memory.or64
    memory.or64 = lambda address, bits: or64(address, bits & PTE_A)  # type: ignore[method-assign]


def another_console(session: LiveSession) -> None:
    session.machine.console.lines.insert(2, "# nobody printed this")


BROKEN: dict[str, tuple[Break, set[str]]] = {
    "error codes": (no_write_in_codes, {"fault", "probe"}),
    "dirty bits": (no_dirty_bits, {"memory"}),
    "the console": (another_console, {"console"}),
}


@pytest.mark.parametrize(("how", "fields"), BROKEN.values(), ids=BROKEN)
def test_a_wrong_engine_is_seen_through(how: Break, fields: set[str]) -> None:
    class Broken(LiveLeg):
        def __enter__(self) -> Self:
            super().__enter__()
            how(self.session)
            return self

    record = both("basic", "long4", Broken)
    assert record.verdict == "fail"
    assert record.twin["counts"].keys() >= fields
    assert record.twin["differences"][0]["field"] in fields
