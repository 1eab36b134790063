"""What all tests share: how hypothesis behaves, and which of them may run side by side."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

from harness.machine.vcpu import Vcpu

# In CI the same examples every time: a change is judged by what it changed. Elsewhere new ones are sought each time.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def _refuse(vcpu: Vcpu, *_: object) -> None:
    del vcpu
    pytest.fail("a guest is about to run live in a test without the marker two_cores")


# In live mode the guest and the harness spin, each on a core of its own: two such tests at once starve each other, so
# they have a marker and run one by one. All others may run side by side: in observe mode QEMU and Python take turns.
@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Fails a test that should have the marker and has not. What it starts in another process goes unseen."""
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("two_cores") is None:
            patch.setattr(Vcpu, "wait_ready", _refuse)
        return (yield)
