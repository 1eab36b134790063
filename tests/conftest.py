"""What all tests share: how hypothesis behaves."""

from __future__ import annotations

import os

from hypothesis import settings

# In CI the same examples every time: a change is judged by what it changed. Elsewhere new ones are sought each time.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")
