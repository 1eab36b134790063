"""Where a traceback goes: into a file, with one line for the user that says where."""

from __future__ import annotations

import os
import tempfile
from typing import Final

from harness.report.text import one_line

TRACEBACK: Final = " (traceback in "  # what stands between the error and the file's name


def keep_traceback(error: BaseException, trace: str) -> str:
    """Writes `trace` to a file of its own in the temporary folder and returns one line about `error`."""
    line = one_line(f"internal error: {type(error).__name__}: {error}")
    try:
        handle, path = tempfile.mkstemp(prefix="xi-harness-error-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(trace)
    except OSError as problem:
        last = trace.strip().splitlines()[-3:-1]
        return f"{line} (its traceback could not be kept: {problem.strerror}; at {one_line(' '.join(last))})"
    return f"{line}{TRACEBACK}{path})"
