"""A replay that stands, as the commands of `monitor xi` look at it."""

from __future__ import annotations

from collections.abc import Mapping

from harness.debug.scene import Scene
from harness.trace.exact import Replay
from harness.trace.history import TraceHistory


def scene_of(replay: Replay, symbols: Mapping[str, int]) -> Scene:
    """There is no machine beside it; memory is what the trace tells of it, zeros elsewhere. symbols: the guest's."""
    header, state = replay.trace.header, replay.state
    registers = {"cr0": state.cr0, "cr3": state.cr3, "cr4": state.cr4, "efer": state.efer}
    if replay.rip:
        registers["rip"] = replay.rip
    return Scene(
        guest=f"{header.guest} {header.paging}, {header.mode}, replayed",
        engine=replay.engine,
        state=state,
        ram=replay.memory.guest_bytes(),
        p2m=replay.memory.p2m,
        registers=registers,
        total=replay.events.total,
        events=replay.events.last,
        history=TraceHistory(replay.trace.path),
        symbols=dict(symbols),
    )
