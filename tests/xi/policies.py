"""The policies of XI as tests go through them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from harness.xi.backlinks import Backlinks
from harness.xi.engine import XiEngine
from harness.xi.policies import POLICIES

_STORES = ("snapshots", "backlinks")
DEFAULT = {name: POLICIES[name][0] for name in _STORES}
COMBINATIONS = [
    options
    for values in product(*(POLICIES[name] for name in _STORES))
    if (options := dict(zip(_STORES, values, strict=True))) != DEFAULT
]
"""Every choice of where snapshots and backlinks are kept, but for the default."""


def combination_id(options: Mapping[str, str]) -> str:
    """A name for one of COMBINATIONS."""
    return "-".join(options.values())


def lists_of(engine: XiEngine) -> Backlinks:
    """The lists of an engine that keeps every backlink."""
    assert isinstance(engine.links, Backlinks)
    return engine.links
