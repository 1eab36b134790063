"""How the commands look at a scene: walks of the guest's tables and of the shadow, frames of either kind."""

from __future__ import annotations

from typing import Final

import numpy as np

from harness.check.guest_walks import ram_reader
from harness.check.layout import Layout
from harness.check.memory import Ints
from harness.check.shadow_answers import shadow_view
from harness.check.shadow_walk import ShadowView, describe_shadow
from harness.check.verdict import Frames
from harness.debug.scene import Scene
from harness.x86.bits import PAGE_SHIFT
from harness.x86.control import ControlState
from harness.x86.modes import PHYS_BITS_DEFAULT
from harness.x86.walk import Path, tracer

NOT_THE_GUESTS: Final = -1


def layout(scene: Scene) -> Layout:
    """Which guest frames are RAM."""
    return Layout(scene.ram.nbytes >> PAGE_SHIFT, scene.p2m)


def guest_path(scene: Scene, va: int, state: ControlState | None = None) -> Path:
    """Where the guest's tables lead; state: with other control registers than the current ones."""
    return tracer(scene.state if state is None else state, ram_reader(scene.ram))(va)


def shadow(scene: Scene) -> ShadowView:
    """The shadow as the hardware would walk it."""
    return shadow_view(scene.engine, scene.state.pkru, PHYS_BITS_DEFAULT)


def gfns_of(scene: Scene, mfns: Frames) -> Frames:
    """The guest frames whose machine frames `mfns` are; NOT_THE_GUESTS for others. int64, as many as `mfns`."""
    return gfns_by(scene.p2m, scene.ram.nbytes >> PAGE_SHIFT, mfns)


def gfns_by(p2m: Ints | None, frames: int, mfns: Frames) -> Frames:
    """The same by a p2m of `frames` guest frames; None: each frame is itself."""
    if p2m is None:
        return np.where((mfns >= 0) & (mfns < frames), mfns, NOT_THE_GUESTS)
    order = np.argsort(p2m, kind="stable")
    at = np.minimum(np.searchsorted(p2m[order], mfns), frames - 1)
    return np.where((mfns >= 0) & (p2m[order[at]] == mfns), order[at], NOT_THE_GUESTS)


def shadow_frame(view: ShadowView, va: int) -> int:
    """The machine frame to which the shadow leads for `va`, rights aside; -1 where an entry is not present."""
    frame: int = describe_shadow(view, va)[-1]["mfn"]
    return frame


def mfn_of(scene: Scene, gfn: int) -> int:
    """The machine frame of a guest frame; -1 where it has none."""
    if not 0 <= gfn < scene.ram.nbytes >> PAGE_SHIFT:
        return -1
    return gfn if scene.p2m is None else int(scene.p2m[gfn])
