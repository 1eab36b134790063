"""The installed shadow engines: entry points of the group ``xi_harness.engines``, and the policies that each knows.

An engine class may have an attribute ``policies``, a mapping from the name of each option that it takes in
`EngineConfig.options` to the values that the option may have, default first. One without it is asked by way of its
constructor, which raises ValueError for an option that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from harness.engine import EngineConfig, ShadowEngine
    from harness.options import Policies

GROUP: Final = "xi_harness.engines"
TRIAL_FRAMES: Final = 512  # of the domain for which an engine is made only to see whether it takes its options
TRIAL_POOL: Final = 256
TRIAL_POOL_BASE: Final = 0x1000  # beyond the domain


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


def check_policies(name: str, policies: Policies) -> None:
    """Raises ValueError, one line that says what the engine `name` knows, unless it takes all of `policies`."""
    if not policies:
        return
    engine = engine_class(name)
    known: Mapping[str, Sequence[str]] | None = getattr(engine, "policies", None)
    if known is None:
        _try(name, policies)
        return
    for policy, value in policies:
        if value not in known.get(policy, ()):
            what = f"value {value!r} of policy {policy}" if policy in known else f"policy {policy!r}"
            offer = "; ".join(f"{each}={'|'.join(values)}" for each, values in known.items())
            raise ValueError(f"engine {name}: unknown {what} (known: {offer or 'none'})")


def _try(name: str, policies: Policies) -> None:
    """Makes an engine of a small, empty domain with `policies`. Raises ValueError with what it says against them."""
    import numpy as np  # noqa: PLC0415 - a command line without policies does without

    from harness.engine import EngineConfig, PlainMemory  # noqa: PLC0415

    config = EngineConfig(TRIAL_FRAMES, TRIAL_POOL, TRIAL_POOL_BASE, options=dict(policies))
    try:
        engine_class(name)(config, PlainMemory(np.zeros(TRIAL_FRAMES << 12, np.uint8)))
    except ValueError as error:
        raise ValueError(f"engine {name}: {error}") from error
