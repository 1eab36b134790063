"""Engines are found by name and asked which policies they know."""

from __future__ import annotations

from typing import Any

import pytest

from harness import engines
from harness.engines import check_policies


class Strict:
    """An engine that lists its policies."""

    policies = {"victim": ("lru", "random"), "depth": ("1", "2")}  # noqa: RUF012 - as an engine of somebody's has it


class Silent:
    def __init__(self, config: Any, memory: Any) -> None:
        if config.options.get("colour") != "blue":
            raise ValueError("colour is blue")
        assert memory.read64(0) == 0


def _install(monkeypatch: pytest.MonkeyPatch, engine: type) -> None:
    monkeypatch.setattr(engines, "engine_class", lambda name: engine)


def test_xi_is_asked() -> None:
    check_policies("xi", ())
    check_policies("xi", (("zeroing", "critical-path"),))
    with pytest.raises(ValueError, match=r"engine xi: .*'never'.*zeroing=idle\|critical-path"):
        check_policies("xi", (("zeroing", "never"),))
    with pytest.raises(ValueError, match=r"engine xi: .*sneezing.*zeroing"):
        check_policies("xi", (("sneezing", "idle"),))


def test_an_engine_that_lists_its_policies_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, Strict)
    check_policies("strict", (("depth", "2"), ("victim", "lru")))
    with pytest.raises(ValueError, match=r"unknown policy 'colour' \(known: victim=lru\|random; depth=1\|2\)"):
        check_policies("strict", (("colour", "blue"),))
    with pytest.raises(ValueError, match=r"unknown value '3' of policy depth \(known: victim"):
        check_policies("strict", (("depth", "3"),))


def test_an_engine_that_lists_none_speaks_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, Silent)
    check_policies("silent", (("colour", "blue"),))
    with pytest.raises(ValueError, match="engine silent: colour is blue"):
        check_policies("silent", (("colour", "red"),))
