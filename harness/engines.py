"""The installed shadow engines: entry points of the group ``xi_harness.engines``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from harness.engine import EngineConfig, ShadowEngine

GROUP: Final = "xi_harness.engines"


def find_engine(name: str) -> EntryPoint:
    """The entry point called `name`. Raises ValueError that lists the installed ones."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        raise ValueError(f"unknown engine {name!r} (installed: {', '.join(sorted(points)) or 'none'})")
    return points[name]


@cache
def engine_class(name: str) -> Callable[[EngineConfig, Any], ShadowEngine]:
    """What makes an engine called `name`. Raises ValueError as `find_engine` does."""
    loaded: Callable[[EngineConfig, Any], ShadowEngine] = find_engine(name).load()
    return loaded
